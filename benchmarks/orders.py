"""How much does each permutation lower the reconstruction error?

    python benchmarks/orders.py

Fits the kernels of a trained ResNet20 by reconstruction alone, with every permutation and metric
and a fixed number of steps. Prints the relative squared error of the weights, with mean and
standard deviation over seeds.
"""

import cifar
import keras
import runs
import tables

import keras_nern

PERMUTATIONS = (  # kind, metric
    (None, None),
    ("in_filter", "cosine"),
    ("in_filter", "euclidean"),
    ("cross_filter", "cosine"),
    ("cross_filter", "euclidean"),
)


def main():
    """Prints one row per permutation."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--hidden-size", type=int, default=160, help="width of the predictor")
    parser.add_argument("--steps", type=int, default=800, help="reconstruction steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    tables.print_header(["permutation", "metric", "n", "relative squared error"])
    for kind, metric in PERMUTATIONS:
        errors = [_error(options, kind, metric, seed) for seed in options.seeds]
        tables.print_row([kind or "none", metric or "", len(errors), tables.spread(errors, 4)])


def _error(options, permutation, metric, seed):
    keras.utils.set_random_seed(seed)
    nern = keras_nern.NeRNModel(
        cifar.resnet(20, options.weights),
        options.hidden_size,
        permutation=permutation,
        metric=metric or "euclidean",
    )
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    return nern.relative_error()


if __name__ == "__main__":
    main()
