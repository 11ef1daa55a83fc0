"""How many bytes for what accuracy, and against what a user would do instead?

    python benchmarks/rate_distortion.py --network 20 --results FILE --plot FILE.png

One file of a NeRN, at several widths and bit depths, against usual ways to make the same
trained kernels small (`peers.py`): halves, integers with a step per channel, magnitude
pruning and weight clustering, all with Zstandard, and with `--nncodec PYTHON` the reference
codec of the NNC standard. Everything but the kernels (batch normalisation, Dense layer,
architecture) is kept by all in the same way, as halves in our file, and counted for all.

A NeRN is fitted as in `accuracy.py` (2-opt; cross-filter unless `--permutation` says otherwise),
then compressed to each bit depth (`keras_nern.compress`), and reconstructs and distils for the
steps of `--tune` with its rounded kernels; its bytes are those of the exported file, its accuracy
that of the classifier loaded from it. The others see the images too: each is also measured after
its batch normalisations' statistics were taken anew from 5,000 training images, and its better
accuracy counts. No fit sees a test image. Accuracies are of all 10,000 test images of CIFAR-10.

Prints a row per point, then for each method the fewest bytes that keep the drop to 0.5
points. Points that `--results` has already are not measured again.
"""

import argparse
import json
import pathlib
import tempfile

import cifar10
import fits
import numpy as np
import peers
import tables

DROP = 0.5
HALVES = "float16"
OURS = "NeRN"
UNTUNED = "0 + 0"
SHARES = (0.3, 0.5, 0.6)  # of the weights pruned
PEERS = {  # the codec, and the arguments that it is tried with
    "float16 + zstd": (peers.float16, [{}]),
    "integers + zstd": (peers.integers, [{"bits": bits} for bits in (8, 6, 5, 4, 3)]),
    "pruning + float16 + zstd": (peers.pruned, [{"sparsity": share} for share in SHARES]),
    "pruning + int8 + zstd": (peers.pruned, [{"sparsity": share, "bits": 8} for share in SHARES]),
    "clustering + zstd": (peers.clustered, [{"clusters": count} for count in (64, 32, 16, 8)]),
    "nncodec": (peers.nncodec, [{"parameter": number} for number in (-38, -35, -32, -26, -20)]),
}


