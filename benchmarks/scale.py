"""What does a representation cost, and does the cost of a kernel grow with the network?

    python benchmarks/scale.py --table cost
    python benchmarks/scale.py --table error
    python benchmarks/scale.py --table size

* cost: one epoch over all kernels of networks of 0.3 to 25 million weights, with local predictors
  of 40 % of the weights and with one predictor of that size. Prints the core-seconds per epoch and
  the core-microseconds per kernel, in training and in prediction, and the memory above that of the
  base. The weights of ResNet50 are random, which does not matter here.
* error: the relative squared error of all represented weights after fits without images, at the
  sizes of the paper's rows, beside a linear spline through the ordered kernels of as many numbers.
* size: bytes of the compressed predictor and of the compact file, at equal numbers of parameters.

Every fit runs in a process of its own, with one thread. Times are core-seconds of that process.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import cifar
import imagenet
import keras
import measure
import numpy as np
import runs
import scipy.sparse
import scipy.sparse.linalg
import tables

import keras_nern
from keras_nern.network.blocks import Blocks

NETWORKS = ("ResNet20", "ResNet56", "EfficientNet-lite0", "ResNet50")
SHARE = 0.4
MIN_STEPS = 300  # of a measurement, because a fit takes some time to start
COLUMNS = {
    "cost": (
        *("network", "weights", "blocks", "experts", "kernels per step"),
        *("core-s per epoch", "core-µs per kernel", "core-µs to predict one"),
        "MB above the base",
    ),
    "error": (
        *("network", "predictor", "parameters", "order, core-s", "steps", "fit, core-s"),
        *("relative error", "normalized error", "spline"),
    ),
    "size": ("network", "predictor", "parameters", "bytes of the predictor", "bytes of the file"),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A row of the table of errors; `steps=None` stands for the default."""

    network: str
    parameters: int
    method: str
    experts: int | str = "auto"
    steps: int | None = None


FITS = {
    "ResNet20": Fit("ResNet20", 117_289, "two_opt"),
    "ResNet20, longer": Fit("ResNet20", 117_289, "two_opt", steps=3_500),
    "ResNet20, longest": Fit("ResNet20", 117_289, "two_opt", steps=10_500),
    "ResNet20, one predictor": Fit("ResNet20", 117_289, "two_opt", experts=1),
    "ResNet56": Fit("ResNet56", 306_049, "greedy"),
    "ResNet56, longer": Fit("ResNet56", 306_049, "greedy", steps=2_800),
    "ResNet56, one predictor": Fit("ResNet56", 306_049, "greedy", experts=1, steps=1_000),
    "EfficientNet-lite0": Fit("EfficientNet-lite0", 1_331_597, "greedy"),
    "EfficientNet-lite0, one predictor": Fit(
        "EfficientNet-lite0", 1_331_597, "greedy", experts=1, steps=500
    ),
}


def main():
    """Prints a table, or with `--run` the cells of one row."""
    parser = runs.parser(__doc__, run=("ROW", "SEED"))
    cifar.add_arguments(parser)
    imagenet.add_arguments(parser)
    parser.add_argument("--table", choices=COLUMNS, default="cost")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows to run; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of table error")
    options = parser.parse_args()
    if options.run:
        name, seed = options.run
        print(json.dumps(RUNS[options.table](options, name, int(seed))))
        return
    tables.print_header(COLUMNS[options.table])
    names = {"cost": NETWORKS, "error": tuple(FITS), "size": ("one predictor", "local")}
    for name in options.rows or names[options.table]:
        seeds = options.seeds if options.table == "error" else [0]
        found = [runs.in_new_process(name, seed) for seed in seeds]
        tables.print_row([_cell([cells[i] for cells in found]) for i in range(len(found[0]))])


def _cell(values):
    if isinstance(values[0], float):
        digits = 4 if statistics.mean(values) < 1 else 1
        return tables.spread(values, digits)
    return values[0] if len(set(values)) == 1 else str(values)


def network(options, name):
    """The network of a name, with the weights of ../shared, or random ones."""
    if name == "ResNet50":
        return keras.applications.ResNet50(weights=None)
    if name == "EfficientNet-lite0":
        return imagenet.efficientnet_lite0(options.weights)
    return cifar.resnet(int(name.removeprefix("ResNet")), options.weights)


