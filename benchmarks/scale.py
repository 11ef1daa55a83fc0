"""Does the time of a training step grow with the network?

    python benchmarks/scale.py

Runs reconstruction steps of 4,096 blocks on networks of 0.3, 3 and 25 million weights, in both
views. The networks are untrained, because the time of a step does not depend on the weights. Every
row runs in a process of its own.

Prints the milliseconds per step (median and quartiles), the relative squared error of all
represented weights after the last step, and the peak memory of the process until then. Compare the
errors of the two views on trained networks only: --networks FILE.keras.
"""

import json
import pathlib
import statistics

import keras
import measure
import runs
import tables

import keras_nern

NETWORKS = ("ResNet20", "MobileNetV2", "ResNet50")
WARM_UP = 10  # steps that are not counted
COLUMNS = (
    *("network", "view", "represented weights", "blocks", "ms per step, median (quartiles)"),
    *("relative error", "peak memory, MB"),
)


def main():
    """Prints one row per network and view, or with `--run` the cells of one row."""
    parser = runs.parser(__doc__, run=("NETWORK", "VIEW"))
    parser.add_argument(
        "--networks",
        nargs="+",
        default=NETWORKS,
        metavar="NAME",
        help=f"any of {', '.join(NETWORKS)}, or files for keras.models.load_model",
    )
    parser.add_argument("--hidden-size", type=int, default=160, help="width of the predictor")
    parser.add_argument("--steps", type=int, default=500, help="reconstruction steps")
    parser.add_argument("--permutation", choices=("in_filter", "cross_filter"))
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    tables.print_header(COLUMNS)
    for network in options.networks:
        for view in ("crop", "block"):
            cells = runs.in_new_process(network, view)
            tables.print_row([pathlib.Path(network).stem, view, *cells])


def run(options, network, view):
    """The cells of one row, except network and view."""
    keras.utils.set_random_seed(0)
    if network == "ResNet20":
        base = keras_nern.models.resnet_cifar(20)
    elif network in NETWORKS:
        make = getattr(keras.applications, network)
        base = make(weights=None, input_shape=(32, 32, 3), classes=10)
    else:
        base = keras.models.load_model(network)
    nern = keras_nern.NeRNModel(
        base, options.hidden_size, view=view, permutation=options.permutation
    )
    seconds = measure.step_seconds(nern, steps_per_epoch=options.steps)
    peak_mb = measure.peak_mb()
    quartiles = statistics.quantiles([1e3 * one for one in seconds[WARM_UP:]], n=4)
    low, median, high = (f"{one:.1f}" for one in quartiles)
    table = nern.summary_table()
    return [
        f"{table.weights:,}",
        f"{table.blocks:,}",
        f"{median} ({low} to {high})",
        f"{nern.relative_error():.3f}",
        f"{peak_mb:.0f}",
    ]


if __name__ == "__main__":
    main()