def main():
    """Measures what is missing, prints, plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--network", type=int, choices=(20, 56), default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[120, 140, 160, 180])
    parser.add_argument("--num-layers", type=int, default=5, help="Dense layers of the predictor")
    parser.add_argument("--frequencies", type=int, default=40, help="of the encoding")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4])
    parser.add_argument("--steps", type=int, nargs=2, default=[10_000, 2_000])
    parser.add_argument(
        "--permutation", choices=("in_filter", "cross_filter"), default="cross_filter"
    )
    parser.add_argument(
        "--tune",
        type=int,
        nargs=2,
        default=[0, 300],
        help="steps of the two phases after compression; 0 0 for none",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=[*PEERS, OURS], default=[*PEERS, OURS])
    parser.add_argument("--nncodec", metavar="PYTHON", help="interpreter that has nncodec")
    parser.add_argument("--fits", type=pathlib.Path, help="folder to keep fitted NeRNs in")
    parser.add_argument("--results", type=pathlib.Path, help="JSON lines file to add to")
    parser.add_argument("--plot", type=pathlib.Path, help="picture to write")
    parser.add_argument("--print", action="store_true", help="only show what --results has")
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if not options.nncodec and "nncodec" in options.methods:
        options.methods.remove("nncodec")
    results = Results(options.results)
    if not options.print:
        Measurement(options, results).run()
    points = [p for p in results.points if p["network"] == options.network]
    show(points)
    if options.plot:
        plot(points, options.plot)


class Results:
    """The points there are, in memory and in the file."""

    def __init__(self, path):
        self.path = path
        self.points = []
        if path and path.exists():
            self.points = [json.loads(line) for line in path.read_text().splitlines()]

    def missing(self, **key):
        """Whether no point has these values."""
        return not any(key.items() <= point.items() for point in self.points)

    def add(self, point):
        """Keeps a point, once it is measured."""
        self.points.append(point)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(point) + "\n")


class Measurement:
    """The network, its images, and the points measured on them."""

    def __init__(self, options, results):
        self.options, self.results = options, results
        self.base = cifar10.resnet(options.network, options.weights)
        self.images, _ = cifar10.load(options.data_dir, "train")
        self.test_images, self.labels = cifar10.load(options.data_dir, "test")
        self.original = self._accuracy(self.base)
        self.rest = None  # bytes of all but the kernels

    def run(self):
        """Measures every point that is missing."""
        import keras_nern

        untrained = keras_nern.NeRNModel(self.base, 16, permutation=None)
        names = list(untrained.predict_kernels())
        kernels = {name: np.asarray(self.base.get_layer(name).kernel) for name in names}
        parts = self._exported(untrained)[1]
        self.rest = sum(size for part, size in parts.items() if part != "predictor")
        for method in self.options.methods:
            if method == OURS:
                for width in self.options.widths:
                    for seed in self.options.seeds:
                        self._ours(width, seed)
            else:
                codec, settings = PEERS[method]
                for arguments in settings:
                    self._peer(method, codec, arguments, kernels)

    def _peer(self, method, codec, arguments, kernels):
        key = {"network": self.options.network, "method": method, "arguments": arguments}
        if not self.results.missing(**key):
            return
        more = {"python": self.options.nncodec} if method == "nncodec" else {}
        size, rounded = codec(kernels, **arguments, **more)
        import keras

        model = keras.models.clone_model(self.base)
        model.set_weights(self.base.get_weights())
        for name, kernel in rounded.items():
            model.get_layer(name).kernel.assign(kernel)
        plain = self._accuracy(model)
        statistics_anew(model, self.images[:5_000])
        accuracy = max(plain, self._accuracy(model))
        self._add(key, size + self.rest, accuracy, accuracy_without_images=plain)

    def _ours(self, width, seed):
        import keras

        import keras_nern

        key = {
            "network": self.options.network,
            "method": f"{OURS}, {self.options.permutation}",
            "steps": self.options.steps,
            "seed": seed,
        }
        shape = {
            "layers": self.options.num_layers,
            "width": width,
            "frequencies": self.options.frequencies,
        }
        tune = " + ".join(map(str, self.options.tune))
        settings = {None: shape} | {
            bits: {**shape, "bits": bits, "tune": tune} for bits in self.options.bits
        }
        todo = [
            bits
            for bits, arguments in settings.items()
            if self.results.missing(**key, arguments=arguments)
        ]
        if not todo:
            return
        nern = self._fitted(width, seed)
        for bits in todo:
            small = nern
            if bits is not None:
                keras.utils.set_random_seed(seed)
                small = keras_nern.compress(nern, bits=bits)
                first, second = self.options.tune
                if first:
                    small.fit(steps_per_epoch=first, verbose=0)
                if second:
                    small.fit(self._dataset(seed + 1), steps_per_epoch=second, verbose=0)
            model, parts = self._exported(small, HALVES if bits is None else "auto")
            self._add(
                key | {"arguments": settings[bits]},
                sum(parts.values()),
                self._accuracy(model),
                parts=parts,
                relative_error=small.relative_error(),
            )

    def _fitted(self, width, seed):
        options = self.options
        fit = fits.Fit(
            options.network,
            width,
            tuple(options.steps),
            seed,
            options.permutation,
            options.num_layers,
            options.frequencies,
        )
        return fit.made(self.base, self.images, options.fits)

    def _dataset(self, seed):
        return cifar10.augmented(self.images, fits.BATCH_SIZE, seed, mixup=True)

    def _exported(self, nern, precision="auto"):
        """The classifier from an exported file, and the file's bytes by part."""
        import keras_nern
        from keras_nern.artifact.info import inspect

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.nern"
            nern.export(path, precision=precision, kept_precision=HALVES)
            info = inspect(path)
            return keras_nern.load(path), info.part_bytes

    def _accuracy(self, model):
        classes = model.predict(self.test_images, batch_size=500, verbose=0).argmax(axis=1)
        return 100 * float((classes == self.labels).mean())

    def _add(self, key, size, accuracy, **more):
        figures = {"bytes": int(size), "accuracy": accuracy, "drop": self.original - accuracy}
        self.results.add({**key, **figures, **more})


