"""Does the cost of a step follow the network's size?

    python benchmarks/scale.py

Takes reconstruction steps of 4,096 blocks on networks of 0.3, 3 and 25 million weights
(untrained: the time of a step does not depend on the weights), in both views, and prints
milliseconds per step (median over the steps, and their quartiles), the relative squared error of
all represented weights after the last step and the peak of the process's memory until then. Each
row is a process of its own. Errors of trained networks, which alone compare the views, are had
with `--networks FILE.keras`.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time

import tables

NETWORKS = ("ResNet20", "MobileNetV2", "ResNet50")


def main():
    """Prints one row per network and view, or with --run the figures of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=NETWORKS,
        metavar="NAME",
        help=f"of {', '.join(NETWORKS)}, or files of keras.models.load_model",
    )
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--permutation", choices=("in_filter", "cross_filter"))
    parser.add_argument("--run", nargs=2, metavar=("NETWORK", "VIEW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    tables.print_header(
        [
            *("network", "view", "represented weights", "blocks", "ms per step"),
            *("relative error", "peak MB"),
        ]
    )
    for network in options.networks:
        for view in ("crop", "block"):
            command = [sys.executable, __file__, *sys.argv[1:], "--run", network, view]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            name = pathlib.Path(network).stem
            tables.print_row([name, view, *json.loads(done.stdout.splitlines()[-1])])


def run(options, network, view):
    """The cells of one row."""
    import keras
    import memory

    import keras_nern

    keras.utils.set_random_seed(0)
    if network == "ResNet20":
        base = keras_nern.models.resnet_cifar(20)
    elif network not in NETWORKS:
        base = keras.models.load_model(network)
    else:
        make = getattr(keras.applications, network)
        base = make(weights=None, input_shape=(32, 32, 3), classes=10)
    nern = keras_nern.NeRNModel(
        base, options.hidden_size, view=view, permutation=options.permutation
    )
    ends = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    nern.fit(steps_per_epoch=options.steps, verbose=0, callbacks=[watch])
    peak = memory.peak_mb()
    steps = [1e3 * (b - a) for a, b in itertools.pairwise(ends[10:])]
    low, middle, high = statistics.quantiles(steps, n=4)
    table = nern.summary_table()
    return [
        f"{table.weights:,}",
        f"{table.blocks:,}",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
        f"{nern.relative_error():.3f}",
        f"{peak:.0f}",
    ]


if __name__ == "__main__":
    main()
