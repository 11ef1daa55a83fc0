"""Draws the picture of the README, docs/overview.png.

    python benchmarks/pictures.py

Left: kernels of a ResNet20 trained on CIFAR-10, original and predicted after the fit of the row
*ResNet20, a minute* of `accuracy.py`, which takes about a minute on one core. The largest kernels
of one layer are shown, all on one color scale.

Right: accuracy of ResNet20 on the 10,000 test images against the bytes of the whole network, from
the stored results of `accuracy.py` (predictors and all other weights in float32) and of
`rate_distortion.py` (files). Each point is the mean of a setting's seeds.
"""

import pathlib

import accuracy
import cifar
import keras
import numpy as np
import runs

from keras_nern.analysis.figure import (
    COLORS,
    GREY,
    SMALL,
    bytes_axis,
    hide_ticks,
    new_figure,
    style,
)
from keras_nern.analysis.kernel_images import largest_kernels

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYER = "layer2_1_conv1"
KERNELS = 25
ROW = "ResNet20, a minute"
FITS = {ROW: "a minute", "ResNet20, five minutes": "five minutes"}
LOWEST = 91.0  # %, the lowest accuracy shown


def main():
    """Fits a ResNet20 and draws the picture."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=ROOT / "benchmarks" / "results",
        help="folder of accuracy.jsonl and rate_distortion.jsonl",
    )
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "overview.png")
    options = parser.parse_args()
    base = cifar.resnet(20, options.weights)
    nern = fit(base, cifar.load(options.data_dir, "train")[0])
    originals = nern.original_kernels()
    kernels = sum(kernel.size for kernel in originals.values())
    parameters = base.count_params()
    figure = new_figure(figsize=(8, 3), dpi=200, facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.06)
    *panels, right = figure.subplots(1, 3, width_ratios=[1, 1, 2])
    share = nern.predictor.count_params() / kernels
    draw_kernels(panels, originals[LAYER], nern.predict_kernels()[LAYER], share)
    draw_accuracies(style(right), options.results, 4 * parameters, 4 * (parameters - kernels))
    figure.savefig(options.output)


def fit(base, images, seed=0):
    """Fits a `NeRNModel` as `accuracy.py` does for the row `ROW`."""
    keras.utils.set_random_seed(seed)
    row = accuracy.ROWS[ROW]
    nern = row.fit(seed).build(base)
    dataset = cifar.augmented(images, row.batch_size, seed, mixup=True)
    nern.fit(dataset, steps_per_epoch=1, epochs=0)
    return nern


def draw_kernels(panels, original, predicted, share):
    """Draws the largest kernels of a layer in two panels.

    Args:
        panels: two panels.
        original, predicted: kernel of the layer, float32 `(kh, kw, cin, cout)`.
        share: number of the predictor's parameters, relative to that of all weights.
    """
    mosaics, scale = largest_kernels(original, predicted, KERNELS, magnify=4)
    titles = ("original kernels", "predicted kernels")
    captions = ("the largest of a layer", f"from {100 * share:.0f} % as many parameters")
    for axes, weights, title, caption in zip(panels, mosaics, titles, captions, strict=True):
        axes.imshow(weights, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_facecolor(GREY)  # the color of the gaps
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(caption, fontsize=SMALL)
        hide_ticks(axes)


def draw_accuracies(axes, folder, original_bytes, other_bytes):
    """Draws accuracy against bytes.

    Args:
        axes: the panel.
        folder: folder of the stored results.
        original_bytes: bytes of the original network.
        other_bytes: bytes of its weights that are not represented.
    """
    fits = runs.read_results(folder / "accuracy.jsonl")
    files = [
        one
        for one in runs.read_results(folder / "rate_distortion.jsonl")
        if one["network"] == 20 and one["accuracy"] >= LOWEST
    ]
    original = fits[0]["original"]
    axes.axhline(original, color=GREY, linestyle="--", linewidth=0.8)
    _draw(axes, "original, float32", [(original_bytes, original)], (-82, 7), "D", "0.3")
    trained = []
    for row, minutes in FITS.items():
        results = [one for one in fits if one["row"] == row]
        trained += [(_mean(results, "bytes") + other_bytes, _mean(results, "accuracy"))]
        _draw(axes, minutes, trained[-1:], (8, -3), "o", COLORS[0])
    _draw(axes, "NeRN,\nfloat32", trained, (-44, 16), "o", COLORS[0])
    nerns = [
        one
        for one in files
        if one["method"].startswith("NeRN") and one["arguments"].get("bits") == 7
    ]
    _draw(axes, "NeRN,\n7 bits", _settings(nerns), (-28, -24), "o", COLORS[0])
    residuals = [
        one
        for one in files
        if one["method"] == "NeRN, residual"
        and one["arguments"]["tune"] == "0 + 0"
        and "parameters" not in one["arguments"]
    ]
    _draw(axes, "NeRN,\nresidual", _settings(residuals), (-8, -28), "o", "black")
    integers = [one for one in files if one["method"] == "integers + zstd"]
    _draw(axes, "integers of\n5 to 8 bits", _settings(integers), (6, -12), "s", COLORS[1])
    codec = [one for one in files if one["method"] == "nncodec"]
    _draw(axes, "nncodec", _settings(codec), (8, -4), "^", COLORS[2])
    axes.set_ylim(LOWEST, original + 0.25)
    axes.set_ylabel("accuracy on CIFAR-10, %", fontsize=10)
    bytes_axis(axes, "size of ResNet20")
    axes.xaxis.label.set_size(10)
    axes.tick_params(labelsize=SMALL)


def _settings(results):
    """Mean bytes and accuracy of each setting, by increasing bytes."""
    groups = {}
    for one in results:
        groups.setdefault(str(one["arguments"]), []).append(one)
    return sorted((_mean(group, "bytes"), _mean(group, "accuracy")) for group in groups.values())


def _mean(results, name):
    return np.mean([one[name] for one in results])


def _draw(axes, name, places, offset, marker, color):
    """Draws a line through places and writes its name at an offset, in points, from the first."""
    axes.plot(*zip(*places, strict=True), marker=marker, markersize=5, color=color)
    axes.annotate(name, places[0], offset, textcoords="offset points", color=color, fontsize=SMALL)


if __name__ == "__main__":
    main()
