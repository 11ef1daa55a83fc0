"""Orders in which a layer's kernels are smooth, without moving a weight.

A predictor learns a smooth function of the coordinate most easily, and a trained
network's kernels come in no order at all. NeRN therefore permutes the *coordinates*
so that neighbouring ones belong to similar kernels (Ashkenazi et al., ICLR 2023,
section 3.2). An order is built greedily: start at index 0, go on to the nearest kernel
not yet visited (the lowest index among equals), until none is left. Nearest is either

* by *cosine*, as in the paper: the largest  <u, v> / (|u| |v|),  0 where a norm is 0;
* by *euclidean* distance: the smallest  |u - v|,  which keeps the norms smooth as well
  as the directions.

And what is ordered is either

* *cross-filter*: all cin * cout kernels of a layer together. It costs
  log2((cin * cout)!) bits to keep.
* *in-filter*: the cin kernels within each filter, then the filters, each compared as
  the vector of its reordered kernels. It costs cout * log2(cin!) + log2(cout!) bits.

An order is an integer array: `order[p]` is the index of the kernel at position p.
"""

import math

import numpy as np

from keras_nern.kernels import kernel_to_blocks

PERMUTATIONS = (None, "in_filter", "cross_filter")
METRICS = ("cosine", "euclidean")


def greedy_order(vectors, metric="euclidean"):
    """Orders vectors by greedy nearest neighbour.

    Args:
        vectors: array `(n, d)`, n at least 1.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(n,)`, a permutation of `range(n)` that starts with 0.

    Raises:
        ValueError: for another metric.

    Example:

    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 0.1]])
    >>> greedy_order(vectors)
    array([0, 1, 2])
    >>> greedy_order(vectors, metric="cosine")
    array([0, 2, 1])
    """
    validate_metric(metric)
    vectors = np.asarray(vectors, "float32")
    norms = np.linalg.norm(vectors, axis=1)
    if metric == "cosine":
        vectors = np.divide(
            vectors, norms[:, None], out=np.zeros_like(vectors), where=norms[:, None] > 0
        )
        bias = np.zeros_like(norms)
    else:  # |u - v| is smallest where <u, v> - |v|^2 / 2 is largest
        bias = -(norms**2) / 2
    order = np.zeros(len(vectors), "int64")
    score = np.empty_like(bias)
    for position in range(1, len(vectors)):
        last = order[position - 1]
        bias[last] = -np.inf  # visited
        np.matmul(vectors, vectors[last], out=score)
        score += bias
        order[position] = score.argmax()
    return order


def cross_filter_order(kernel, metric="euclidean"):
    """Orders all kernels of a layer together.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(cin * cout,)` of kernel indices (filter * cin + channel).
    """
    return greedy_order(kernel_to_blocks(kernel, max(kernel.shape[:2])), metric)


def in_filter_order(kernel, metric="euclidean"):
    """Orders the kernels within each filter of a layer, then its filters.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(cin * cout,)` of kernel indices (filter * cin + channel);
        positions `f * cin` to `(f + 1) * cin - 1` all belong to one filter.
    """
    _, _, cin, cout = kernel.shape
    filters = kernel_to_blocks(kernel, max(kernel.shape[:2])).reshape(cout, cin, -1)
    channels = np.stack([greedy_order(filter_, metric) for filter_ in filters])  # (cout, cin)
    ordered = np.take_along_axis(filters, channels[:, :, None], axis=1)
    by_filter = greedy_order(ordered.reshape(cout, -1), metric)
    return (by_filter[:, None] * cin + channels[by_filter]).ravel()


def kernel_order(kernel, permutation=None, metric="euclidean"):
    """The order of a layer's kernels under a named permutation.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        permutation: `None` (as they stand), `"in_filter"` or `"cross_filter"`.
            Defaults to `None`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(cin * cout,)` of kernel indices.

    Raises:
        ValueError: for another name.
    """
    validate_permutation(permutation)
    validate_metric(metric)
    if permutation == "cross_filter":
        return cross_filter_order(kernel, metric)
    if permutation == "in_filter":
        return in_filter_order(kernel, metric)
    return np.arange(kernel.shape[2] * kernel.shape[3])


def invert(order):
    """The inverse: `invert(order)[i]` is the position of kernel i.

    Args:
        order: int array `(n,)`, a permutation of `range(n)`.

    Returns:
        int64 array `(n,)`.
    """
    inverse = np.empty(len(order), "int64")
    inverse[order] = np.arange(len(order))
    return inverse


def permutation_bits(shape, permutation=None):
    """The bits it takes to keep a layer's permutation.

    Args:
        shape: `(kh, kw, cin, cout)` of the layer's kernel.
        permutation: `None`, `"in_filter"` or `"cross_filter"`. Defaults to `None`.

    Returns:
        The logarithm, to base 2, of the number of possible permutations: a float.

    Raises:
        ValueError: for another name.

    Example:

    >>> permutation_bits((3, 3, 4, 1), "cross_filter") == math.log2(24)
    True
    """
    validate_permutation(permutation)
    cin, cout = shape[2:]
    if permutation == "cross_filter":
        return _log2_factorial(cin * cout)
    if permutation == "in_filter":
        return cout * _log2_factorial(cin) + _log2_factorial(cout)
    return 0.0


def validate_permutation(permutation):
    """Raises a ValueError unless `permutation` is one of `PERMUTATIONS`."""
    if permutation not in PERMUTATIONS:
        raise ValueError(
            f"permutation must be one of {PERMUTATIONS}. Received: permutation={permutation!r}"
        )


def validate_metric(metric):
    """Raises a ValueError unless `metric` is one of `METRICS`."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}. Received: metric={metric!r}")


def _log2_factorial(n):
    return math.lgamma(n + 1) / math.log(2)
