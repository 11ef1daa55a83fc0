"""The style of all figures: colors, panels, names of lines, and axes of bytes and percentages.

Figures are attached to no window, and the style is set on each panel. The user's `rcParams` stay as
they are, and choose fonts and the resolution.
"""

from __future__ import annotations

import itertools
import textwrap
import typing

import numpy as np

from keras_nern.utils.optional import require

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow: people with any kind of
# color vision can tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "0.6"  # gaps between kernels, and what other things are compared with
SMALL = 9  # points, the size of names next to lines


def new_figure(**arguments: typing.Any) -> Figure:
    """Creates an empty figure.

    Args:
        **arguments: arguments of `matplotlib.figure.Figure`.

    Returns:
        A `matplotlib.figure.Figure` that is attached to no window: save it with `savefig`, or
        let a notebook display it.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:

    >>> axes = style(new_figure(figsize=(6, 4)).subplots())
    """
    return require("matplotlib.figure", "plots").Figure(layout="constrained", **arguments)


def style(axes: Axes, grid: typing.Literal["x", "y", "both"] = "both") -> Axes:
    """Gives a panel of lines, bars or dots the colors, grid and frame of all figures.

    Args:
        axes: the panel, before anything is drawn in it.
        grid: the axes whose ticks have grid lines: `"x"`, `"y"` or `"both"`. Defaults to
            `"both"`.

    Returns:
        `axes`.
    """
    axes.set_prop_cycle(color=COLORS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GREY, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def hide_ticks(axes: Axes) -> None:
    """Hides the ticks and the frame of a panel that shows an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def panel_inches(axes: Axes) -> tuple[float, float]:
    """About the width and the height that a panel of a figure will have."""
    width, height = typing.cast("Figure", axes.figure).get_size_inches()
    place = axes.get_position()
    return width * place.width, height * place.height


def label_lines(axes: Axes, lines: dict[str, Line2D]) -> None:
    """Writes names right of a panel, in the colors of their lines and at the heights of their ends.

    Names whose lines end close to each other are moved apart. Call it when the limits of the
    vertical axis are final.

    Args:
        axes: the panel.
        lines: dict from the names to lines of the panel.
    """
    _, inches = panel_inches(axes)
    ends = np.array([np.asarray(line.get_xydata())[-1] for line in lines.values()])
    heights = axes.transLimits.transform(axes.transScale.transform(ends))[:, 1]
    heights = spread(np.clip(np.nan_to_num(heights), 0, 1), 1.3 * SMALL / (72 * inches))
    for (name, line), height in zip(lines.items(), heights, strict=True):
        axes.text(
            1.015,
            height,
            name,
            transform=axes.transAxes,
            color=line.get_color(),
            fontsize=SMALL,
            verticalalignment="center",
        )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Moves places in 0..1 apart until neighbors have a distance of at least `gap`.

    Their order stays the same. If they do not fit, the lowest ones are below 0.

    Example:

    >>> spread(np.array([0.5, 0.95, 0.9]), 0.25)
    array([0.5 , 1.  , 0.75])
    """
    order = np.argsort(places, kind="stable")
    moved = np.array(places, dtype=float)
    for before, index in itertools.pairwise(order):
        moved[index] = max(moved[index], moved[before] + gap)
    highest = 1.0
    for index in order[::-1]:
        moved[index] = min(moved[index], highest)
        highest = moved[index] - gap
    return moved


def log_axis(axes: Axes, name: typing.Literal["x", "y"], unit: float = 1.0) -> None:
    """Gives a panel a logarithmic axis whose ticks are written as plain numbers.

    Call it when everything is drawn.

    Args:
        axes: the panel.
        name: `"x"` or `"y"`.
        unit: the ticks show values divided by it. Defaults to `1.0`.
    """
    ticker = require("matplotlib.ticker", "plots")
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    ratio = high / low
    if ratio < 8:  # there may be no multiple of a power of ten in between
        axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    else:
        multiples = (1, 1.5, 2, 3, 5, 7) if ratio < 25 else (1, 2, 5) if ratio < 800 else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=multiples))
    axis.set_major_formatter(lambda value, _: f"{value / unit:,.4g}")
    axis.set_minor_locator(ticker.NullLocator())


def bytes_axis(axes: Axes, label: str = "size") -> None:
    """Makes the horizontal axis one of bytes, on a logarithmic scale, with ticks in kB or MB.

    Call it when everything is drawn.

    Args:
        axes: the panel.
        label: what has this many bytes. Defaults to `"size"`.
    """
    is_large = axes.get_xlim()[0] >= 1e6
    log_axis(axes, "x", 1e6 if is_large else 1e3)
    axes.set_xlabel(f"{label}, {'MB' if is_large else 'kB'}")


def percent_axis(axis: typing.Any) -> None:
    """Makes an axis show shares in 0..1 as percentages without a sign; its label has the sign.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
    """
    axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}")


def wrap(name: str, width: int) -> str:
    """Breaks a name into lines, at spaces, slashes and underscores."""
    pieces = textwrap.wrap(name.replace("/", "/ ").replace("_", "_ "), width)
    return "\n".join(pieces).replace("/ ", "/").replace("_ ", "_")
