"""How long does each permutation take, and how smooth is it?

    python benchmarks/permutations.py

Orders the kernels of a layer by every method, kind and metric: a layer of 64 x 64 kernels
from a real ResNet20, and one of the size of ResNet18's largest, 512 x 512 kernels of 3x3
(He-normal weights: the time of a greedy order does not depend on them, that of the others
does). Prints seconds, the growth of the process's peak memory and the mean cosine of
neighbours along channels, which is along a cross-filter order's path (but for the ends of rows).
Each run is a process of its own. *Plain loop* is greedy nearest neighbour as it is
usually written, for comparison: at every step the cosines to all vectors not yet visited,
one product of a matrix by a vector, whose rows then lose one. On the large layer it is
timed for its first steps only, and the rest reckoned from the number of vectors left.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time

import cifar10
import numpy as np
import tables

LAYERS = ("ResNet20, 64 x 64", "512 x 512")
PLAIN = "plain loop"
PLAIN_STEPS = 2_000  # of the large layer
METHODS = (PLAIN, "greedy", "two_opt", "fast_tsp")
KINDS = ("cross_filter", "in_filter")
METRICS = ("cosine", "euclidean")
TOO_LARGE = ("512 x 512", "fast_tsp", "cross_filter")


def main():
    """Prints one row per layer and method, or with --run the figures of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    figures = ["seconds", "peak grows by, MB", "mean cosine along channels"]
    tables.print_header(["layer", "kind", "metric", "method", "n", *figures])
    for row in itertools.product(options.layers, options.kinds, options.metrics, options.methods):
        layer, kind, metric, method = row
        if method == PLAIN and (kind, metric) != ("cross_filter", "cosine"):
            continue
        if (layer, method, kind) == TOO_LARGE:
            tables.print_row([*row, "0", "too large", "", ""])
            continue
        runs = [_subprocess(*row) for _ in range(options.repeats)]
        cells = [
            "" if None in values else tables.spread(values, digits)
            for values, digits in zip(zip(*runs, strict=True), (2, 0, 4), strict=True)
        ]
        tables.print_row([*row, str(len(runs)), *cells])


def _subprocess(*row):
    command = [sys.executable, __file__, *sys.argv[1:], "--run", *row]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options, layer, kind, metric, method):
    """Seconds, MB and mean cosine of one order."""
    import memory

    import keras_nern

    if layer == LAYERS[0]:
        blocks = keras_nern.network.blocks.Blocks(
            cifar10.resnet(20, options.weights)
        ).kernel_blocks(-1)
    else:
        rng = np.random.default_rng(0)
        blocks = rng.normal(0, (2 / (9 * 512)) ** 0.5, (512, 512, 9)).astype("float32")
    keras_nern.permutations.orders.block_order(blocks[:4, :4], kind, "greedy", metric)  # loads all
    before = memory.peak_mb()
    start = time.perf_counter()
    if method == PLAIN:
        order, seconds = _plain_loop(blocks.reshape(-1, 9))
    else:
        order = keras_nern.permutations.orders.block_order(blocks, kind, method, metric)
        seconds = time.perf_counter() - start
    growth = memory.peak_mb() - before
    if order is None:
        return seconds, growth, None
    kernel = np.moveaxis(blocks, (0, 1), (-1, -2))  # (9, channels, filters)
    return seconds, growth, neighbour_cosines(kernel, order)[0]


def _plain_loop(blocks):
    """The order and its seconds; of many blocks `None`, and the seconds reckoned."""
    start = time.perf_counter()
    units = blocks / np.linalg.norm(blocks, axis=1, keepdims=True)
    count = len(units)
    steps = PLAIN_STEPS if count > 10 * PLAIN_STEPS else count
    left = np.arange(1, count)
    rows = units[1:]
    order = [0]
    while len(order) < steps:
        nearest = (rows @ units[order[-1]]).argmax()
        order.append(left[nearest])
        left = np.delete(left, nearest)
        rows = np.delete(rows, nearest, axis=0)
    seconds = time.perf_counter() - start
    if steps == count:
        return np.array(order), seconds
    done = sum(count - step for step in range(steps))  # the k-th step looks at count - k vectors
    return None, seconds * count**2 / 2 / done


if __name__ == "__main__":
    main()
