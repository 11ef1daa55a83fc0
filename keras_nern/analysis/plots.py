"""Plots of kernels, errors, fits and searches, with matplotlib.

The plots need `pip install "keras-nern[plots]"`. Every function returns a
`matplotlib.figure.Figure` that is attached to no window: save it with `savefig`, or let a
notebook display it. Positive weights are red, negative ones blue, zeros white, and the gaps between
kernels grey.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.analysis.figure import (
    COLORS,
    GREY,
    SMALL,
    bytes_axis,
    hide_ticks,
    label_lines,
    log_axis,
    new_figure,
    panel_inches,
    percent_axis,
    style,
    wrap,
)
from keras_nern.analysis.kernel_images import largest_kernels, mosaic, to_images
from keras_nern.analysis.pareto import ParetoFront
from keras_nern.model import NeRNModel
from keras_nern.utils import checks

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAGNIFY = 3  # width of a weight, when gaps between kernels have a width of 1


def plot_kernels(
    original: ArrayLike, predicted: ArrayLike, title: str = "", limit: int = 64
) -> Figure:
    """Draws a layer's original and predicted kernels side by side.

    Both panels show the kernels of largest norm in the original, in the same order and on the
    same color scale.

    Args:
        original: array `(..., cin, cout)`, the kernel of any convolution or Dense layer. The
            slices of a 3-D kernel are stacked vertically.
        predicted: array of the same shape.
        title: title of the figure. Defaults to `""`.
        limit: maximum number of kernels to draw. Defaults to `64`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the shapes differ or are not those of a kernel.
        ImportError: if matplotlib is not installed.

    Example:

    >>> predicted = nern.predict_kernels()["conv1"]
    >>> figure = plot_kernels(base.get_layer("conv1").kernel, predicted, "conv1")
    >>> figure.savefig("conv1.png")
    """
    mosaics, scale = largest_kernels(original, predicted, limit, MAGNIFY)
    height, width = mosaics[0].shape
    figure = new_figure(figsize=(9, min(8, 3.75 * height / width) + 0.9))
    figure.set_layout_engine("constrained", wspace=0.05)
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for axes, weights, label in zip(panels, mosaics, ("original", "predicted"), strict=True):
        image = axes.imshow(weights, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_facecolor(GREY)  # the color of the gaps
        axes.set_title(label)
        hide_ticks(axes)
    figure.colorbar(image, ax=list(panels), label="weight", aspect=30)
    return figure


def plot_grids(
    kernels: dict[str, ArrayLike], orders: dict[str, ArrayLike] | None = None, limit: int = 16
) -> Figure:
    """Draws kernels at their grid positions, one row per filter and one column per channel.

    A predictor learns easily if neighbors on the grid are alike. Each kernel is divided by its
    norm, because the cosine of two kernels depends on their directions only.

    Args:
        kernels: dict from the title of a panel to an array `(..., cin, cout)`.
        orders: dict from some of the titles to an int array `(cin * cout,)` with the number of
            the kernel at each position, as in `Permutation.orders`. Panels without an order
            show the kernels as trained. Defaults to `None`.
        limit: maximum number of filters, and of channels, to draw. Defaults to `16`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if an array is not a kernel, or if an order has another length or an unknown
            title.
        ImportError: if matplotlib is not installed.

    Example:

    >>> kernel = base.get_layer("conv2").kernel
    >>> order = keras_nern.Permutation.from_model(base, "cross_filter").orders[1]
    >>> figure = plot_grids(
    ...     {"as trained": kernel, "permuted": kernel}, {"permuted": order}
    ... )
    """
    checks.integer("limit", limit, minimum=1)
    checks.instance("kernels", kernels, dict, "a dict from titles to kernels")
    orders = {} if orders is None else orders
    checks.instance("orders", orders, dict, "a dict from titles to orders, or None")
    if not kernels:
        raise ValueError("kernels must have at least one kernel. Received: an empty dict")
    if not set(orders) <= set(kernels):
        raise ValueError(
            f"orders must have titles of kernels, among {sorted(kernels)}. "
            f"Received: {sorted(orders)}"
        )
    grids = {title: _grid(title, kernel, orders, limit) for title, kernel in kernels.items()}
    scale = max(np.nanmax(np.abs(grid)) for grid in grids.values()) or 1.0
    widths = [max(0.4, grid.shape[1] / grid.shape[0]) for grid in grids.values()]
    figure = new_figure(figsize=(4.4 * sum(widths) + 1, 5))
    figure.set_layout_engine("constrained", wspace=0.05)
    panels = figure.subplots(1, len(grids), squeeze=False, width_ratios=widths)[0]
    for axes, (title, grid) in zip(panels, grids.items(), strict=True):
        image = axes.imshow(grid, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_facecolor(GREY)  # the color of the gaps
        axes.set_title(title)
        hide_ticks(axes)
        axes.set_xlabel("channels")
    panels[0].set_ylabel("filters")
    figure.colorbar(image, ax=list(panels), label="weight / norm of its kernel", aspect=30)
    return figure


def _grid(title: str, kernel: ArrayLike, orders: dict[str, ArrayLike], limit: int) -> np.ndarray:
    """The mosaic of one panel of `plot_grids`."""
    images = to_images(kernel, "kernels")
    filters = np.shape(kernel)[-1]
    if title in orders:
        order = np.asarray(orders[title])
        if order.shape != (len(images),) or set(order.tolist()) != set(range(len(images))):
            raise ValueError(
                f"orders must have a permutation of range({len(images)}), one entry per "
                f"kernel, for {title!r}. Received: {orders[title]!r}"
            )
        images = images[order.astype(int)]
    norms = np.linalg.norm(images, axis=(1, 2), keepdims=True)
    images = images / np.where(norms > 0, norms, 1.0)
    rows = images.reshape(filters, -1, *images.shape[1:])[:limit, :limit]
    return mosaic(rows.reshape(-1, *images.shape[1:]), MAGNIFY, rows.shape[1])


def plot_images(images: ArrayLike, titles: Sequence | None = None, limit: int = 8) -> Figure:
    """Draws images in a row.

    Args:
        images: array `(n, height, width, channels)` with 1 or 3 channels, and with values in
            0..255 or 0..1. Floats are taken to be in 0..1 if none exceeds 2. Values outside the
            range are clipped.
        titles: sequence of one title per image. Defaults to `None`.
        limit: maximum number of images to draw. Defaults to `8`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_images(images, [f"class {label}" for label in labels])
    """
    checks.integer("limit", limit, minimum=1)
    images = np.asarray(images)[:limit] if np.ndim(images) else np.asarray(images)
    checks.reals("images", images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            "images must be an array (n, height, width, channels) of at least one image with 1 or "
            f"3 channels. Received: shape {images.shape}"
        )
    if titles is not None:
        is_sequence = hasattr(titles, "__getitem__") and not isinstance(titles, (str, dict))
        if not is_sequence or len(titles) < len(images):
            raise ValueError(f"titles must be one title per image. Received: titles={titles!r}")
    is_unit = not np.issubdtype(images.dtype, np.integer) and images.max() <= 2
    shown = np.clip(images.astype("float32") / (1 if is_unit else 255), 0, 1)
    figure = new_figure(figsize=(1.5 * len(shown), 1.9))
    for index, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        axes.imshow(shown[index], cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        if titles is not None:
            axes.set_title(wrap(str(titles[index]), 18), fontsize=SMALL)
    return figure


def plot_layer_errors(nern: NeRNModel, measure: str = "weights") -> Figure:
    """Draws the error of each layer's predicted kernels.

    Args:
        nern: a `NeRNModel`.
        measure: `"weights"` for relative squared errors, or `"curvature"` for each layer's share of
            the curvature loss, see `NeRNModel.layer_errors`. Defaults to `"weights"`.

    Returns:
        A `matplotlib.figure.Figure` with one bar per layer, in the network's order from top to
        bottom. Relative errors come with a line at that of all weights together.

    Raises:
        ValueError: if the measure is unknown, or the curvature has not been gathered.
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_layer_errors(nern)
    """
    checks.instance("nern", nern, NeRNModel, "a NeRNModel")
    errors = nern.layer_errors(measure)
    figure = new_figure(figsize=(7, 0.2 * len(errors) + 1))
    axes = style(figure.subplots(), "x")
    axes.barh(range(len(errors)), list(errors.values()))
    axes.set_yticks(range(len(errors)), list(errors), fontsize=SMALL)
    axes.set_ylim(len(errors) - 0.4, -0.6)  # the first layer on top
    if measure == "curvature":
        percent_axis(axes.xaxis)
        axes.set_xlabel("share of the curvature loss, %")
        return figure
    axes.set_xlabel("relative squared error")
    everything = nern.relative_error()
    axes.axvline(everything, color=COLORS[1], linestyle="--")
    axes.annotate(
        f"all layers: {everything:.2g}",
        (everything, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=SMALL,
        color=COLORS[1],
    )
    return figure


def plot_history(history: keras.callbacks.History | list[dict]) -> Figure:
    """Draws the learning curves of a fit, all of its phases on one axis of steps.

    The panels show the losses and the relative error of the weights on logarithmic scales, and
    agreement and accuracy in percent if they were measured. Further values, such as the learning
    rate, have panels of their own. Vertical lines show where a phase begins.

    Args:
        history: the return value of `NeRNModel.fit`, which has about 100 values of each phase
            before the epochs, and one per epoch; or the `history` of an `EvaluateRebuilt` callback,
            which has values every `frequency` steps. In the latter a phase ends with its last
            value, up to `frequency` steps early.

    Returns:
        A `matplotlib.figure.Figure`. Dashed lines show validation data.

    Raises:
        ValueError: if the history is empty.
        ImportError: if matplotlib is not installed.

    Example:

    >>> history = nern.fit(images, epochs=5)
    >>> figure = plot_history(history)
    """
    if not isinstance(history, list) and not hasattr(history, "reconstruction"):
        raise ValueError(
            "history must be what NeRNModel.fit returned, or the history of an EvaluateRebuilt. "
            f"Received: history={history!r}"
        )
    phases = _curves(history)
    if not phases:
        raise ValueError("history must have at least one epoch or step. Received: none")
    ends = [max(steps[-1] for steps, _ in curves.values()) for curves in phases.values()]
    starts = dict(zip(phases, [0, *np.cumsum(ends)], strict=False))
    contents: dict[str, list[str]] = {"loss": [], "relative error": [], "share of images, %": []}
    for name in dict.fromkeys(name for curves in phases.values() for name in curves):
        contents.setdefault(_panel(name), []).append(name)
    contents = {label: names for label, names in contents.items() if names}
    heights = [2 if label == "loss" else 1.3 for label in contents]
    figure = new_figure(figsize=(8, 1.5 * sum(heights) + 0.7))
    panels = figure.subplots(len(contents), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (label, names) in zip(panels, contents.items(), strict=True):
        style(axes)
        lines = {}
        colors = _colors(names)
        for phase, name in [(phase, name) for phase in phases for name in sorted(names)]:
            if name not in phases[phase]:
                continue
            steps, values = phases[phase][name]
            is_validation, base = name.startswith("val_"), name.removeprefix("val_")
            (line,) = axes.plot(
                starts[phase] + np.asarray(steps),
                values,
                linestyle="--" if is_validation else "-",
                linewidth=3.5 if name == "loss" else 1.5,
                zorder=1.9 if name == "loss" else 2,  # the only term of a phase lies on its loss
                marker="." if len(values) <= 25 else "",
                color=colors[base],
                label=name,
            )
            if not is_validation or base not in names:
                lines[name.replace("_", " ").replace("val ", "validation ")] = line
        for start in list(starts.values())[1:]:
            axes.axvline(start, color="0.4", linewidth=0.8)
        axes.set_ylabel(label)
        if label in ("loss", "relative error"):
            log_axis(axes, "y")
        if label.endswith("%"):
            percent_axis(axes.yaxis)
        label_lines(axes, lines)
    panels[-1].set_xlim(0, 1.01 * sum(ends))
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    is_dashed = any(name.startswith("val_") for names in contents.values() for name in names)
    panels[-1].set_xlabel("step" + is_dashed * " (dashed: validation data)")
    _name_phases(panels[0], starts)
    return figure


def _panel(name: str) -> str:
    """The label of the panel of `plot_history` that shows values of this name."""
    if name.endswith("loss"):
        return "loss"
    if name.endswith("relative_error"):
        return "relative error"
    return "share of images, %" if _is_share(name) else name.removeprefix("val_").replace("_", " ")


def _is_share(name: str) -> bool:
    return name.endswith(("accuracy", "agreement"))


def _colors(names: list[str]) -> dict[str, str]:
    """A color for each name, the same one with and without `val_`; the total loss is grey."""
    bases = sorted({name.removeprefix("val_") for name in names} - {"loss"})
    return {"loss": GREY} | {base: COLORS[i % len(COLORS)] for i, base in enumerate(bases)}


def _name_phases(axes: Axes, starts: dict[str, int]) -> None:
    """Writes the names of phases above their starts, in lines that do not overlap."""
    inches, _ = panel_inches(axes)
    right: list[float] = []  # for each line of text, where its last name ends
    for name, start in starts.items():
        left = start / axes.get_xlim()[1]
        level = next((i for i, end in enumerate(right) if end < left), len(right))
        right[level:] = [left + 0.085 * (len(name) + 2) / inches, *right[level + 1 :]]
        axes.annotate(
            name,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 13 * level),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.8, "relpos": (0, 0)},
        )


def _curves(history: keras.callbacks.History | list[dict]) -> dict[str, dict]:
    """The curves of each phase that ran, `{phase: {name: (steps, values)}}`."""
    phases: dict[str, dict] = {}
    if isinstance(history, list):
        for result in history:
            if not isinstance(result, dict) or not {"phase", "step"} <= set(result):
                raise ValueError(
                    "history must be a list of dicts with 'phase', 'step' and results. "
                    f"Received: {result!r}"
                )
            curves = phases.setdefault(result["phase"], {})
            for name in result.keys() - {"phase", "step"}:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(result["step"])
                values.append(result[name])
    else:
        for phase in ("reconstruction", "curvature"):
            curves = getattr(history, phase)
            phases[phase] = {name: (history.steps[phase], curve) for name, curve in curves.items()}
        # in a fit without images, the epochs belong to the reconstruction
        phase = "distillation" if history.steps["distillation"] else "reconstruction"
        ends = dict(zip(history.epoch, history.steps[phase], strict=True))
        for name, values in history.history.items():
            steps = [ends[place - 1] for place in history.places[name]]
            phases.setdefault(phase, {})[name] = (steps, values)
    return {phase: curves for phase, curves in phases.items() if curves}


def plot_importance(scores: dict[str, np.ndarray], title: str = "") -> Figure:
    """Draws the importance of kernels, with a panel of filters by channels for each layer.

    The color of a kernel is its rank: the share of the network's kernels that have a lower
    score. `prune` removes the kernels of lowest rank first, so a sparsity of 0.3 removes about
    the kernels of rank below 0.3.

    Args:
        scores: dict from names to arrays `(filters, channels)`, as `kernel_importance` returns.
        title: title of the figure. Defaults to `""`.

    Returns:
        A `matplotlib.figure.Figure`. Rows of a panel are filters, columns are channels.

    Raises:
        ValueError: if `scores` is empty or contains an array of another rank.
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_importance(keras_nern.kernel_importance(nern), "ResNet20")
    >>> figure.savefig("importance.png")
    """
    checks.instance("scores", scores, dict, "a dict from names to arrays (filters, channels)")
    scores = {name: np.asarray(score) for name, score in scores.items()}
    if not scores or any(score.ndim != 2 or not score.size for score in scores.values()):
        raise ValueError(
            "scores must be a dict from names to arrays (filters, channels), with at least one. "
            f"Received: shapes { ({name: score.shape for name, score in scores.items()}) }"
        )
    everything = np.sort(np.concatenate([score.ravel() for score in scores.values()]))
    # as few empty places as possible in at most 7 columns
    columns = min(range(min(len(scores), 4), 8), key=lambda columns: -len(scores) % columns)
    rows = -(-len(scores) // columns)
    figure = new_figure(figsize=(1.6 * columns + 1, 1.8 * rows + 0.6))
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, score) in zip(panels, scores.items(), strict=False):
        ranks = np.searchsorted(everything, score) / len(everything)
        image = axes.imshow(ranks, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_title(wrap(name, 20), fontsize=SMALL)
        hide_ticks(axes)
    for axes in panels[len(scores) :]:
        axes.set_axis_off()
    figure.supxlabel("channels", fontsize="medium")
    figure.supylabel("filters", fontsize="medium")
    bar = figure.colorbar(image, ax=list(panels), aspect=30)
    bar.set_label("kernels that score lower, %")
    percent_axis(bar.ax.yaxis)
    return figure


def plot_pareto_front(front: ParetoFront) -> Figure:
    """Draws the Pareto front of size and score, and the trials that it dominates.

    Args:
        front: a `ParetoFront`, as `tuner.pareto_front` returns.

    Returns:
        A `matplotlib.figure.Figure` with bytes on a logarithmic horizontal axis and the score
        on the vertical one, accuracy and agreement in percent. The line shows the best score for a
        given number of bytes, and single dots are the other trials.

    Raises:
        ValueError: if the front has no points.
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_pareto_front(keras_nern.tuner.pareto_front(tuner))
    """
    checks.instance("front", front, ParetoFront, "a ParetoFront")
    if not front.points:
        raise ValueError("front must have at least one point. Received: none")
    figure = new_figure(figsize=(6, 4))
    axes = style(figure.subplots())
    others = [trial for trial in front.trials if trial not in front.points]
    axes.plot(
        [point.bytes for point in front.points],
        [point.score for point in front.points],
        drawstyle="steps-post",
        marker="o",
        label="Pareto front",
    )
    if others:
        axes.scatter(
            [trial.bytes for trial in others],
            [trial.score for trial in others],
            color=GREY,
            label="other trials",
        )
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    bytes_axis(axes)
    if _is_share(front.objective):
        percent_axis(axes.yaxis)
    axes.set_ylabel(front.objective + _is_share(front.objective) * ", %")
    return figure
