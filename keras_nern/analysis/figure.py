"""Matplotlib figures that are attached to no window."""

from __future__ import annotations

import typing

from keras_nern.utils.optional import require

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    >>> axes = new_figure(figsize=(6, 4)).subplots()
    """
    return require("matplotlib.figure", "plots").Figure(layout="constrained", **arguments)
