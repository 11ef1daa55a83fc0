"""How many bytes does a network need for a given accuracy, compared with other codecs?

    python benchmarks/rate_distortion.py --network 20 --results FILE --plot FILE.png

Compares compact files of NeRNs, at several widths and bit depths, with usual ways to compress the
kernels of the same trained network (`peers.py`): float16, integers with a step size per channel,
magnitude pruning and weight clustering, all followed by Zstandard, and with --nncodec the
reference codec of the NNC standard. The architecture and the weights that are not represented
(batch normalization, Dense layer) add the same number of bytes to every method: their size in our
file, with weights in bfloat16.

NeRNs are fitted as in `accuracy.py` (2-opt; cross-filter unless --permutation is given) and
compressed to each bit depth (`keras_nern.compress`). The quantized predictor is then tuned for the
steps of --tune. Bytes are those of the exported file, accuracy is that of the network loaded from
it. The other methods may use images, too: each is evaluated with the original batch normalization
statistics and with statistics recomputed from 5,000 training images, and the better accuracy
counts. No fit sees a test image. Accuracies are measured on all 10,000 CIFAR-10 test images.

Of our own methods, "NeRN, residual" is `keras_nern.compress` to the kilobytes of --kilobytes,
without a predictor or with local predictors of --parameters: integers for the convolutions and,
without a predictor, the Dense layer, chosen by the curvature from 1,000 training images, and then
distilled for the steps of --tune, once without and once with them. "trained integers" is what such
a distillation does for usual integers: each filter has the step size of the least squared error for
a number of bits, weights are rounded to the nearest integer, and no bits count in the loss. Their
bytes are those of the exported file, too.

Prints one row per setting, then the smallest size of each method at a drop of at most 0.5 points.
Settings that --results contains are not measured again.
"""

import itertools
import pathlib
import tempfile
import time

import cifar
import fits
import imagenet
import keras
import numpy as np
import peers
import runs
import tables

import keras_nern
from keras_nern.analysis.figure import COLORS, GREY, SMALL, bytes_axis, new_figure, spread, style
from keras_nern.artifact.info import inspect

MAX_DROP = 0.5  # points
HIGHEST = 1.5  # points, the highest drop in the plot
# Of the other methods, in the order of PEERS; COLORS[0] is that of NeRNs.
PEER_COLORS = ("0.3", COLORS[1], *COLORS[3:], COLORS[2], "#882255")
OURS = "NeRN"
RESIDUAL = f"{OURS}, residual"
TRAINED = "trained integers"
CURVATURE_IMAGES = 1_000
IMAGENET_BATCH_SIZE = 16
PREDICTOR_STEPS = (1_000, 0)  # of reconstruction and distillation, of predictors under a residual
SPARSITIES = (0.3, 0.5, 0.6)  # shares of pruned weights
# Method: its codec, and the arguments to try. Names and arguments are stored in the results.
PEERS = {
    "float16 + zstd": (peers.float16, [{}]),
    "integers + zstd": (peers.integers, [{"bits": bits} for bits in (8, 6, 5, 4, 3)]),
    "pruning + float16 + zstd": (peers.pruned, [{"sparsity": share} for share in SPARSITIES]),
    "pruning + int8 + zstd": (
        peers.pruned,
        [{"sparsity": share, "bits": 8} for share in SPARSITIES],
    ),
    "clustering + zstd": (peers.clustered, [{"clusters": count} for count in (64, 32, 16, 8)]),
    "nncodec": (peers.nncodec, [{"parameter": qp} for qp in (-38, -35, -32, -26, -20)]),
}


