"""The whole workflow on real data: train a classifier, represent it, rebuild it, compare the two.

    python -m keras_nern.demo

trains a ResNet20 on the 8x8 handwritten digits of scikit-learn, represents it by a predictor
with less than half of its weights, and prints the accuracy and size of both. `keras-nern demo`
does the same with options. Requires `pip install "keras-nern[demo]"`.

Source of the digits: 1,797 scans, Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998.
"""

import pathlib
import sys
import time
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_nern import models
from keras_nern.analysis import plots
from keras_nern.model import NeRNModel
from keras_nern.report import SummaryTable
from keras_nern.utils.optional import require
from keras_nern.utils.tables import Table
from keras_nern.utils.types import Path

# Images (n, height, width, channels) and labels (n,).
Split: TypeAlias = tuple[np.ndarray, np.ndarray]

# `"original"` and `"rebuilt"` -> name of a result -> value.
Results: TypeAlias = dict[str, dict[str, float]]

BATCH_SIZE = 64


def run(
    hidden_size: int = 160,
    epochs: int = 20,
    reconstruction_steps: int = 2000,
    distillation_epochs: int = 10,
    seed: int = 0,
    output: Path = "demo_output",
) -> dict[str, Any]:
    """Runs the demo, prints a table and saves a picture of kernels.

    Args:
        hidden_size: width of the predictor. Defaults to `160`.
        epochs: epochs of training the classifier. Defaults to `20`.
        reconstruction_steps: steps of the reconstruction phase. Defaults to `2000`.
        distillation_epochs: epochs of the distillation phase. Defaults to `10`.
        seed: random seed of the split, the initial weights and training. Defaults to `0`.
        output: folder of the picture; it is created if it does not exist. Defaults to
            `"demo_output"`.

    Returns:
        A dict: `"original"` and `"rebuilt"` are dicts of results, `"picture"` is the path of the
        picture.

    Raises:
        ImportError: if scikit-learn or matplotlib is not installed.
        OSError: if `output` cannot be created.
    """
    for module in ("sklearn", "matplotlib"):  # raises before the training starts
        require(module, "demo")
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    train, test = _digits(seed)

    print(f"Training a ResNet20 on {len(train[0])} digits for {epochs} epochs")
    start = time.perf_counter()
    base = _train_classifier(*train, epochs)
    training_seconds = time.perf_counter() - start

    start = time.perf_counter()
    nern = NeRNModel(base, hidden_size=hidden_size, permutation="cross_filter")
    nern.compile(reconstruction_steps=reconstruction_steps)
    nern.fit(train[0], batch_size=BATCH_SIZE, epochs=distillation_epochs)
    rebuilt = nern.reconstruct()
    fitting_seconds = time.perf_counter() - start

    table = nern.summary_table()
    results = _results(base, rebuilt, test, table)
    results["original"]["seconds"] = training_seconds
    results["rebuilt"]["seconds"] = fitting_seconds
    print("\n" + _table(results, len(test[0])).to_text())

    name = table.layers[len(table.layers) // 2].name
    kernel = base.get_layer(name).kernel.numpy()
    picture = folder / "kernels.png"
    plots.plot_kernels(kernel, nern.predict_kernels()[name], name).savefig(picture)
    print(f"\nThe largest kernels of {name}, original and predicted: {picture}")
    return {**results, "picture": str(picture)}


def _digits(seed: int) -> tuple[Split, Split]:
    """Images float32 `(n, 8, 8, 1)` in 0..255 and labels, for training and for testing."""
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
    steps = epochs * -(-len(images) // BATCH_SIZE)
    base.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    base.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=2)
    return base


def _results(base: keras.Model, rebuilt: keras.Model, test: Split, table: SummaryTable) -> Results:
    images, labels = test
    original, predicted = (
        model.predict(images, verbose=0).argmax(axis=1) for model in (base, rebuilt)
    )
    return {
        "original": {
            "accuracy": float(np.mean(original == labels)),
            "parameters": base.count_params(),
            "bytes": 4 * base.count_params(),
        },
        "rebuilt": {
            "accuracy": float(np.mean(predicted == labels)),
            "agreement": float(np.mean(predicted == original)),
            "parameters": table.predictor_parameters + table.kept_weights,
            "bytes": table.representation_bytes + 4 * table.kept_weights,
        },
    }


def _table(results: Results, images: int) -> Table:
    def row(label: str, name: str, form: str, factor: int = 1) -> tuple[str, ...]:
        values = (results[which].get(name) for which in ("original", "rebuilt"))
        return label, *("" if value is None else f"{factor * value:{form}}" for value in values)

    rows = [
        row(f"accuracy on {images} test images, %", "accuracy", ".1f", 100),
        row("agreement with the original, %", "agreement", ".1f", 100),
        row("parameters", "parameters", ","),
        row("bytes, including the permutation", "bytes", ",.0f"),
        row("seconds to train or to represent", "seconds", ".0f"),
    ]
    return Table(rows, ("", "original", "rebuilt"), "lr")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("keras_nern.demo takes no options. `keras-nern demo` does: see its --help.")
    run()
