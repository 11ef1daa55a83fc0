"""The (layer, filter, column) coordinate of every block.

A layer l of F filters by C columns of blocks (see `blocks`) owns the grid

    (l, f, c),    0 <= f < F,  0 <= c < C,

and position p = f * C + c of that grid belongs to the p-th block in the layer's order.
Unpermuted, a block's coordinate names its own filter and column; permuted, similar blocks
get neighbouring coordinates (see `permutations`). The weights themselves never move.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_nern.hints import Grid


def kernel_coordinates(
    grids: Iterable[Grid], orders: Sequence[ArrayLike] | None = None
) -> np.ndarray:
    """Gives every block of a network its coordinate.

    Args:
        grids: for each layer `(filters, columns)`.
        orders: for each layer an int array `(filters * columns,)`, `order[p]` the block
            at grid position p; `None` leaves all as they stand. Defaults to `None`.

    Returns:
        int32 array `(blocks, 3)` of (layer, filter, column). Rows follow the blocks:
        layer by layer, and block `filter * columns + column` within each.

    Raises:
        ValueError: where an order is not a permutation of its layer's blocks.

    Example:

    >>> kernel_coordinates([(1, 2)], [np.array([1, 0])])
    array([[0, 0, 1],
           [0, 0, 0]], dtype=int32)
    """
    rows = []
    for index, (filters, columns) in enumerate(grids):
        position = np.arange(filters * columns)
        grid = np.stack(
            [np.full_like(position, index), position // columns, position % columns], axis=1
        )
        if orders is None:
            rows.append(grid)
            continue
        order = np.asarray(orders[index])
        check_order(order, len(position), index)
        permuted = np.empty_like(grid)
        permuted[order] = grid
        rows.append(permuted)
    return np.concatenate(rows).astype("int32")


def check_order(order: np.ndarray, count: int, index: int) -> None:
    """Raises a ValueError unless layer `index`'s order is a permutation of `range(count)`."""
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(
            f"The order of layer {index} must be a permutation of range({count}). "
            f"Received: {order!r}"
        )