def main():
    """Measures the missing points, prints the tables and draws the plot."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    imagenet.add_arguments(parser)
    parser.add_argument(
        "--network",
        type=int,
        choices=(20, 56, 0),
        default=20,
        help="depth of the ResNet; 0 for EfficientNet-lite0",
    )
    methods = [*PEERS, TRAINED, RESIDUAL, OURS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument(
        "--nncodec", metavar="PYTHON", help="Python interpreter that can import nncodec"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[120, 140, 160, 180],
        help="widths of the predictor",
    )
    parser.add_argument("--num-layers", type=int, default=5, help="Dense layers of the predictor")
    parser.add_argument(
        "--frequencies", type=int, default=40, help="frequencies that encode each index"
    )
    parser.add_argument(
        "--permutation", choices=("in_filter", "cross_filter"), default="cross_filter"
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=[10_000, 2_000],
        help="reconstruction and distillation steps of the fit",
    )
    parser.add_argument(
        "--kilobytes", type=float, nargs="+", default=[120, 100, 85], help="of the residual's file"
    )
    parser.add_argument(
        "--parameters",
        type=int,
        nargs="+",
        default=[0],
        help="of local predictors under the residual, in the order of the base; 0 for none",
    )
    parser.add_argument(
        "--trained-bits", type=int, nargs="+", default=[4, 3], help="of the trained integers"
    )
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[8, 6, 5, 4], help="bits of the predictor's kernels"
    )
    parser.add_argument(
        "--tune",
        type=int,
        nargs=2,
        default=[0, 300],
        help="reconstruction and distillation steps after compression; 0 0 for none",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fits", type=pathlib.Path, help="folder that caches fitted NeRNs")
    parser.add_argument(
        "--results", type=pathlib.Path, help="JSON lines file to read and append points"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="image file to draw")
    parser.add_argument(
        "--print", action="store_true", help="measure nothing, show the points of --results"
    )
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if not options.nncodec and "nncodec" in options.methods:
        options.methods.remove("nncodec")
    results = Results(options.results)
    if not options.print:
        Measurement(options, results).run()
    points = [point for point in results.points if point["network"] == options.network]
    print_tables(points)
    if options.plot:
        plot(points, options.plot)


class Results:
    """The measured points, in memory and in a JSON lines file."""

    def __init__(self, path):
        self.path = path
        self.points = runs.read_results(path) if path and path.exists() else []

    def is_missing(self, key):
        """Whether no point has all values of the dict `key`."""
        return not any(key.items() <= point.items() for point in self.points)

    def add(self, point):
        """Stores a point."""
        self.points.append(point)
        runs.append_result(self.path, point)


class Measurement:
    """A trained network, its images, and the points measured on them."""

    def __init__(self, options, results):
        self.options, self.results = options, results
        if options.network:
            self.base, self.source = cifar.resnet(options.network, options.weights), cifar
            folder, self.batch_size = options.data_dir, fits.BATCH_SIZE
        else:
            self.base, self.source = imagenet.efficientnet_lite0(options.weights), imagenet
            folder, self.batch_size = options.imagenet_dir, IMAGENET_BATCH_SIZE
        self.images, _ = self.source.load(folder, "train")
        self.test_images, self.labels = self.source.load(folder, "test")
        self.original = self._accuracy(self.base)
        untrained = keras_nern.NeRNModel(self.base, 16, permutation=None)
        self.kernels = untrained.original_kernels()
        parts = self._export(untrained)[1]
        # bytes of everything except the kernels
        self.other_bytes = sum(size for part, size in parts.items() if part != "predictor")

    def run(self):
        """Measures every missing point."""
        for method in self.options.methods:
            if method == RESIDUAL:
                for parameters in self.options.parameters:
                    for seed in self.options.seeds:
                        self._measure_residuals(parameters, seed)
            elif method == TRAINED:
                for bits in self.options.trained_bits:
                    for seed in self.options.seeds:
                        self._measure_trained(bits, seed)
            elif method == OURS:
                for width in self.options.widths:
                    for seed in self.options.seeds:
                        self._measure_nern(width, seed)
            else:
                codec, settings = PEERS[method]
                for arguments in settings:
                    self._measure_peer(method, codec, arguments)

    def _measure_peer(self, method, codec, arguments):
        key = {"network": self.options.network, "method": method, "arguments": arguments}
        if not self.results.is_missing(key):
            return
        interpreter = {"python": self.options.nncodec} if method == "nncodec" else {}
        size, decoded = codec(self.kernels, **arguments, **interpreter)
        model = keras.models.clone_model(self.base)
        model.set_weights(self.base.get_weights())
        for name, kernel in decoded.items():
            model.get_layer(name).kernel.assign(kernel)
        without_images = self._accuracy(model)
        recompute_statistics(model, self.images[:5_000])
        accuracy = max(without_images, self._accuracy(model))
        self._add(key, size + self.other_bytes, accuracy, accuracy_without_images=without_images)

    def _measure_residuals(self, parameters, seed):
        keras.utils.set_random_seed(seed)
        integers = None
        _, steps = self.options.tune
        key = {"network": self.options.network, "method": RESIDUAL, "seed": seed}
        for kilobytes in self.options.kilobytes:
            small = None
            for count in dict.fromkeys((0, steps)):
                arguments = {"kilobytes": kilobytes, "tune": f"0 + {count}"}
                if parameters:
                    arguments["parameters"] = parameters
                if not self.results.is_missing(key | {"arguments": arguments}):
                    continue
                if integers is None:
                    start = time.process_time()
                    integers = self._to_correct(parameters, seed)
                    gathering = time.process_time() - start
                if small is None:
                    start = time.process_time() - gathering
                    small = keras_nern.compress(integers, max_bytes=1_000 * kilobytes, verbose=0)
                self._distill(small, count, seed)
                seconds = time.process_time() - start
                model, parts = self._export(small)
                self._add(
                    key | {"arguments": arguments},
                    sum(parts.values()),
                    self._accuracy(model),
                    parts=parts,
                    core_seconds=seconds,
                )

    def _to_correct(self, parameters, seed, dense=True):
        """A representation with curvature: of local predictors, or of none and of Dense layers."""
        if parameters:
            fit = fits.Fit(0, None, PREDICTOR_STEPS, seed, None, parameters=parameters)
            nern = fit.build(self.base)
            nern.fit(steps_per_epoch=PREDICTOR_STEPS[0], verbose=0)
        else:
            nern = keras_nern.NeRNModel(self.base, size=0, include_dense=dense)
        images = cifar.augmented(self.images, self.batch_size, seed, mixup=True)
        nern.gather_curvature(images, CURVATURE_IMAGES, verbose=0)
        return nern

    def _measure_trained(self, bits, seed):
        _, steps = self.options.tune
        key = {
            "network": self.options.network,
            "method": TRAINED,
            "seed": seed,
            "arguments": {"bits": bits, "steps": steps},
        }
        if not self.results.is_missing(key):
            return
        keras.utils.set_random_seed(seed)
        integers = self._to_correct(0, seed, dense=False)
        small = keras_nern.compress(integers, max_bytes="1 MB", verbose=0)  # any size
        peers.set_nearest_integers(small, bits)
        self._distill(small, steps, seed)
        model, parts = self._export(small)
        self._add(key, sum(parts.values()), self._accuracy(model), parts=parts)

    def _distill(self, small, steps, seed):
        if steps:
            dataset = cifar.augmented(self.images, self.batch_size, seed + 1, mixup=True)
            small.fit(dataset, steps_per_epoch=steps, verbose=0)

    def _measure_nern(self, width, seed):
        options = self.options
        key = {
            "network": options.network,
            "method": f"{OURS}, {options.permutation}",
            "steps": options.steps,
            "seed": seed,
        }
        shape = {"layers": options.num_layers, "width": width, "frequencies": options.frequencies}
        tune = "{} + {}".format(*options.tune)
        settings = {None: shape}  # None: not compressed
        settings |= {bits: {**shape, "bits": bits, "tune": tune} for bits in options.bits}
        missing = {
            bits: arguments
            for bits, arguments in settings.items()
            if self.results.is_missing(key | {"arguments": arguments})
        }
        if not missing:
            return
        fit = fits.Fit(
            options.network,
            width,
            tuple(options.steps),
            seed,
            options.permutation,
            options.num_layers,
            options.frequencies,
        )
        nern = fit.load_or_fit(self.base, self.images, options.fits)
        for bits, arguments in missing.items():
            small = nern if bits is None else self._compress(nern, bits, seed)
            model, parts = self._export(small, "float16" if bits is None else "auto")
            self._add(
                key | {"arguments": arguments},
                sum(parts.values()),
                self._accuracy(model),
                parts=parts,
                relative_error=small.relative_error(),
            )

    def _compress(self, nern, bits, seed):
        """Quantizes the predictor and trains it for the steps of `--tune`."""
        keras.utils.set_random_seed(seed)
        small = keras_nern.compress(nern, bits=bits)
        first, second = self.options.tune
        if first:
            small.fit(steps_per_epoch=first, verbose=0)
        self._distill(small, second, seed)
        return small

    def _export(self, nern, precision="auto"):
        """Exports; returns the network loaded from the file, and the file's bytes by part."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.nern"
            nern.export(path, precision=precision, kept_precision="bfloat16")
            return keras_nern.load(path), inspect(path).part_bytes

    def _accuracy(self, model):
        return self.source.accuracy(model, self.test_images, self.labels)

    def _add(self, key, size, accuracy, **more):
        figures = {"bytes": int(size), "accuracy": accuracy, "drop": self.original - accuracy}
        self.results.add({**key, **figures, **more})


