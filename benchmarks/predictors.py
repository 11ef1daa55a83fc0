"""What shape of predictor fits best at about one size?

    python benchmarks/predictors.py

Fits the kernels of a real ResNet20 by reconstruction alone (cross-filter order, greedy, the same
number of steps), with predictors that differ in depth, width and frequencies of the encoding, and
prints the relative squared error of the weights that is left. The first row is the paper's.
Mean and standard deviation over seeds.
"""

import argparse
import dataclasses

import cifar10
import tables


@dataclasses.dataclass
class Shape:
    """A predictor's Dense layers, their width, and the frequencies for each index."""

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


def main():
    """Prints one row per shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    names = ("Dense layers", "width", "frequencies", "parameters", "n", "relative squared error")
    tables.print_header(names)
    for shape in SHAPES:
        nerns = [_fitted(options, shape, seed) for seed in options.seeds]
        errors = [nern.relative_error() for nern in nerns]
        tables.print_row(
            [
                *(str(shape.num_layers), str(shape.hidden_size), str(shape.num_frequencies)),
                *(f"{nerns[0].predictor.num_parameters:,}", str(len(errors))),
                tables.spread(errors, 4),
            ]
        )


def _fitted(options, shape, seed):
    import keras

    import keras_nern

    keras.utils.set_random_seed(seed)
    nern = keras_nern.NeRNModel(
        cifar10.resnet(20, options.weights),
        shape.hidden_size,
        shape.num_layers,
        permutation="cross_filter",
        encoding=keras_nern.PositionalEncoding(shape.num_frequencies),
    )
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    return nern


if __name__ == "__main__":
    main()
