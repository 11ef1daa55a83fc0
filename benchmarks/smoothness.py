"""What does SmoothnessRegularizer cost a good network, and what does it buy?

    python benchmarks/smoothness.py

Fine-tunes the ResNet20 in `--weights` with the regularizer at each strength in `--strengths`, along
filters and channels, by the recipe of `train_resnet20.py` with a lower learning rate. Strength 0 is
fine-tuning alone. Represents each network without a permutation by local predictors of 117,289
parameters, and by the paper's predictor of that size. Prints

    accuracy            of the fine-tuned network on the test images
    cosines             means of neighboring kernels along channels and along filters
    relative error      of the represented weights, after reconstruction and curvature
    drop                in accuracy from the fine-tuned network to the rebuilt one
    core seconds        of the fine-tuning

Every strength runs in a process of its own.
"""

import json
import pathlib
import time

import cifar
import keras
import runs
import tables
import train_resnet20

import keras_nern
from keras_nern.network.blocks import Blocks

STRENGTHS = (0.0, 0.003, 0.01, 0.03, 0.1)
PEAK_RATE = 0.02
PARAMETERS = 117_289
COLUMNS = {
    "accuracy, %": ("accuracy", 2),
    "cosine along channels": ("along_channels", 3),
    "cosine along filters": ("along_filters", 3),
    "relative error, local": ("error_local", 4),
    "drop, local": ("drop_local", 2),
    "relative error, one predictor": ("error_one", 4),
    "drop, one predictor": ("drop_one", 2),
    "core seconds of the training": ("core_seconds", 0),
}


def main():
    """Prints the table, or with `--run` the result of one strength."""
    parser = runs.parser(__doc__, run=("STRENGTH", "SEED"))
    cifar.add_arguments(parser)
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--results", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse_args()
    if options.run:
        strength, seed = options.run
        print(json.dumps(run(options, float(strength), int(seed))))
        return
    tables.print_header(["strength", "n", *COLUMNS])
    for strength in options.strengths:
        results = []
        for seed in options.seeds:
            results.append(runs.in_new_process(strength, seed))
            runs.append_result(options.results, results[-1])
        figures = [
            tables.spread([result[key] for result in results], digits)
            for key, digits in COLUMNS.values()
        ]
        tables.print_row([strength, len(results), *figures])


def run(options, strength, seed):
    """Fine-tunes and represents one network.

    Args:
        options: the options of the command line.
        strength: strength of the regularizer.
        seed: seed of the batches and the predictors.

    Returns:
        The result, a dict that `--results` stores.
    """
    keras.utils.set_random_seed(seed)
    images, labels = cifar.load(options.data_dir, "train")
    test_images, test_labels = cifar.load(options.data_dir, "test")
    network = cifar.resnet(20, options.weights)
    start = time.process_time()
    train_resnet20.fit(network, images, labels, options.epochs, strength, PEAK_RATE, seed)
    core_seconds = time.process_time() - start
    base = keras_nern.models.resnet_cifar(20)  # without regularizers
    base.set_weights(network.get_weights())
    accuracy = cifar.accuracy(base, test_images, test_labels)
    along_channels, along_filters = keras_nern.smoothness_report(base, kinds=()).mean("as trained")
    result = {
        "strength": strength,
        "seed": seed,
        "epochs": options.epochs,
        "accuracy": accuracy,
        "along_channels": float(along_channels),
        "along_filters": float(along_filters),
        "core_seconds": core_seconds,
    }
    size = PARAMETERS / Blocks(base, "block").num_weights
    predictors = {"local": {"size": size}, "one": {"hidden_size": 160, "experts": 1}}
    for name, arguments in predictors.items():
        nern = keras_nern.NeRNModel(base, **arguments, view="block")
        nern.compile(reconstruction_steps=1_000 if name == "local" else 2_000, curvature_steps=300)
        dataset = cifar.augmented(images, 64, seed, mixup=True)
        nern.fit(dataset, steps_per_epoch=1, epochs=0, verbose=0)
        rebuilt = cifar.accuracy(nern.reconstruct(), test_images, test_labels)
        result |= {f"error_{name}": nern.relative_error(), f"drop_{name}": accuracy - rebuilt}
    return result


if __name__ == "__main__":
    main()