def recompute_statistics(model, images, batch_size=500):
    """Sets mean and variance of every batch normalization to those of `images`."""
    layers = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for number, start in enumerate(range(0, len(images), batch_size)):
        for layer in layers:
            layer.momentum = number / (number + 1)  # gives the mean over all batches so far
        model(images[start : start + batch_size].astype("float32"), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def print_tables(points):
    """Prints a row per setting, largest first in each method, and the smallest sizes."""
    tables.print_header(
        ["method", "setting", "n", "bytes", "accuracy, %", "drop in accuracy, points"]
    )
    best = {}  # method: (bytes, setting, drop)
    for (method, setting), group in _grouped(points).items():
        size, drop = _mean(group, "bytes"), _mean(group, "drop")
        tables.print_row(
            [
                *(method, setting, len(group), f"{size:,.0f}"),
                tables.spread([point["accuracy"] for point in group], 2),
                tables.spread([point["drop"] for point in group], 2),
            ]
        )
        if drop <= MAX_DROP and size < best.get(method, (np.inf,))[0]:
            best[method] = (size, setting, drop)
    print()
    tables.print_header(
        [
            "method",
            f"fewest bytes at a drop of at most {MAX_DROP} points",
            "setting",
            "drop in accuracy, points",
        ]
    )
    for method in dict.fromkeys(point["method"] for point in points):
        cells = ["none", "", ""]
        if method in best:
            size, setting, drop = best[method]
            cells = [f"{size:,.0f}", setting, f"{drop:.2f}"]
        tables.print_row([method, *cells])


def plot(points, path):
    """Draws drop against bytes: a line per method, for NeRNs through those that no NeRN beats."""
    figure = new_figure(figsize=(8, 5))
    axes = style(figure.subplots())
    axes.axhline(MAX_DROP, color=GREY, linestyle="--", linewidth=0.8)
    curves = {}  # method: [(bytes, drop, standard deviation, arguments)], by increasing bytes
    for (method, _), group in _grouped(points).items():
        deviation = np.std([point["drop"] for point in group], ddof=1) if len(group) > 1 else 0
        place = _mean(group, "bytes"), _mean(group, "drop"), deviation, group[0]["arguments"]
        name = OURS if method.startswith(OURS) and method != RESIDUAL else method
        curves.setdefault(name, []).append(place)
    for curve in curves.values():
        curve.sort(key=lambda place: (round(place[0], -3), place[1]))
    curves = {
        method: curve
        for method, curve in curves.items()
        if any(place[1] <= HIGHEST for place in curve)
    }
    visible = [place[0] for curve in curves.values() for place in curve if place[1] <= HIGHEST]
    ours = {name: curves.pop(name) for name in (OURS, RESIDUAL) if name in curves}
    colors = dict(zip(curves, itertools.cycle(PEER_COLORS), strict=False))
    for method, curve in curves.items():
        sizes, drops = [place[0] for place in curve], [place[1] for place in curve]
        axes.plot(sizes, drops, "--", color=colors[method], marker="s", markersize=4)
    axes.set_xlim(min(visible) * 0.85, max(visible) * 1.1)
    axes.set_ylim(-0.15, HIGHEST)
    axes.set_ylabel("drop in test accuracy, points")
    bytes_axis(axes, "size of the whole network")
    _name_methods(axes, curves, colors)
    for name, curve in ours.items():
        _plot_nerns(axes, name, [place for place in curve if place[1] <= HIGHEST])
    figure.savefig(path)


def _plot_nerns(axes, name, curve):
    """Draws NeRNs; markers of those not tuned after compression are hollow."""
    color = COLORS[0] if name == OURS else "black"
    for size, drop, deviation, arguments in curve:
        face = "white" if _is_untuned(arguments) else color
        axes.errorbar(size, drop, deviation, color=color, marker="o", mfc=face, capsize=3, zorder=3)
    lowest = np.minimum.accumulate([place[1] for place in curve])
    front = [place for place, low in zip(curve, lowest, strict=True) if place[1] == low]
    axes.plot([place[0] for place in front], [place[1] for place in front], color=color)
    if name == OURS:
        hollow = any(_is_untuned(arguments) for *_, arguments in curve)
        _write(axes, name + hollow * "\n(hollow: not tuned)", curve[-1], (9, 6), color)
    else:
        _write(axes, name, front[-1], (-30, -16), color)


def _name_methods(axes, curves, colors):
    """Writes the name of each method where its line leaves the panel, or at its only point."""
    exits = {}
    for method, curve in curves.items():
        sizes, drops = np.array([place[:2] for place in curve]).T
        if drops[0] <= HIGHEST:
            name, place = method.removesuffix(" + zstd"), curve[0]
            _write(axes, name, place, (-6, -3), colors[method], horizontalalignment="right")
            continue
        inside = np.argmax(drops <= HIGHEST)  # the first point in the panel
        share = (drops[inside - 1] - HIGHEST) / (drops[inside - 1] - drops[inside])
        exits[method] = sizes[inside - 1] * (sizes[inside] / sizes[inside - 1]) ** share
    low, high = np.log(axes.get_xlim())
    places = spread((np.log(list(exits.values())) - low) / (high - low), 0.035)
    for method, place in zip(exits, places, strict=True):
        axes.text(
            place,
            1.01,
            method.removesuffix(" + zstd"),
            transform=axes.transAxes,
            rotation=30,
            color=colors[method],
        )


def _write(axes, text, place, offset, color, **kwargs):
    """Writes text at an offset, in points, from a place."""
    kwargs |= {"textcoords": "offset points", "color": color, "fontsize": SMALL}
    axes.annotate(text, place[:2], offset, **kwargs)


def _grouped(points):
    """Points by (method, setting): peers in the order of PEERS, then ours; largest first."""
    order = {name: place for place, name in enumerate(PEERS)}
    groups = {}
    for point in sorted(
        points, key=lambda one: (order.get(one["method"], len(order)), one["method"], -one["bytes"])
    ):
        groups.setdefault((point["method"], _setting(point)), []).append(point)
    return groups


def _setting(point):
    """The setting of a point as a table shows it."""
    arguments = point["arguments"]
    if not point["method"].startswith(OURS):
        return ", ".join(f"{name} {value}" for name, value in arguments.items())
    if "kilobytes" in arguments:
        setting = "{kilobytes:g} kB".format(**arguments)
        if "parameters" in arguments:
            setting += ", {parameters:,} parameters".format(**arguments)
        if not _is_untuned(arguments):
            setting += f", tuned for {arguments['tune']} steps"
        return setting
    setting = _predictor(point)
    if "bits" in arguments:
        setting += ", {bits} bits".format(**arguments)
        setting += (
            ", not tuned" if _is_untuned(arguments) else f", tuned for {arguments['tune']} steps"
        )
    return setting


def _predictor(point):
    """The predictor (Dense layers x width) and the steps of the fit of a NeRN's point."""
    shape = "{layers} x {width}, {frequencies} frequencies"
    return shape.format(**point["arguments"]) + ", {} + {} steps".format(*point["steps"])


def _is_untuned(arguments):
    return arguments.get("tune") == "0 + 0"


def _mean(points, name):
    return np.mean([point[name] for point in points])


if __name__ == "__main__":
    main()
