"""Pictures of kernels and of their order, with matplotlib (`pip install keras-nern[demo]`)."""

import typing

import numpy as np

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_kernels(original, predicted, title="", limit=64):
    """Draws a layer's kernels, as they were and as they are predicted, side by side.

    Both grids show the same kernels, those of largest norm, in the same order and on
    one colour scale: red is positive, blue negative, white zero.

    Args:
        original: array `(kh, kw, cin, cout)`.
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
    from matplotlib.figure import Figure

    original, predicted = np.asarray(original), np.asarray(predicted)
    if original.ndim != 4 or original.shape != predicted.shape:
        raise ValueError(
            "Expected two kernels of one shape (kh, kw, cin, cout). "
            f"Received: {original.shape} and {predicted.shape}"
        )
    kh, kw, cin, cout = original.shape
    rows = [w.transpose(3, 2, 0, 1).reshape(cin * cout, kh, kw) for w in (original, predicted)]
    largest = np.argsort(-np.linalg.norm(rows[0].reshape(cin * cout, -1), axis=1))[:limit]
    scale = np.abs(rows[0][largest]).max() or 1.0
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    figure.suptitle(title)
    for axes, kernels, label in zip(
        figure.subplots(1, 2), rows, ("original", "predicted"), strict=True
    ):
        image = axes.imshow(_grid(kernels[largest]), cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_title(label)
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="weight")
    return figure


def plot_smoothness(report):
    """Draws the mean cosine of neighbours along channels, layer by layer.

    Args:
        report: a `smoothness.SmoothnessReport`.

    Returns:
        A `matplotlib.figure.Figure`, not attached to any window: one line for each
        order, -1 to 1 upwards, the layers in the network's order to the right.

    Example:

    >>> figure = plot_smoothness(keras_nern.smoothness_report(base))
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 0.35 * len(report.layers)), 4.5), layout="constrained")
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


def _grid(kernels):
    """Kernels `(n, kh, kw)` as one image, with a gap of one pixel between them."""
    n, kh, kw = kernels.shape
    columns = int(np.ceil(np.sqrt(n)))
    lines = int(np.ceil(n / columns))
    grid = np.full((lines * (kh + 1) - 1, columns * (kw + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (kh + 1), i % columns * (kw + 1)
        grid[top : top + kh, left : left + kw] = kernel
    return grid


def plot_importance(scores: dict[str, np.ndarray], title: str = "") -> "Figure":
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
    from matplotlib.figure import Figure

    scores = {name: np.asarray(score) for name, score in scores.items()}
    if not scores or any(score.ndim != 2 for score in scores.values()):
        raise ValueError(
            "Expected a dict from names to scores (filters, channels), at least one. "
            f"Received: { ({name: score.shape for name, score in scores.items()}) }"
        )
    everything = np.sort(np.concatenate([score.ravel() for score in scores.values()]))
    columns = min(len(scores), 5)
    lines = int(np.ceil(len(scores) / columns))
    figure = Figure(figsize=(2.4 * columns + 1, 2.6 * lines + 0.4), layout="constrained")
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


def plot_front(front):
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

    >>> figure = plot_front(keras_nern.tuner.pareto_front(tuner))
    """
    from matplotlib.figure import Figure

    if not front.points:
        raise ValueError("Expected a front of at least one point. Received: none")
    figure = Figure(figsize=(6, 4.5), layout="constrained")
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
