"""The whole way on one page: train a classifier, represent it, rebuild it, compare.

    python -m keras_nern.demo

Trains a ResNet20 on the 8x8 handwritten digits that scikit-learn ships (1,797 real
scans: Alpaydin and Kaynak, UCI, 1998), represents it by a predictor of less than half
its size, and prints what that cost. Needs `pip install keras-nern[demo]`.
"""

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_nern import models
from keras_nern.analysis import plots
from keras_nern.model import NeRNModel
from keras_nern.report import SummaryTable

# Images and their labels.
Split: TypeAlias = tuple[np.ndarray, np.ndarray]

# Of the original and the rebuilt classifier, by name.
Figures: TypeAlias = dict[str, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the demo.

    Args:
        arguments: command-line arguments; `None` for those of the process. Defaults
            to `None`.

    Returns:
        A dict of what it prints: of the original and the rebuilt classifier each the
        figures by name, and the path of the picture.
    """
    options = _options(arguments)
    options.output.mkdir(parents=True, exist_ok=True)  # first of all, where it may fail
    keras.utils.set_random_seed(options.seed)
    train, test = _digits(options.seed)

    print(f"Training a ResNet20 on {len(train[0])} digits for {options.epochs} epochs")
    start = time.perf_counter()
    base = _train_classifier(*train, options.epochs)
    trained = time.perf_counter() - start

    start = time.perf_counter()
    nern = NeRNModel(base, hidden_size=options.hidden_size, permutation="cross_filter")
    nern.compile(reconstruction_steps=options.reconstruction_steps)
    nern.fit(train[0], batch_size=64, epochs=options.distillation_epochs)
    rebuilt = nern.reconstruct()
    represented = time.perf_counter() - start

    table = nern.summary_table()
    figures = _figures(base, rebuilt, test, table, trained, represented)
    print("\n" + _table(figures, len(test[0])))
    picture = options.output / "kernels.png"
    name = table.layers[len(table.layers) // 2].name
    kernel = base.get_layer(name).kernel.numpy()
    plots.plot_kernels(kernel, nern.predict_kernels()[name], name).savefig(picture)
    print(f"\nThe largest kernels of {name}, original and predicted: {picture}")
    return {**figures, "picture": str(picture)}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m keras_nern.demo", description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=160, help="predictor width")
    parser.add_argument("--epochs", type=int, default=20, help="of training the classifier")
    parser.add_argument("--reconstruction-steps", type=int, default=2000)
    parser.add_argument("--distillation-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    return parser.parse_args(arguments)


def _digits(seed: int) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[..., None] * (255 / 16)  # 0..16 -> 0..255
    x_train, x_test, y_train, y_test = train_test_split(
        images.astype("float32"),
        digits.target,
        test_size=500,
        random_state=seed,
        stratify=digits.target,
    )
    return (x_train, y_train), (x_test, y_test)


def _train_classifier(images: np.ndarray, labels: np.ndarray, epochs: int) -> keras.Model:
    pixels = images / 255
    base = models.resnet_cifar(
        depth=20, input_shape=images.shape[1:], mean=float(pixels.mean()), std=float(pixels.std())
    )
    batch_size = 64
    steps = epochs * -(-len(images) // batch_size)
    base.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    base.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=2)
    return base


def _figures(
    base: keras.Model,
    rebuilt: keras.Model,
    test: Split,
    table: SummaryTable,
    trained: float,
    represented: float,
) -> Figures:
    images, labels = test
    original, predicted = (
        model.predict(images, verbose=0).argmax(axis=1) for model in (base, rebuilt)
    )
    total, kept = base.count_params(), table.kept_weights
    return {
        "original": {
            "accuracy": float(np.mean(original == labels)),
            "parameters": total,
            "bytes": 4 * total,
            "seconds": trained,
        },
        "rebuilt": {
            "accuracy": float(np.mean(predicted == labels)),
            "agreement": float(np.mean(predicted == original)),
            "parameters": table.predictor_parameters + kept,
            "bytes": table.representation_bytes + 4 * kept,
            "seconds": represented,
        },
    }


def _table(figures: Figures, images: int) -> str:
    def row(label: str, name: str, form: str, factor: int = 1) -> tuple[str, ...]:
        cells = (figures[which].get(name) for which in ("original", "rebuilt"))
        return label, *("" if cell is None else f"{factor * cell:{form}}" for cell in cells)

    rows = [
        ("", "original", "rebuilt"),
        row(f"accuracy on {images} test images, %", "accuracy", ".1f", 100),
        row("agreement with the original, %", "agreement", ".1f", 100),
        row("parameters", "parameters", ","),
        row("bytes, permutations included", "bytes", ",.0f"),
        row("seconds to train, to represent", "seconds", ".0f"),
    ]
    return "\n".join(f"{label:34}{left:>12}{right:>12}" for label, left, right in rows)


if __name__ == "__main__":
    main()
