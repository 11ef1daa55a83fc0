"""Smoothness of a network's kernels, as trained and under permutations.

The smoothness of a layer is the mean cosine of neighboring kernels on its grid of filters (rows)
by channels (columns),

    along channels:  mean over f, c of  cos(W[f, c], W[f, c + 1])
    along filters:   mean over f, c of  cos(W[f, c], W[f + 1, c])

where W[f, c] is the kernel at that position. A cosine with a kernel of zeros is 0. Cross-filter
orders run along the rows and therefore raise the smoothness along channels.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.analysis.figure import new_figure, style
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.orders import check_order, check_permutation_arguments
from keras_nern.permutations.permutation import Permutation
from keras_nern.utils import checks
from keras_nern.utils.tables import Printable, Table

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

AS_TRAINED = "as trained"


def neighbour_cosines(kernel: ArrayLike, order: ArrayLike | None = None) -> tuple[float, float]:
    """Computes the mean cosine of a layer's neighboring kernels.

    Args:
        kernel: array `(..., cin, cout)`.
        order: int array `(cin * cout,)` with the number of the kernel at each position, as in
            `Permutation.orders`; `None` for the kernels as trained. Defaults to `None`.

    Returns:
        `(along_channels, along_filters)`: floats, NaN along an axis of length 1.

    Raises:
        ValueError: if `order` is not a permutation of the kernels.

    Example:

    >>> neighbour_cosines(np.ones((3, 3, 2, 1)))
    (1.0, nan)
    """
    blocks = np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1))  # (filters, channels, ...)
    if order is not None:
        check_order(np.asarray(order), blocks.shape[0] * blocks.shape[1], 0)
    return _cosines(blocks.reshape(*blocks.shape[:2], -1), order)


def _cosines(blocks: np.ndarray, order: ArrayLike | None) -> tuple[float, float]:
    """Mean cosines of blocks `(filters, columns, B)`, along columns and along filters."""
    blocks = blocks.astype("float64")
    norms = np.linalg.norm(blocks, axis=-1, keepdims=True)
    units = np.divide(blocks, norms, out=np.zeros_like(blocks), where=norms > 0)
    if order is not None:
        units = units.reshape(-1, units.shape[-1])[order].reshape(units.shape)
    along_columns = (units[:, :-1] * units[:, 1:]).sum(axis=-1)
    along_filters = (units[:-1] * units[1:]).sum(axis=-1)
    return _mean(along_columns), _mean(along_filters)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


@dataclasses.dataclass(frozen=True)
class SmoothnessReport(Printable):
    """Mean cosines of neighboring kernels by layer and order; prints as a table.

    Attributes:
        layers: list of the kernels' names.
        shapes: list of the kernels' shapes.
        cosines: dict from the name of an order (`"as trained"`, `"cross_filter, greedy"`, ...)
            to a float64 array `(layers, 2)`: along channels and along filters.
        permutations: dict from the name of an order to its `Permutation`, for `NeRNModel`.
        metric: metric by which the orders were searched for.
    """

    layers: list
    shapes: list
    cosines: dict
    permutations: dict
    metric: str

    @property
    def bits(self) -> dict[str, float]:
        """A dict from the name of an order to the bits it takes to store."""
        return {order: permutation.bits for order, permutation in self.permutations.items()}

    def mean(self, order: str) -> np.ndarray:
        """The mean over layers, along channels and along filters: float64 `(2,)`."""
        return np.array([_mean(axis[~np.isnan(axis)]) for axis in self.cosines[order].T])

    def tables(self) -> list[Table]:
        """A row for each layer and their mean, and the bits of each order."""
        names = [*self.layers, "mean"]
        shapes = [*("x".join(map(str, shape)) for shape in self.shapes), ""]
        columns = [
            [" / ".join(f"{x:.3f}" for x in row) for row in [*cosines, self.mean(order)]]
            for order, cosines in self.cosines.items()
        ]
        title = (
            "Mean cosine of neighboring kernels, along channels / along filters; "
            f"orders searched for by {self.metric} distance"
        )
        rows = list(zip(names, shapes, *columns, strict=True))
        header = ("layer", "kernel shape", *self.cosines)
        bits = [(order, f"{bits:,.0f}") for order, bits in self.bits.items()]
        return [
            Table(rows, header, footer=True, title=title),
            Table(bits, ("order", "bits"), align="lr"),
        ]

    def plot(self) -> Figure:
        """Draws the mean cosine along channels by layer, with a line for each order.

        Returns:
            A `matplotlib.figure.Figure` that is attached to no window. The layers are on the
            horizontal axis, in the network's order.
        """
        figure = new_figure(figsize=(max(6, 0.35 * len(self.layers)), 5))
        axes = style(figure.subplots())
        places = range(len(self.layers))
        for order, cosines in self.cosines.items():
            axes.plot(places, cosines[:, 0], marker="o", label=order)
        axes.set_xticks(places, self.layers, rotation=90)
        axes.set_ylim(top=1.05)
        axes.set_ylabel("mean cosine along channels")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return figure


def smoothness_report(
    model: keras.Model,
    kinds: str | Permutation | Sequence[str | Permutation] = ("in_filter", "cross_filter"),
    methods: str | Sequence[str] = ("greedy",),
    metric: str = "euclidean",
    verbose: str | int = "auto",
    **selection: typing.Any,
) -> SmoothnessReport:
    """Measures the smoothness of a model's kernels, as trained and under permutations.

    Args:
        model: a built `keras.Model`. For a `NeRNModel`, pass its `base`, and its
            `kernel_permutation()` as one of `kinds`.
        kinds: kinds of permutation to search for, `"in_filter"` or `"cross_filter"`, or
            `Permutation`s to measure as they are. Defaults to both kinds.
        methods: methods of the search, as `permutation_method` of `NeRNModel`. Every kind is
            searched for by every method. Defaults to `("greedy",)`.
        metric: metric of the search, `"euclidean"` or `"cosine"`. The report contains cosines
            in either case. Defaults to `"euclidean"`.
        verbose: as for `Permutation.from_model`. Defaults to `"auto"`.
        **selection: `view`, `block_size`, `include`, `exclude` and `include_dense`, as for
            `NeRNModel`.

    Returns:
        A `SmoothnessReport` to print or `plot()`. Its `permutations` hold the orders found.

    Raises:
        ValueError: before any search, if a kind, method or metric is unknown, if a
            `Permutation` is that of another model, or if the model has no kernels to represent.

    Example:

    >>> report = keras_nern.smoothness_report(base)
    >>> print(report)
    >>> nern = keras_nern.NeRNModel(base, permutation=report.permutations["in_filter, greedy"])
    """
    kinds = (kinds,) if isinstance(kinds, (str, Permutation)) else kinds
    methods = (methods,) if isinstance(methods, str) else methods
    checks.instance("kinds", kinds, (list, tuple), "a kind of permutation or a list of them")
    checks.instance("methods", methods, (list, tuple), "a method or a list of methods")
    checks.one_of("metric", metric, METRICS)
    checks.one_of("verbose", verbose, ("auto", 0, 1))
    given = [kind for kind in kinds if isinstance(kind, Permutation)]
    searched = [
        (kind, method) for kind in kinds if not isinstance(kind, Permutation) for method in methods
    ]
    for kind, method in searched:
        check_permutation_arguments(kind, method, metric, ("kinds", "methods"))
    blocks = Blocks(model, **selection)
    for permutation in given:
        permutation.check_grids(blocks.grids, "kinds")
    for kind, method in searched:
        Permutation.check_method(blocks.grids, kind, method)
    permutations = {AS_TRAINED: Permutation.from_model(blocks, None)}
    for number, permutation in enumerate(given, start=1):
        name = f"{permutation.kind}, given"
        permutations[name if name not in permutations else f"{name} ({number})"] = permutation
    for kind, method in searched:
        permutations[f"{kind}, {method}"] = Permutation.from_model(
            blocks, kind, method, metric, verbose
        )
    layers = [blocks.kernel_blocks(index) for index in range(len(blocks.kernels))]
    cosines = {
        name: np.array([_cosines(*pair) for pair in zip(layers, permutation.orders, strict=True)])
        for name, permutation in permutations.items()
    }
    return SmoothnessReport(
        layers=[kernel.name for kernel in blocks.kernels],
        shapes=[kernel.shape for kernel in blocks.kernels],
        cosines=cosines,
        permutations=permutations,
        metric=metric,
    )
