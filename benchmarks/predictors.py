"""Which shape of predictor fits best at about the same size?

    python benchmarks/predictors.py

Fits the kernels of a trained ResNet20 by reconstruction alone, with a greedy cross-filter
permutation and a fixed number of steps, using predictors of different depth, width and encoding.
The first row is the shape of the paper. Prints the relative squared error of the weights, with
mean and standard deviation over seeds.
"""

import dataclasses

import cifar
import keras
import runs
import tables

import keras_nern


@dataclasses.dataclass
class Shape:
    """A predictor: number of Dense layers, their width, and frequencies that encode each index."""

    num_layers: int
    hidden_size: int
    num_frequencies: int


SHAPES = (
    Shape(5, 160, 40),
    Shape(5, 160, 20),
    Shape(5, 176, 20),
    Shape(4, 211, 20),
    Shape(6, 156, 20),
    Shape(7, 142, 20),
    Shape(10, 116, 20),
)
COLUMNS = (
    *("Dense layers", "hidden size", "frequencies per index", "predictor parameters", "n"),
    "relative squared error",
)


def main():
    """Prints one row per shape."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=1000, help="reconstruction steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    tables.print_header(COLUMNS)
    for shape in SHAPES:
        nerns = [_fitted(options, shape, seed) for seed in options.seeds]
        errors = [nern.relative_error() for nern in nerns]
        parameters = f"{nerns[0].predictor.num_parameters:,}"
        tables.print_row(
            [*dataclasses.astuple(shape), parameters, len(errors), tables.spread(errors, 4)]
        )


def _fitted(options, shape, seed):
    keras.utils.set_random_seed(seed)
    nern = keras_nern.NeRNModel(
        cifar.resnet(20, options.weights),
        shape.hidden_size,
        shape.num_layers,
        permutation="cross_filter",
        encoding=keras_nern.PositionalEncoding(shape.num_frequencies),
    )
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    return nern


if __name__ == "__main__":
    main()
