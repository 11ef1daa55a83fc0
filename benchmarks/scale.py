"""Does the cost of a step follow the network's size?

    python benchmarks/scale.py

Takes reconstruction steps of 4,096 blocks on networks of 0.3, 3 and 25 million weights
(untrained: the time of a step does not depend on the weights), in both views, and prints
milliseconds per step (median over the steps, and their quartiles) and the peak of the process's
memory. Each row is a process of its own.
"""

import argparse
import itertools
import json
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
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=500)
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
            tables.print_row([network, view, *json.loads(done.stdout.splitlines()[-1])])


def run(options, network, view):
    """The cells of one row."""
    import keras
    import memory

    import keras_nern

    keras.utils.set_random_seed(0)
    if network == "ResNet20":
        base = keras_nern.models.resnet_cifar(20)
    else:
        make = getattr(keras.applications, network)
        base = make(weights=None, input_shape=(32, 32, 3), classes=10)
    nern = keras_nern.NeRNModel(base, options.hidden_size, view=view)
    ends = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    history = nern.fit(steps_per_epoch=options.steps, verbose=0, callbacks=[watch]).history
    steps = [1e3 * (b - a) for a, b in itertools.pairwise(ends[10:])]
    low, middle, high = statistics.quantiles(steps, n=4)
    table = nern.summary_table()
    return [
        f"{table.weights:,}",
        f"{table.blocks:,}",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
        f"{history['relative_error'][-1]:.3f}",
        f"{memory.peak_mb():.0f}",
    ]


if __name__ == "__main__":
    main()
