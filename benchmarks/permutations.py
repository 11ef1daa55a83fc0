"""How long does it take to find a permutation, and how smooth is the result?

    python benchmarks/permutations.py

Orders the kernels of one layer with every kind, metric and method. The layers are a trained one of
ResNet20 (64 x 64 kernels) and one of the size of ResNet18's largest (512 x 512 kernels of 3 x 3)
with He-normal weights, on which only the time of a greedy search does not depend. Every run is a
process of its own.

Prints seconds, the growth of the process's peak memory, and the mean cosine of neighboring kernels
along channels, which is the direction in which a cross-filter order runs.

The method "plain loop" is a textbook nearest-neighbor search for comparison: each step multiplies
the matrix of all vectors not yet visited by the current vector and then deletes one row. On the
large layer only its first steps are timed; the remaining time is extrapolated from the number of
vectors left.
"""

import itertools
import json
import time

import cifar
import measure
import numpy as np
import runs
import tables

from keras_nern.analysis.smoothness import neighbour_cosines
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import block_order

SMALL, LARGE = LAYERS = ("ResNet20, 64 x 64", "512 x 512")
PLAIN = "plain loop"
PLAIN_STEPS = 2_000  # timed on the large layer
METHODS = (PLAIN, "greedy", "two_opt", "fast_tsp")
KINDS = ("cross_filter", "in_filter")
METRICS = ("cosine", "euclidean")
TOO_LARGE = (LARGE, "cross_filter", "fast_tsp")
COLUMNS = (
    *("layer", "permutation", "metric", "method", "n", "seconds"),
    *("growth of peak memory, MB", "mean cosine along channels"),
)


def main():
    """Prints one row per layer, kind, metric and method, or with `--run` the figures of one run."""
    parser = runs.parser(__doc__, run=("LAYER", "KIND", "METRIC", "METHOD"))
    cifar.add_arguments(parser)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=3, help="runs per row")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    tables.print_header(COLUMNS)
    for row in itertools.product(options.layers, options.kinds, options.metrics, options.methods):
        layer, kind, metric, method = row
        if method == PLAIN and (kind, metric) != ("cross_filter", "cosine"):
            continue
        if (layer, kind, method) == TOO_LARGE:
            tables.print_row([*row, 0, "too large", "", ""])
            continue
        figures = [runs.in_new_process(*row) for _ in range(options.repeats)]
        cells = [
            "" if None in values else tables.spread(values, digits)
            for values, digits in zip(zip(*figures, strict=True), (2, 0, 4), strict=True)
        ]
        tables.print_row([*row, len(figures), *cells])


def run(options, layer, kind, metric, method):
    """Searches once; returns seconds, megabytes and mean cosine (`None` if extrapolated)."""
    if layer == SMALL:
        blocks = Blocks(cifar.resnet(20, options.weights)).kernel_blocks(-1)
    else:
        rng = np.random.default_rng(0)
        blocks = rng.normal(0, (2 / (9 * 512)) ** 0.5, (512, 512, 9)).astype("float32")
    block_order(blocks[:4, :4], kind, "greedy", metric)  # loads all libraries
    before = measure.peak_mb()
    start = time.perf_counter()
    if method == PLAIN:
        order, seconds = _plain_loop(blocks.reshape(-1, 9))
    else:
        order = block_order(blocks, kind, method, metric)
        seconds = time.perf_counter() - start
    growth = measure.peak_mb() - before
    if order is None:
        return seconds, growth, None
    kernel = np.moveaxis(blocks, (0, 1), (-1, -2))  # (9, channels, filters)
    return seconds, growth, neighbour_cosines(kernel, order)[0]


def _plain_loop(vectors):
    """Orders `vectors` `(n, 9)`; returns `(order, seconds)`, the order `None` if extrapolated."""
    start = time.perf_counter()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    count = len(units)
    steps = PLAIN_STEPS if count > 10 * PLAIN_STEPS else count
    left = np.arange(1, count)  # vectors not yet visited
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
    done = sum(count - step for step in range(steps))  # step k reads count - k vectors
    return None, seconds * count**2 / 2 / done


if __name__ == "__main__":
    main()
