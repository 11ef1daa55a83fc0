"""What does an order of the kernels do to the error of the fit?

    python benchmarks/orders.py

Fits the kernels of a real ResNet20 by reconstruction alone, under every permutation
and metric, for the same number of steps, and prints the relative squared error of the
weights that is left. Mean and standard deviation over seeds.
"""

import argparse

import cifar10
import tables

ORDERS = [
    (None, "cosine"),
    ("in_filter", "cosine"),
    ("in_filter", "euclidean"),
    ("cross_filter", "cosine"),
    ("cross_filter", "euclidean"),
]


def main():
    """Prints one row per order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    tables.print_header(["permutation", "metric", "n", "relative squared error"])
    for permutation, metric in ORDERS:
        errors = [_error(options, permutation, metric, seed) for seed in options.seeds]
        name = metric if permutation else ""
        tables.print_row([str(permutation), name, str(len(errors)), tables.spread(errors, 4)])


def _error(options, permutation, metric, seed):
    import keras

    import keras_nern

    keras.utils.set_random_seed(seed)
    base = cifar10.resnet(20, options.weights)
    nern = keras_nern.NeRNModel(
        base, hidden_size=options.hidden_size, permutation=permutation, metric=metric
    )
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    return nern.relative_error()


if __name__ == "__main__":
    main()
