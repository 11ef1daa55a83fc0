"""Orders in which a layer's kernels are smooth.

A predictor fits a smooth function of the coordinate best, but the kernels of a trained network are
in no particular order. NeRN therefore permutes the *coordinates*, so that neighboring coordinates
belong to similar kernels (Ashkenazi et al., ICLR 2023, section 3.2); the weights stay in place. A
layer is a grid of F filters by C columns of blocks (see `network.blocks`; in the paper, a column is
a channel and a block is a kernel). There are two kinds of permutation:

* *cross-filter* orders all F * C blocks of a layer together. Storing it takes log2((F * C)!) bits.
* *in-filter* orders the C blocks within each filter, then the filters as vectors of their reordered
  blocks. Storing it takes F * log2(C!) + log2(F!) bits.

`tours` finds the orders. An order is an integer array: `order[p]` is the number of the block at
position p, and the block of filter f and column c has the number f * C + c.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.tours import METHODS, order_vectors
from keras_nern.utils import checks
from keras_nern.utils.types import Grid, Progress

KINDS = (None, "in_filter", "cross_filter")


def check_permutation_arguments(
    kind: object,
    method: object = "greedy",
    metric: object = "euclidean",
    names: tuple[str, str] = ("kind", "method"),
) -> None:
    """Raises a ValueError if the kind of permutation, the method or the metric is unknown.

    Args:
        kind, method, metric: as for `block_order`.
        names: the names of the arguments `kind` and `method`, for the error. Defaults to
            `("kind", "method")`.
    """
    checks.one_of(names[0], kind, KINDS)
    checks.one_of(names[1], method, METHODS)
    checks.one_of("metric", metric, METRICS)


def check_order(order: np.ndarray, count: int, index: int, name: str = "order") -> None:
    """Raises a ValueError unless layer `index`'s order is a permutation of `range(count)`."""
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(
            f"The {name} of layer {index} must be a permutation of range({count}). "
            f"Received: {order!r}"
        )


def block_order(
    blocks: ArrayLike,
    kind: str | None = None,
    method: str = "greedy",
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> np.ndarray:
    """Finds a smooth order of a layer's blocks.

    Args:
        blocks: array `(filters, columns, B)`.
        kind: `"in_filter"`, `"cross_filter"`, or `None` for the original order. Defaults to
            `None`.
        method: `"greedy"`, `"two_opt"` or `"fast_tsp"`. Defaults to `"greedy"`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
        progress: as for `tours.order_vectors`. Defaults to `None`.

    Returns:
        int64 array `(filters * columns,)` of block numbers. In an in-filter order, the positions
        `f * columns` to `(f + 1) * columns - 1` hold the blocks of one filter.

    Raises:
        ValueError: if `kind`, `method` or `metric` is unknown, or a block is not finite.
    """
    check_permutation_arguments(kind, method, metric)
    blocks = np.asarray(blocks)
    filters, columns, length = blocks.shape
    if kind is None:
        return np.arange(filters * columns)
    if kind == "cross_filter":
        return order_vectors(blocks.reshape(-1, length), method, metric, progress)
    within = np.stack([order_vectors(row, method, metric, progress) for row in blocks])
    ordered = np.take_along_axis(blocks, within[:, :, None], axis=1)
    by_filter = order_vectors(ordered.reshape(filters, -1), method, metric, progress)
    return (by_filter[:, None] * columns + within[by_filter]).ravel()


def invert(order: np.ndarray) -> np.ndarray:
    """Computes the positions of blocks from their order.

    Args:
        order: int array `(n,)`, a permutation of `range(n)`.

    Returns:
        int64 array `(n,)`, the inverse permutation: entry i is the position of block i.
    """
    positions = np.empty(len(order), "int64")
    positions[order] = np.arange(len(order))
    return positions


def permutation_bits(grid: Grid, kind: str | None = None) -> float:
    """Computes the number of bits that store a layer's permutation.

    Args:
        grid: `(filters, columns)` of the layer's blocks.
        kind: `None`, `"in_filter"` or `"cross_filter"`. Defaults to `None`.

    Returns:
        The base-2 logarithm of the number of permutations of this kind, a float.

    Raises:
        ValueError: if `kind` is unknown.

    Example:

    >>> round(permutation_bits((1, 4), "cross_filter"), 3)  # log2(4!)
    4.585
    """
    checks.one_of("kind", kind, KINDS)
    filters, columns = grid
    if kind == "cross_filter":
        return _log2_factorial(filters * columns)
    if kind == "in_filter":
        return filters * _log2_factorial(columns) + _log2_factorial(filters)
    return 0.0


def _log2_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(2)
