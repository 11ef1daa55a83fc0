"""How many bytes does a compact file take, and how close is its coding to the entropy?

    python benchmarks/file_size.py

Represents a trained ResNet20 by reconstruction alone and exports it at every precision. Prints the
bytes of each file by part; the information of the permutation, log2(n!) for the n blocks of each
layer; and, for several bit depths, the coded bytes of the quantized kernels and the entropy of
their levels, each kernel by its own histogram.
"""

import pathlib
import tempfile

import cifar
import keras
import numpy as np
import runs
import tables

import keras_nern
from keras_nern.artifact.codec import encode_levels
from keras_nern.artifact.info import inspect

PRECISIONS = (  # of the predictor, of the weights that are not represented
    *(("float32", "float32"), ("float16", "float32"), ("int8", "float32"), ("int6", "float32")),
    *(("int5", "float32"), ("int5", "float16"), ("int4", "float32")),
)
PARTS = ("predictor", "permutation", "kept", "config", "container")


def main():
    """Prints a row per file, then a row per bit depth."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--hidden-size", type=int, default=160, help="width of the predictor")
    parser.add_argument("--steps", type=int, default=1_200, help="reconstruction steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    base = cifar.resnet(20, options.weights)
    nern = keras_nern.NeRNModel(base, options.hidden_size, permutation="cross_filter")
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    print_parts(nern)
    print(f"\nInformation of the permutation: {nern.kernel_permutation().bits / 8:,.1f} bytes\n")
    print_entropy(nern)


def print_parts(nern):
    """Prints the size of the exported file, by precision and part."""
    tables.print_header(
        [
            *("predictor precision", "kept-weight precision", "file bytes", "predictor bytes"),
            *("permutation bytes", "kept-weight bytes", "config bytes", "container bytes"),
        ]
    )
    for precision, kept_precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.nern"
            nern.export(path, precision=precision, kept_precision=kept_precision)
            info = inspect(path)
        sizes = [info.file_bytes, *(info.part_bytes[part] for part in PARTS)]
        tables.print_row([precision, kept_precision, *(f"{size:,}" for size in sizes)])


def print_entropy(nern):
    """Prints the coded size of the quantized kernels and their entropy, by bit depth."""
    tables.print_header(
        ["bits", "coded levels, bytes", "entropy of the levels, bytes", "excess over entropy, %"]
    )
    for bits in (4, 5, 6, 8):
        quantized = keras_nern.compress(nern, bits).predictor.quantized()
        levels = [kernel.levels for kernel in quantized]
        size = len(encode_levels(levels, bits))
        entropy = sum(_entropy_bits(one) for one in levels) / 8
        excess = 100 * (size / entropy - 1)
        tables.print_row([bits, f"{size:,}", f"{entropy:,.0f}", f"{excess:.2f}"])


def _entropy_bits(levels):
    """The entropy of the histogram of `levels`, times their number."""
    _, counts = np.unique(levels, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())


if __name__ == "__main__":
    main()
