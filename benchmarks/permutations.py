"""How long does each permutation take, and how smooth is it?

    python benchmarks/permutations.py

Orders all kernels of a layer (cross-filter) by every method: a layer of 64 x 64 kernels
from a real ResNet20, and one of the size of ResNet18's largest, 512 x 512 kernels of 3x3
(He-normal weights: the time of a greedy order does not depend on them). Prints seconds,
the growth of the process's peak memory and the mean cosine of neighbours along the order.
Each run is a process of its own. *Plain loop* is greedy nearest neighbour as it is
usually written, for comparison: at every step the cosines to all vectors not yet visited,
one product of a matrix by a vector, whose rows then lose one. On the large layer it is
timed for its first steps only, and the rest reckoned from the number of vectors left.
"""

import argparse
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
TOO_LARGE = {("512 x 512", "fast_tsp")}


def main():
    """Prints one row per layer and method, or with --run the figures of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("LAYER", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    tables.print_header(
        ["layer", "method", "n", "seconds", "peak grows by, MB", "mean cosine of neighbours"]
    )
    for layer in options.layers:
        for method in options.methods:
            if (layer, method) in TOO_LARGE:
                tables.print_row([layer, method, "0", "too large", "", ""])
                continue
            runs = [_subprocess(layer, method) for _ in range(options.repeats)]
            cells = [
                "" if None in values else tables.spread(values, digits)
                for values, digits in zip(zip(*runs, strict=True), (2, 0, 4), strict=True)
            ]
            tables.print_row([layer, method, str(len(runs)), *cells])


def _subprocess(layer, method):
    command = [sys.executable, __file__, *sys.argv[1:], "--run", layer, method]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options, layer, method):
    """Seconds, MB and mean cosine of one order."""
    import memory

    import keras_nern

    if layer == LAYERS[0]:
        blocks = keras_nern.blocks.Blocks(cifar10.resnet(20, options.weights)).kernel_blocks(-1)
    else:
        rng = np.random.default_rng(0)
        blocks = rng.normal(0, (2 / (9 * 512)) ** 0.5, (512, 512, 9)).astype("float32")
    blocks = blocks.reshape(-1, 9)
    units = blocks / np.linalg.norm(blocks, axis=1, keepdims=True)
    keras_nern.tours.order_vectors(blocks[:100], "greedy", "cosine")  # load what it needs
    before = memory.peak_mb()
    start = time.perf_counter()
    if method == PLAIN:
        order = _plain_loop(units, PLAIN_STEPS if len(units) > 10 * PLAIN_STEPS else len(units))
    else:
        order = keras_nern.tours.order_vectors(blocks, method, "cosine")
    seconds = time.perf_counter() - start
    cosine = (units[order[1:]] * units[order[:-1]]).sum(axis=1).mean()
    if len(order) < len(units):  # the k-th of n steps looks at n - k vectors
        done = sum(len(units) - step for step in range(len(order)))
        seconds *= len(units) ** 2 / 2 / done
        cosine = None
    return seconds, memory.peak_mb() - before, cosine and float(cosine)


def _plain_loop(units, steps):
    left = np.arange(1, len(units))
    rows = units[1:]
    order = [0]
    while len(order) < steps:
        nearest = (rows @ units[order[-1]]).argmax()
        order.append(left[nearest])
        left = np.delete(left, nearest)
        rows = np.delete(rows, nearest, axis=0)
    return np.array(order)


if __name__ == "__main__":
    main()