def cost(options, name, seed):
    """Cells of a row of the table of costs."""
    keras.utils.set_random_seed(seed)
    base = network(options, name)
    before = measure.resident_mb()
    nern = keras_nern.NeRNModel(base, view="block", size=SHARE, experts="auto")
    batch_size = nern.kernel_sampling.batch_size
    blocks = nern._representation.blocks
    epoch = max(2, round(blocks.num_blocks / batch_size))
    nern.compile(reconstruction_steps=10**6)
    nern.fit(steps_per_epoch=3, verbose=0)  # traces
    start = time.process_time()
    epochs = max(3, MIN_STEPS // epoch)
    nern.fit(steps_per_epoch=epochs * epoch, verbose=0)
    seconds = (time.process_time() - start) / epochs
    peak = measure.peak_mb() - before
    nern._representation.kernels()
    start = time.process_time()
    nern._representation.kernels()
    predicting = time.process_time() - start
    kernels = epoch * batch_size
    return [
        name,
        f"{blocks.num_weights:,}",
        f"{blocks.num_blocks:,}",
        nern.experts,
        f"{batch_size:,}",
        f"{seconds * blocks.num_blocks / kernels:.2f}",
        f"{1e6 * seconds / kernels:.2f}",
        f"{1e6 * predicting / blocks.num_blocks:.2f}",
        f"{peak:.0f}",
    ]


def error(options, name, seed):
    """Cells of a row of the table of errors."""
    row = FITS[name]
    keras.utils.set_random_seed(seed)
    base = network(options, row.network)
    blocks = Blocks(base, "block")
    start = time.process_time()
    permutation = keras_nern.Permutation.from_model(blocks, "cross_filter", row.method, verbose=0)
    ordering = time.process_time() - start
    nern = keras_nern.NeRNModel(
        base,
        permutation=permutation,
        view="block",
        experts=row.experts,
        size=row.parameters / blocks.num_weights,
        normalize="layer" if row.network == "EfficientNet-lite0" else "auto",
    )
    if row.steps is not None:
        nern.compile(reconstruction_steps=row.steps)
    start = time.process_time()
    nern.fit(steps_per_epoch=nern.reconstruction_steps, verbose=0)
    fitting = time.process_time() - start
    errors = nern.layer_errors()
    sizes = [kernel.num_weights for kernel in blocks.kernels]
    return [
        name,
        f"{nern.experts} of {nern.num_layers} x {nern.hidden_size}",
        f"{nern.predictor.num_parameters:,}",
        ordering,
        nern.reconstruction_steps,
        fitting,
        nern.relative_error(),
        float(np.average(list(errors.values()), weights=sizes)),
        spline_error(blocks, permutation, row.parameters),
    ]


def spline_error(blocks, permutation, numbers):
    """The relative error of a linear spline through all kernels in their order."""
    kernels = [
        blocks.kernel_blocks(index).reshape(-1, blocks.block_length)[order]
        for index, order in enumerate(permutation.orders)
    ]
    scales = np.repeat([kernel.std() for kernel in kernels], [len(kernel) for kernel in kernels])
    values = np.concatenate(kernels) / scales[:, None]
    count = numbers // blocks.block_length
    places = np.linspace(0, count - 1, len(values))  # in units of the distance between knots
    left = np.minimum(places.astype(int), count - 2)
    hats = scipy.sparse.csr_array(
        (
            np.concatenate([left + 1 - places, places - left]),
            (np.tile(np.arange(len(values)), 2), np.concatenate([left, left + 1])),
        )
    )
    knots = scipy.sparse.linalg.spsolve((hats.T @ hats).tocsc(), hats.T @ values)
    errors = ((hats @ knots - values) * scales[:, None]) ** 2
    return float(errors.sum() / ((values * scales[:, None]) ** 2).sum())


def size(options, name, seed):
    """Cells of a row of the table of sizes."""
    keras.utils.set_random_seed(seed)
    base = network(options, "ResNet20")
    experts = 1 if name == "one predictor" else "auto"
    nern = keras_nern.NeRNModel(base, size=117_289 / 270_256, view="block", experts=experts)
    nern.compile(reconstruction_steps=1500)
    nern.fit(steps_per_epoch=1500, verbose=0)
    small = keras_nern.compress(nern, bits=7)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file.nern")
        small.export(path)
        written = path.stat().st_size
    return [
        "ResNet20",
        f"{nern.experts} of {nern.num_layers} x {nern.hidden_size}",
        f"{nern.predictor.num_parameters:,}",
        f"{small.predictor.num_bytes:,.0f}",
        f"{written:,}",
    ]


RUNS = {"cost": cost, "error": error, "size": size}

if __name__ == "__main__":
    main()
