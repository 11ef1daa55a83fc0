"""Orders in which a layer's kernels are smooth, without moving a weight.

A predictor learns a smooth function of the coordinate most easily, and a trained
network's kernels come in no order at all. NeRN therefore permutes the *coordinates*
so that neighbouring ones belong to similar kernels (Ashkenazi et al., ICLR 2023,
section 3.2). A layer is a grid of F filters by C columns of blocks (see `blocks`; in the
paper's view, a column is a channel and a block a kernel). What is ordered is either

* *cross-filter*: all F * C blocks of a layer together. It costs log2((F * C)!) bits to keep.
* *in-filter*: the C blocks within each filter, then the filters, each compared as the
  vector of its reordered blocks. It costs F * log2(C!) + log2(F!) bits.

How a short path through blocks or filters is found, and what a short step is, is in
`tours`. An order is an integer array: `order[p]` is the number of the block at position p,
block `filter * C + column` being that of filter and column.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.tours import METHODS, order_vectors
from keras_nern.utils import checks
from keras_nern.utils.types import Grid, Progress

KINDS = (None, "in_filter", "cross_filter")


def validate_names(kind: object, method: object = "greedy", metric: object = "euclidean") -> None:
    """Raises a ValueError for another kind, method or metric than there are."""
    checks.one_of("permutation", kind, KINDS)
    checks.one_of("permutation_method", method, METHODS)
    checks.one_of("metric", metric, METRICS)


def block_order(
    blocks: ArrayLike,
    kind: str | None = None,
    method: str = "greedy",
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> np.ndarray:
    """The order of one layer's blocks.

    Args:
        blocks: array `(filters, columns, B)`.
        kind: `None` (as they stand), `"in_filter"` or `"cross_filter"`. Defaults to
            `None`.
        method: `"greedy"`, `"two_opt"` or `"fast_tsp"`. Defaults to `"greedy"`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
        progress: as for `tours.order_vectors`. Defaults to `None`.

    Returns:
        int64 array `(filters * columns,)` of block numbers; in-filter, positions
        `f * columns` to `(f + 1) * columns - 1` all belong to one filter.

    Raises:
        ValueError: for another kind, method or metric.
    """
    validate_names(kind, method, metric)
    blocks = np.asarray(blocks)
    filters, columns, length = blocks.shape
    if kind is None:
        return np.arange(filters * columns)
    if kind == "cross_filter":
        return order_vectors(blocks.reshape(-1, length), method, metric, progress)
    within = np.stack([order_vectors(one, method, metric, progress) for one in blocks])
    ordered = np.take_along_axis(blocks, within[:, :, None], axis=1)
    by_filter = order_vectors(ordered.reshape(filters, -1), method, metric, progress)
    return (by_filter[:, None] * columns + within[by_filter]).ravel()


def invert(order: np.ndarray) -> np.ndarray:
    """The inverse: `invert(order)[i]` is the position of kernel i.

    Args:
        order: int array `(n,)`, a permutation of `range(n)`.

    Returns:
        int64 array `(n,)`.
    """
    inverse = np.empty(len(order), "int64")
    inverse[order] = np.arange(len(order))
    return inverse


def permutation_bits(grid: Grid, kind: str | None = None) -> float:
    """The bits it takes to keep a layer's permutation.

    Args:
        grid: `(filters, columns)` of the layer's blocks.
        kind: `None`, `"in_filter"` or `"cross_filter"`. Defaults to `None`.

    Returns:
        The logarithm, to base 2, of the number of possible permutations: a float.

    Raises:
        ValueError: for another kind.

    Example:

    >>> round(permutation_bits((1, 4), "cross_filter"), 3)  # log2(4!)
    4.585
    """
    checks.one_of("permutation", kind, KINDS)
    filters, columns = grid
    if kind == "cross_filter":
        return _log2_factorial(filters * columns)
    if kind == "in_filter":
        return filters * _log2_factorial(columns) + _log2_factorial(filters)
    return 0.0


def _log2_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(2)