def statistics_anew(model, images, batch_size=500):
    """Sets every batch normalisation's mean and variance to those of the images."""
    import keras

    layers = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for number, start in enumerate(range(0, len(images), batch_size)):
        for layer in layers:
            layer.momentum = number / (number + 1)  # the mean of all batches so far
        model(images[start : start + batch_size].astype("float32"), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def show(points):
    """Prints a row per point, smallest first in each method, and the summary."""
    tables.print_header(["method", "setting", "n", "bytes", "accuracy, %", "drop, points"])
    best = {}
    for (method, setting), group in _grouped(points).items():
        drops = [point["drop"] for point in group]
        sizes = [point["bytes"] for point in group]
        tables.print_row(
            [
                method,
                setting,
                str(len(group)),
                f"{np.mean(sizes):,.0f}",
                tables.spread([point["accuracy"] for point in group], 2),
                tables.spread(drops, 2),
            ]
        )
        if np.mean(drops) <= DROP and np.mean(sizes) < best.get(method, (np.inf,))[0]:
            best[method] = (np.mean(sizes), setting, np.mean(drops))
    print()
    tables.print_header(["method", f"fewest bytes at a drop of at most {DROP}", "setting", "drop"])
    for method in dict.fromkeys(point["method"] for point in points):
        size, setting, drop = best.get(method, (None, "", None))
        cells = ["none", "", ""] if size is None else [f"{size:,.0f}", setting, f"{drop:.2f}"]
        tables.print_row([method, *cells])


def plot(points, path):
    """Draws the drop against bytes, a line per method, of ours one per shape of predictor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines = {}
    for (method, _), group in _grouped(points).items():
        arguments = group[0]["arguments"]
        name = method
        if "width" in arguments:
            name += ", {layers} x {width}, {frequencies} frequencies".format(**arguments)
            name += ", {} + {} steps".format(*group[0]["steps"])
            if arguments.get("tune") == UNTUNED:
                name += ", not tuned"
        place = np.mean([one["bytes"] for one in group]), np.mean([one["drop"] for one in group])
        lines.setdefault(name, []).append(place)
    for name, places in lines.items():
        style = "-o" if name.startswith(OURS) else "--s"
        axes.plot(*zip(*sorted(places), strict=True), style, markersize=4, label=name)
    axes.axhline(DROP, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("bytes of the whole network")
    axes.set_ylabel("drop in test accuracy, points")
    axes.set_ylim(-0.3, 4)
    axes.legend(fontsize="small")
    axes.grid(which="both", alpha=0.3)
    figure.savefig(path)


def _grouped(points):
    """Points by method and setting, in order of method, then bytes."""
    groups = {}
    order = {name: place for place, name in enumerate(PEERS)}  # ours come last
    for point in sorted(
        points, key=lambda one: (order.get(one["method"], len(order)), one["method"], -one["bytes"])
    ):
        values = {name: value for name, value in point["arguments"].items() if value is not None}
        setting = ", ".join(f"{name} {value}" for name, value in values.items())
        if "steps" in point:  # of ours, those of the fit
            setting += ", steps {} + {}".format(*point["steps"])
        groups.setdefault((point["method"], setting), []).append(point)
    return groups


if __name__ == "__main__":
    main()
