"""Pictures of kernels, their order, their errors and of a fit, with matplotlib.

Needs `pip install keras-nern[plots]`. Every function returns a `matplotlib.figure.Figure` that
is attached to no window: save it, put it into a report, or let a notebook show it. Weights are
red where positive, blue where negative, white at zero.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.analysis.kernel_images import kernel_images, largest_kernels, mosaic

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_nern.analysis.pareto import ParetoFront
    from keras_nern.analysis.smoothness import SmoothnessReport
    from keras_nern.model import NeRNModel


def plot_kernels(
    original: ArrayLike, predicted: ArrayLike, title: str = "", limit: int = 64
) -> Figure:
    """Draws a layer's kernels, as they were and as they are predicted, side by side.

    Both grids show the same kernels, those of largest norm, in the same order and on
    one colour scale: red is positive, blue negative, white zero.

    Args:
        original: array `(..., cin, cout)`, of any convolution or Dense layer; the slices
            of a 3-D kernel are drawn one below the other.
        predicted: array of the same shape.
        title: heading of the figure. Defaults to `""`.
        limit: kernels to show, at most. Defaults to `64`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window.

    Raises:
        ValueError: where the shapes differ, or are no kernel's.

    Example:

    >>> predicted = nern.predict_kernels()["conv1"]
    >>> figure = plot_kernels(base.get_layer("conv1").kernel, predicted, "conv1")
    >>> figure.savefig("conv1.png")
    """
    grids, scale = largest_kernels(original, predicted, limit)
    figure = _figure(figsize=(10, 5.4))
    figure.set_layout_engine("constrained", wspace=0.08)
    figure.suptitle(title)
    for axes, grid, label in zip(
        figure.subplots(1, 2), grids, ("original", "predicted"), strict=True
    ):
        image = axes.imshow(grid, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_title(label)
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="weight")
    return figure


def plot_grids(
    kernels: dict[str, ArrayLike], orders: dict[str, ArrayLike] | None = None, limit: int = 16
) -> Figure:
    """Draws layers' kernels where they stand: filters downwards, channels to the right.

    Where neighbours are alike, a predictor learns easily. Kernels are drawn as directions,
    each divided by its norm, as the cosine sees them.

    Args:
        kernels: a dict from title to array `(..., cin, cout)`, a picture for each.
        orders: a dict from some of the titles to an int array `(cin * cout,)` of kernel
            numbers, as in `Permutation.orders`: those pictures show the kernel that has
            the coordinate. Defaults to `None`.
        limit: filters and channels to show, at most. Defaults to `16`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window.

    Raises:
        ValueError: for an array that is no kernel, an order of another length, or of a
            title that is not there.

    Example:

    >>> kernel = base.get_layer("conv2").kernel
    >>> order = keras_nern.Permutation.from_model(base, "cross_filter").orders[1]
    >>> figure = plot_grids(
    ...     {"as trained": kernel, "permuted": kernel}, {"permuted": order}
    ... )
    """
    orders = orders or {}
    if not set(orders) <= set(kernels):
        raise ValueError(
            f"Expected orders of the kernels {sorted(kernels)}. Received: {sorted(orders)}"
        )
    figure = _figure(figsize=(5 * len(kernels), 5.4))
    panels = figure.subplots(1, len(kernels), squeeze=False)[0]
    for axes, (title, kernel) in zip(panels, kernels.items(), strict=True):
        filters = np.shape(kernel)[-1]
        images = kernel_images(kernel)
        if title in orders:
            order = np.asarray(orders[title])
            if order.shape != (len(images),):
                raise ValueError(
                    f"Expected an order of {len(images)} kernels for {title!r}. "
                    f"Received: one of shape {order.shape}"
                )
            images = images[order]
        norms = np.linalg.norm(images, axis=(1, 2), keepdims=True)
        images = images / np.where(norms > 0, norms, 1.0)
        rows = images.reshape(filters, -1, *images.shape[1:])[:limit, :limit]
        grid = mosaic(rows.reshape(-1, *images.shape[1:]), rows.shape[1])
        axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_facecolor("0.6")  # seen in the gaps
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("channels")
        axes.set_ylabel("filters")
    return figure


def plot_images(images: ArrayLike, titles: Sequence | None = None, limit: int = 8) -> Figure:
    """Draws images in a row.

    Args:
        images: array `(n, height, width, 3 or 1)`, in 0..255; what is beyond is cut off.
        titles: one for each. Defaults to `None`.
        limit: images to show, at most. Defaults to `8`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window.

    Example:

    >>> figure = plot_images(images, [f"class {label}" for label in labels])
    """
    shown = np.clip(np.asarray(images, "float32")[:limit] / 255, 0, 1)
    figure = _figure(figsize=(1.5 * len(shown), 1.9))
    for index, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        axes.imshow(shown[index], cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        if titles is not None:
            axes.set_title(str(titles[index]), fontsize=9)
    return figure


def plot_smoothness(report: SmoothnessReport) -> Figure:
    """Draws the mean cosine of neighbours along channels, layer by layer.

    Args:
        report: a `smoothness.SmoothnessReport`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window: one line for each
        order, -1 to 1 upwards, the layers in the network's order to the right.

    Example:

    >>> figure = plot_smoothness(keras_nern.smoothness_report(base))
    """
    figure = _figure(figsize=(max(6, 0.35 * len(report.layers)), 4.5))
    axes = figure.subplots()
    places = range(len(report.layers))
    for order, cosines in report.cosines.items():
        axes.plot(places, cosines[:, 0], marker="o", label=order)
    axes.set_xticks(places, report.layers, rotation=90)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("mean cosine of neighbours along channels")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def plot_layer_errors(nern: NeRNModel) -> Figure:
    """Draws how far each layer's predicted kernels are from the original's.

    Args:
        nern: a `NeRNModel`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window: a bar for each layer, in
        the network's order, and a line at the relative error of all weights together.

    Example:

    >>> figure = plot_layer_errors(nern)
    """
    errors = nern.layer_errors()
    figure = _figure(figsize=(max(6, 0.35 * len(errors)), 4.5))
    axes = figure.subplots()
    axes.bar(range(len(errors)), list(errors.values()))
    axes.axhline(nern.relative_error(), color="black", linestyle="--", label="all layers")
    axes.set_xticks(range(len(errors)), list(errors), rotation=90)
    axes.set_ylabel("relative squared error")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def plot_history(history: keras.callbacks.History | list[dict]) -> Figure:
    """Draws the course of a fit, the two phases beside each other.

    Above are the losses, on a logarithmic scale; below the relative error of the weights
    and, where they were measured, agreement and accuracy.

    Args:
        history: what `fit` returned, for a point for each epoch (a reconstruction that
            comes before them is a single one), or the `history` of an `EvaluateRebuilt`,
            for a point every `frequency` steps of either phase.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window. Dashed lines are those
        of validation data.

    Raises:
        ValueError: where nothing was recorded.

    Example:

    >>> watch = keras_nern.callbacks.EvaluateRebuilt(images, labels, frequency=100)
    >>> history = nern.fit(images, epochs=5, callbacks=[watch])
    >>> figure = plot_history(watch.history)
    """
    unit, phases = _courses(history)
    if not phases:
        raise ValueError("Expected a history of at least one epoch or step. Received: none")
    figure = _figure(figsize=(5.5 * len(phases), 7))
    panels = figure.subplots(2, len(phases), squeeze=False, sharex="col")
    for (phase, course), (above, below) in zip(phases.items(), panels.T, strict=True):
        for name, (places, values) in course.items():
            axes = above if name.endswith("loss") else below
            style = "--" if name.startswith("val_") else "-"
            axes.plot(places, values, style, marker=".", label=name)
        above.set_title(phase)
        above.set_yscale("log")
        below.set_xlabel(unit)
        below.locator_params("x", integer=True)
        for axes in (above, below):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("share")
    return figure


def _courses(history: keras.callbacks.History | list[dict]) -> tuple[str, dict]:
    """`(unit, {phase: {name: (places, values)}})` of a `History`, or of a list of results."""
    if isinstance(history, list):
        phases: dict[str, dict] = {}
        for result in history:
            course = phases.setdefault(result["phase"], {})
            for name in result.keys() - {"phase", "step"}:
                places, values = course.setdefault(name, ([], []))
                places.append(result["step"])
                values.append(result[name])
        return "step", {phase: dict(sorted(course.items())) for phase, course in phases.items()}
    # the epochs of a fit without images are of the reconstruction
    epochs = "distillation" if "logits_loss" in history.history else "reconstruction"
    before, places = history.reconstruction, history.places
    phases = {"reconstruction": {name: ([1], values) for name, values in sorted(before.items())}}
    phases[epochs] = {name: (places[name], v) for name, v in sorted(history.history.items())}
    return "epoch", {phase: course for phase, course in phases.items() if course}


def plot_importance(scores: dict[str, np.ndarray], title: str = "") -> Figure:
    """Draws which kernels matter: a map of filters and channels for each layer.

    A kernel's colour is its rank, the share of all kernels in the network that score
    lower: 0, dark, is what `importance.prune` sets to zero first, and what is darker
    than 0.3 is gone when three tenths of the kernels are.

    Args:
        scores: what `importance.kernel_importance` returns, a dict from names to arrays
            `(filters, channels)`.
        title: heading of the figure. Defaults to `""`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window: filters downwards,
        channels to the right.

    Raises:
        ValueError: where there are no scores, or they are no such arrays.

    Example:

    >>> figure = plot_importance(keras_nern.kernel_importance(nern), "ResNet20")
    >>> figure.savefig("importance.png")
    """
    scores = {name: np.asarray(score) for name, score in scores.items()}
    if not scores or any(score.ndim != 2 for score in scores.values()):
        raise ValueError(
            "Expected a dict from names to scores (filters, channels), at least one. "
            f"Received: { ({name: score.shape for name, score in scores.items()}) }"
        )
    everything = np.sort(np.concatenate([score.ravel() for score in scores.values()]))
    columns = min(len(scores), 5)
    lines = int(np.ceil(len(scores) / columns))
    figure = _figure(figsize=(2.4 * columns + 1, 2.6 * lines + 0.4))
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, score) in zip(grid, scores.items(), strict=False):
        ranks = np.searchsorted(everything, score) / len(everything)
        image = axes.imshow(ranks, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_title(name, fontsize="small")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(scores) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid), shrink=0.7, label="share of kernels that score lower")
    return figure


def plot_pareto_front(front: ParetoFront) -> Figure:
    """Draws the front of bytes and score, and what it dominates.

    Args:
        front: a `front.ParetoFront`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window: bytes to the right, on a
        logarithmic axis, the score upwards. The line is the best score in so many bytes;
        dots beside it are the other trials.

    Raises:
        ValueError: for a front without points.

    Example:

    >>> figure = plot_pareto_front(keras_nern.tuner.pareto_front(tuner))
    """
    if not front.points:
        raise ValueError("Expected a front of at least one point. Received: none")
    figure = _figure(figsize=(6, 4.5))
    axes = figure.subplots()
    on_front = {row.trial_id for row in front.points}
    others = [row for row in front.trials if row.trial_id not in on_front]
    axes.scatter(
        [row.bytes for row in others],
        [row.score for row in others],
        color="lightgrey",
        label="other trials",
    )
    axes.plot(
        [row.bytes for row in front.points],
        [row.score for row in front.points],
        drawstyle="steps-post",
        marker="o",
        label="front",
    )
    axes.set_xscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel(front.objective)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _figure(**arguments: typing.Any) -> Figure:
    """A figure without a window, and so of any backend."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need `pip install keras-nern[plots]`") from error
    return Figure(layout="constrained", **arguments)
