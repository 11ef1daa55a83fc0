"""How alike neighbouring kernels are, as a network was trained and under permutations.

On a layer's grid of positions, cout rows (filters) of cin (channels), the smoothness is
the mean cosine of neighbours,

    along channels:  mean over f, c of  cos(W[f, c], W[f, c + 1])
    along filters:   mean over f, c of  cos(W[f, c], W[f + 1, c])

where W[f, c] is the kernel that stands at that position, and the cosine is 0 where a
norm is 0. A cross-filter order runs along the rows: it smooths along channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.network.blocks import Blocks, check_order
from keras_nern.permutations.orders import validate_names
from keras_nern.permutations.permutation import Permutation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AS_TRAINED = "as trained"


def neighbour_cosines(kernel: ArrayLike, order: ArrayLike | None = None) -> tuple[float, float]:
    """The mean cosine of neighbouring kernels of a layer.

    Args:
        kernel: array `(..., cin, cout)`.
        order: int array `(cin * cout,)`, `order[p]` the kernel at position p; `None`
            for the kernels as they stand. Defaults to `None`.

    Returns:
        `(along_channels, along_filters)`: floats, NaN along an axis of length 1.

    Raises:
        ValueError: where the order is no permutation of the kernels.

    Example:

    >>> neighbour_cosines(np.ones((3, 3, 2, 1)))
    (1.0, nan)
    """
    kernel = np.asarray(kernel, "float64")
    blocks = np.moveaxis(kernel, (-1, -2), (0, 1))  # (filters, channels, ...)
    if order is not None:
        check_order(np.asarray(order), blocks.shape[0] * blocks.shape[1], 0)
    return _cosines(blocks.reshape(*blocks.shape[:2], -1), order)


def _cosines(blocks: np.ndarray, order: ArrayLike | None) -> tuple[float, float]:
    """The same of blocks `(filters, columns, B)`."""
    norms = np.linalg.norm(blocks, axis=-1, keepdims=True)
    units = np.divide(blocks, norms, out=np.zeros_like(blocks), where=norms > 0)
    if order is not None:
        units = units.reshape(-1, units.shape[-1])[order].reshape(units.shape)
    return _mean_product(units[:, :-1], units[:, 1:]), _mean_product(units[:-1], units[1:])


def _mean_product(first: np.ndarray, second: np.ndarray) -> float:
    return _mean((first * second).sum(axis=-1))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


@dataclasses.dataclass(frozen=True)
class SmoothnessReport:
    """Mean cosines of neighbouring kernels; prints as a table.

    Attributes:
        layers: names of the kernels.
        shapes: their shapes.
        cosines: a dict from order (`"as trained"`, `"cross_filter, greedy"`, ...) to a
            float64 array `(layers, 2)`, along channels and along filters.
        permutations: a dict from order to the `Permutation`, for `NeRNModel`.
        metric: what the orders that were searched for call near.
    """

    layers: list
    shapes: list
    cosines: dict
    permutations: dict
    metric: str

    @property
    def bits(self) -> dict[str, float]:
        """A dict from order to the bits it costs."""
        return {order: one.bits for order, one in self.permutations.items()}

    def mean(self, order: str) -> np.ndarray:
        """The mean over all layers, along channels and along filters: `(2,)`."""
        return np.array([_mean(axis[~np.isnan(axis)]) for axis in self.cosines[order].T])

    def plot(self) -> "Figure":
        """Draws the cosines along channels of every layer, a line for each order.

        Returns:
            A `matplotlib.figure.Figure`, not attached to any window.
        """
        from keras_nern.analysis.plots import plot_smoothness

        return plot_smoothness(self)

    def __str__(self) -> str:
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
                "Mean cosine of neighbouring kernels, along channels / along filters; "
                f"orders by {self.metric}",
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
    model: keras.Model,
    kinds: str | Permutation | Sequence[str | Permutation] = ("in_filter", "cross_filter"),
    methods: str | Sequence[str] = ("greedy",),
    metric: str = "euclidean",
    verbose: str | int = "auto",
    **selection: Any,
) -> SmoothnessReport:
    """Measures how smooth a model's kernels are, and would be under permutations.

    Args:
        model: a built `keras.Model`; for a `NeRNModel` give its `base`, and its
            `kernel_permutation()` among the kinds.
        kinds: of permutation (see `permutations`), each found by every method; or a
            `Permutation` to be measured as it is. Defaults to both kinds.
        methods: of finding one (see `tours`). Defaults to `("greedy",)`.
        metric: what they call near. Defaults to `"euclidean"`, as for `NeRNModel`; what is
            measured are cosines.
        verbose: as for `Permutation.from_model`. Defaults to `"auto"`.
        **selection: arguments of `blocks.Blocks` (`view`, `include`, ...), as they are
            given to `NeRNModel`.

    Returns:
        A `SmoothnessReport`: print it, or `plot()` it. Its `permutations` are those found.

    Raises:
        ValueError: for another kind, method or metric, before any is computed, a
            `Permutation` of another model, or a model without kernels to represent.

    Example:

    >>> report = keras_nern.smoothness_report(base)
    >>> print(report)
    >>> nern = keras_nern.NeRNModel(base, permutation=report.permutations["in_filter, greedy"])
    """
    kinds = (kinds,) if isinstance(kinds, (str, Permutation)) else kinds
    methods = (methods,) if isinstance(methods, str) else methods
    given = [kind for kind in kinds if isinstance(kind, Permutation)]
    wanted = [
        (kind, method) for kind in kinds if not isinstance(kind, Permutation) for method in methods
    ]
    for kind, method in wanted:
        validate_names(kind, method, metric)
    blocks = Blocks(model, **selection)
    for permutation in given:
        permutation.check(blocks.grids)
    for kind, method in wanted:
        Permutation.check_size(blocks.grids, kind, method)
    permutations = {AS_TRAINED: Permutation.from_model(blocks, None)}
    for number, permutation in enumerate(given, start=1):
        name = f"{permutation.kind}, given"
        permutations[name if name not in permutations else f"{name} ({number})"] = permutation
    for kind, method in wanted:
        found = Permutation.from_model(blocks, kind, method, metric, verbose)
        permutations[f"{kind}, {method}"] = found
    cosines = {
        name: np.array(
            [
                _cosines(blocks.kernel_blocks(index).astype("float64"), order)
                for index, order in enumerate(permutation.orders)
            ]
        )
        for name, permutation in permutations.items()
    }
    return SmoothnessReport(
        layers=[kernel.name for kernel in blocks.kernels],
        shapes=[kernel.shape for kernel in blocks.kernels],
        cosines=cosines,
        permutations=permutations,
        metric=metric,
    )
