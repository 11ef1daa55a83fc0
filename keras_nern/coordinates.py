"""The (layer, filter, channel) coordinate of every kernel.

Layer l with kernel (kh, kw, cin, cout) owns the grid

    (l, f, c),    0 <= f < cout,  0 <= c < cin,

and position p = f * cin + c of that grid belongs to the p-th kernel in the layer's
order. Unpermuted, a kernel's coordinate names its own filter and channel; permuted,
kernels of similar direction get neighbouring coordinates (see `permutations`). The
weights themselves never move.
"""

import numpy as np


def kernel_coordinates(shapes, orders=None):
    """Gives every kernel of a network its coordinate.

    Args:
        shapes: the layers' kernel shapes, each `(kh, kw, cin, cout)`.
        orders: for each layer an int array `(cin * cout,)`, `order[p]` the kernel
            at grid position p; `None` leaves all as they stand. Defaults to `None`.

    Returns:
        int32 array `(kernels, 3)` of (layer, filter, channel). Rows follow the
        kernels: layer by layer, and kernel `filter * cin + channel` within each.

    Raises:
        ValueError: where an order is not a permutation of its layer's kernels.

    Example:

    >>> kernel_coordinates([(3, 3, 2, 1)], [np.array([1, 0])])
    array([[0, 0, 1],
           [0, 0, 0]], dtype=int32)
    """
    rows = []
    for index, (_, _, cin, cout) in enumerate(shapes):
        position = np.arange(cin * cout)
        grid = np.stack([np.full_like(position, index), position // cin, position % cin], axis=1)
        if orders is None:
            rows.append(grid)
            continue
        order = np.asarray(orders[index])
        check_order(order, len(position), index)
        permuted = np.empty_like(grid)
        permuted[order] = grid
        rows.append(permuted)
    return np.concatenate(rows).astype("int32")


def check_order(order, count, index):
    """Raises a ValueError unless layer `index`'s order is a permutation of `range(count)`."""
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(
            f"The order of layer {index} must be a permutation of range({count}). "
            f"Received: {order!r}"
        )
