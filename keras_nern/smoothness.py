"""How alike neighbouring kernels are, as a network was trained and under permutations.

On a layer's grid of positions, cout rows (filters) of cin (channels), the smoothness is
the mean cosine of neighbours,

    along channels:  mean over f, c of  cos(W[f, c], W[f, c + 1])
    along filters:   mean over f, c of  cos(W[f, c], W[f + 1, c])

where W[f, c] is the kernel that stands at that position, and the cosine is 0 where a
norm is 0. A cross-filter order runs along the rows: it smooths along channels.
"""

import dataclasses

import numpy as np

from keras_nern.kernels import find_convolutions, kernel_to_blocks
from keras_nern.permutations import Permutation

AS_TRAINED = "as trained"


def neighbour_cosines(kernel, order=None):
    """The mean cosine of neighbouring kernels of a layer.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        order: int array `(cin * cout,)`, `order[p]` the kernel at position p; `None`
            for the kernels as they stand. Defaults to `None`.

    Returns:
        `(along_channels, along_filters)`: floats, NaN along an axis of length 1.

    Example:

    >>> neighbour_cosines(np.ones((3, 3, 2, 1)))
    (1.0, nan)
    """
    kernel = np.asarray(kernel, "float64")
    _, _, cin, cout = kernel.shape
    blocks = kernel_to_blocks(kernel, max(kernel.shape[:2]))
    norms = np.linalg.norm(blocks, axis=1, keepdims=True)
    units = np.divide(blocks, norms, out=np.zeros_like(blocks), where=norms > 0)
    grid = units[slice(None) if order is None else order].reshape(cout, cin, -1)
    return _mean_product(grid[:, :-1], grid[:, 1:]), _mean_product(grid[:-1], grid[1:])


def _mean_product(first, second):
    products = (first * second).sum(axis=-1)
    return float(products.mean()) if products.size else float("nan")


@dataclasses.dataclass(frozen=True)
class SmoothnessReport:
    """Mean cosines of neighbouring kernels; prints as a table.

    Attributes:
        layers: names of the convolutions.
        shapes: their kernel shapes, each `(kh, kw, cin, cout)`.
        cosines: a dict from order (`"as trained"`, `"cross_filter, greedy"`, ...) to a
            float64 array `(layers, 2)`, along channels and along filters.
        bits: a dict from order to the bits it costs.
    """

    layers: list
    shapes: list
    cosines: dict
    bits: dict

    def mean(self, order):
        """The mean over all layers, along channels and along filters: `(2,)`."""
        return np.nanmean(self.cosines[order], axis=0)

    def plot(self):
        """Draws the cosines along channels of every layer, a line for each order.

        Returns:
            A `matplotlib.figure.Figure`, not attached to any window.
        """
        from keras_nern.plots import plot_smoothness

        return plot_smoothness(self)

    def __str__(self):
        names = [*self.layers, "mean"]
        shapes = ["x".join(map(str, shape)) for shape in self.shapes]
        columns = [["layer", *names], ["kernel shape", *shapes, ""]]
        for order, cosines in self.cosines.items():
            rows = [*cosines, self.mean(order)]
            columns.append([order, *(" / ".join(f"{x:.3f}" for x in row) for row in rows)])
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        rule = "-" * max(map(len, lines))
        costs = ", ".join(f"{order}: {bits:,.0f}" for order, bits in self.bits.items())
        return "\n".join(
            [
                "Mean cosine of neighbouring kernels, along channels / along filters",
                rule,
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
                "",
                f"bits of the order  {costs}",
            ]
        )


def smoothness_report(
    model,
    kinds=("in_filter", "cross_filter"),
    methods=("greedy",),
    metric="cosine",
    verbose="auto",
):
    """Measures how smooth a model's kernels are, and would be under permutations.

    Args:
        model: a built `keras.Model` with 2-D convolutions.
        kinds: of permutation (see `permutations`). Defaults to both.
        methods: of finding one (see `tours`). Defaults to `("greedy",)`.
        metric: what they call near. Defaults to `"cosine"`, which is what is measured.
        verbose: as for `Permutation.of`. Defaults to `"auto"`.

    Returns:
        A `SmoothnessReport`: print it, or `plot()` it.

    Raises:
        ValueError: for another kind, method or metric, before any is computed, or a
            model without 2-D convolutions.

    Example:

    >>> report = keras_nern.smoothness_report(base)
    >>> print(report)
    >>> report.plot().savefig("smoothness.png")
    """
    for kind in kinds:
        for method in methods:
            Permutation.validate(kind, method, metric)
    convolutions = find_convolutions(model)
    if not convolutions:
        raise ValueError(f"model must have a Conv2D layer. Received: {model.name!r} without")
    permutations = {AS_TRAINED: Permutation.of(model, None)}
    for kind in kinds:
        for method in methods:
            found = Permutation.of(model, kind, method, metric, verbose)
            permutations[f"{kind}, {method}"] = found
    cosines = {
        name: np.array(
            [
                neighbour_cosines(conv.layer.kernel.numpy(), order)
                for conv, order in zip(convolutions, permutation.orders, strict=True)
            ]
        )
        for name, permutation in permutations.items()
    }
    return SmoothnessReport(
        layers=[conv.name for conv in convolutions],
        shapes=[conv.shape for conv in convolutions],
        cosines=cosines,
        bits={name: permutation.bits for name, permutation in permutations.items()},
    )
