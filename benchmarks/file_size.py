"""How many bytes does the compact file take, and how near to their entropy are its levels?

    python benchmarks/file_size.py

Represents a trained ResNet20 by reconstruction alone and exports it in every precision. Prints
the bytes of each file by part (`inspect`), those of the permutation beside
log2 n! of each layer's n blocks, and those of the levels beside the entropy of each kernel's
levels by itself.
"""

import argparse
import pathlib
import tempfile

import cifar10
import numpy as np
import tables

FILES = (
    *(("float32", "float32"), ("float16", "float32"), ("int8", "float32"), ("int6", "float32")),
    *(("int5", "float32"), ("int5", "float16"), ("int4", "float32")),
)
PARTS = ("predictor", "permutation", "kept", "config", "container")


def main():
    """Prints a row per file, then one per bit depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=1_200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import keras

    import keras_nern
    from keras_nern.artifact.info import inspect

    keras.utils.set_random_seed(options.seed)
    base = cifar10.resnet(20, options.weights)
    nern = keras_nern.NeRNModel(base, options.hidden_size, permutation="cross_filter")
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    tables.print_header(["precision", "kept in", "file", *PARTS])
    for precision, kept in FILES:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.nern"
            nern.export(path, precision=precision, kept_precision=kept)
            info = inspect(path)
        sizes = [info.file_bytes, *(info.part_bytes[part] for part in PARTS)]
        tables.print_row([precision, kept, *(f"{size:,}" for size in sizes)])
    print(f"\nlog2 n! of the orders: {nern.kernel_permutation().bits / 8:,.1f} bytes\n")
    tables.print_header(["bits", "levels, bytes", "entropy, bytes", "excess, %"])
    for bits in (4, 5, 6, 8):
        levels = [one.levels for one in keras_nern.compress(nern, bits).predictor.quantized()]
        size = len(keras_nern.artifact.codec.encode_levels(levels, bits))
        entropy = sum(_entropy(one) for one in levels) / 8
        excess = f"{100 * (size / entropy - 1):.2f}"
        tables.print_row([str(bits), f"{size:,}", f"{entropy:,.0f}", excess])


def _entropy(levels):
    """Bits of all levels at the entropy of their histogram."""
    _, counts = np.unique(levels, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())


if __name__ == "__main__":
    main()
