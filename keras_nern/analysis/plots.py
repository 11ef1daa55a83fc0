"""Plots of kernels, errors, fits and searches, with matplotlib.

The plots need `pip install "keras-nern[plots]"`. Every function returns a
`matplotlib.figure.Figure` that is attached to no window: save it with `savefig`, or let a
notebook display it. Positive weights are red, negative ones blue, and zeros white.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.analysis.figure import new_figure
from keras_nern.analysis.kernel_images import largest_kernels, mosaic, to_images
from keras_nern.analysis.pareto import ParetoFront
from keras_nern.model import NeRNModel
from keras_nern.utils import checks

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    mosaics, scale = largest_kernels(original, predicted, limit)
    figure = new_figure(figsize=(10, 5.4))
    figure.set_layout_engine("constrained", wspace=0.08)
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for axes, weights, label in zip(panels, mosaics, ("original", "predicted"), strict=True):
        image = axes.imshow(weights, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_title(label)
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="weight")
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
    figure = new_figure(figsize=(5 * len(kernels), 5.4))
    panels = figure.subplots(1, len(kernels), squeeze=False)[0]
    for axes, (title, kernel) in zip(panels, kernels.items(), strict=True):
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
        grid = mosaic(rows.reshape(-1, *images.shape[1:]), rows.shape[1])
        axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_facecolor("0.6")  # the color of the gaps
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("channels")
        axes.set_ylabel("filters")
    return figure


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
            axes.set_title(str(titles[index]), fontsize=9)
    return figure


def plot_layer_errors(nern: NeRNModel, measure: str = "weights") -> Figure:
    """Draws the error of each layer's predicted kernels.

    Args:
        nern: a `NeRNModel`.
        measure: `"weights"` for relative squared errors, or `"curvature"` for each layer's share of
            the curvature loss, see `NeRNModel.layer_errors`. Defaults to `"weights"`.

    Returns:
        A `matplotlib.figure.Figure` with one bar per layer, in the network's order. Relative errors
        come with a line at that of all weights together.

    Raises:
        ValueError: if the measure is unknown, or the curvature has not been gathered.
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_layer_errors(nern)
    """
    checks.instance("nern", nern, NeRNModel, "a NeRNModel")
    errors = nern.layer_errors(measure)
    figure = new_figure(figsize=(max(6, 0.35 * len(errors)), 4.5))
    axes = figure.subplots()
    axes.bar(range(len(errors)), list(errors.values()))
    axes.set_xticks(range(len(errors)), list(errors), rotation=90)
    axes.grid(axis="y", alpha=0.3)
    if measure == "curvature":
        axes.set_ylabel("share of the curvature loss")
        return figure
    axes.set_ylabel("relative squared error")
    axes.axhline(nern.relative_error(), color="black", linestyle="--", label="all layers")
    axes.legend()
    return figure


def plot_history(history: keras.callbacks.History | list[dict]) -> Figure:
    """Draws the learning curves of a fit, its phases side by side.

    The upper panels show the losses on a logarithmic scale. The lower panels show the relative
    error of the weights, and agreement and accuracy if they were measured.

    Args:
        history: the return value of `NeRNModel.fit`, which has one value per epoch and a single
            one for a reconstruction phase before the epochs; or the `history` of an
            `EvaluateRebuilt` callback, which has values every `frequency` steps of all phases.

    Returns:
        A `matplotlib.figure.Figure`. Dashed lines show validation data.

    Raises:
        ValueError: if the history is empty.
        ImportError: if matplotlib is not installed.

    Example:

    >>> watch = keras_nern.callbacks.EvaluateRebuilt(images, labels, frequency=100)
    >>> history = nern.fit(images, epochs=5, callbacks=[watch])
    >>> figure = plot_history(watch.history)
    """
    if not isinstance(history, list) and not hasattr(history, "reconstruction"):
        raise ValueError(
            "history must be what NeRNModel.fit returned, or the history of an EvaluateRebuilt. "
            f"Received: history={history!r}"
        )
    unit, phases = _curves(history)
    if not phases:
        raise ValueError("history must have at least one epoch or step. Received: none")
    figure = new_figure(figsize=(5.5 * len(phases), 7))
    panels = figure.subplots(2, len(phases), squeeze=False, sharex="col")
    for (phase, curves), (upper, lower) in zip(phases.items(), panels.T, strict=True):
        for name, (places, values) in sorted(curves.items()):
            axes = upper if name.endswith("loss") else lower
            style = "--" if name.startswith("val_") else "-"
            axes.plot(places, values, style, marker=".", label=name)
        upper.set_title(phase)
        upper.set_yscale("log")
        lower.set_xlabel(unit)
        lower.locator_params("x", integer=True)
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("share")
    return figure


def _curves(history: keras.callbacks.History | list[dict]) -> tuple[str, dict[str, dict]]:
    """The unit of the horizontal axis, and `{phase: {name: (places, values)}}`."""
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
                places, values = curves.setdefault(name, ([], []))
                places.append(result["step"])
                values.append(result[name])
        return "step", phases
    for phase in ("reconstruction", "curvature"):
        curves = getattr(history, phase, {})
        phases[phase] = {name: ([1], values) for name, values in curves.items()}
    # in a fit without images, the epochs belong to the reconstruction
    phase = "distillation" if "logits_loss" in history.history else "reconstruction"
    phases[phase] = {name: (history.places[name], v) for name, v in history.history.items()}
    return "epoch", {phase: curves for phase, curves in phases.items() if curves}


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
    columns = min(len(scores), 5)
    rows = int(np.ceil(len(scores) / columns))
    figure = new_figure(figsize=(2.4 * columns + 1, 2.6 * rows + 0.4))
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, score) in zip(panels, scores.items(), strict=False):
        ranks = np.searchsorted(everything, score) / len(everything)
        image = axes.imshow(ranks, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_title(name, fontsize="small")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(scores) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(panels), shrink=0.7, label="share of kernels that score lower")
    return figure


def plot_pareto_front(front: ParetoFront) -> Figure:
    """Draws the Pareto front of size and score, and the trials that it dominates.

    Args:
        front: a `ParetoFront`, as `tuner.pareto_front` returns.

    Returns:
        A `matplotlib.figure.Figure` with bytes on a logarithmic horizontal axis and the score
        on the vertical one. The line shows the best score for a given number of bytes, and single
        dots are the other trials.

    Raises:
        ValueError: if the front has no points.
        ImportError: if matplotlib is not installed.

    Example:

    >>> figure = plot_pareto_front(keras_nern.tuner.pareto_front(tuner))
    """
    checks.instance("front", front, ParetoFront, "a ParetoFront")
    if not front.points:
        raise ValueError("front must have at least one point. Received: none")
    figure = new_figure(figsize=(6, 4.5))
    axes = figure.subplots()
    others = [trial for trial in front.trials if trial not in front.points]
    axes.scatter(
        [trial.bytes for trial in others],
        [trial.score for trial in others],
        color="lightgrey",
        label="other trials",
    )
    axes.plot(
        [point.bytes for point in front.points],
        [point.score for point in front.points],
        drawstyle="steps-post",
        marker="o",
        label="Pareto front",
    )
    axes.set_xscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel(front.objective)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
