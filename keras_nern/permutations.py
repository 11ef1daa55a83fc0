"""Orders in which a layer's kernels are smooth, without moving a weight.

A predictor learns a smooth function of the coordinate most easily, and a trained
network's kernels come in no order at all. NeRN therefore permutes the *coordinates*
so that neighbouring ones belong to similar kernels (Ashkenazi et al., ICLR 2023,
section 3.2). What is ordered is either

* *cross-filter*: all cin * cout kernels of a layer together. It costs
  log2((cin * cout)!) bits to keep.
* *in-filter*: the cin kernels within each filter, then the filters, each compared as
  the vector of its reordered kernels. It costs cout * log2(cin!) + log2(cout!) bits.

How a short path through kernels or filters is found, and what a short step is, is in
`tours`. An order is an integer array: `order[p]` is the index of the kernel at
position p, kernel `filter * cin + channel` being that of filter and channel.
"""

import math
import zipfile

import keras
import numpy as np

from keras_nern.coordinates import check_order, kernel_coordinates
from keras_nern.files import whole_file
from keras_nern.kernels import find_convolutions, kernel_to_blocks
from keras_nern.tours import METHODS, METRICS, order_vectors, validate

PERMUTATIONS = (None, "in_filter", "cross_filter")
PROGRESS_FROM = 50_000  # kernels from which on a progress bar is shown


class Permutation:
    """The order of the kernels in every layer of a network: computed once, and kept.

    Args:
        shapes: the layers' kernel shapes, each `(kh, kw, cin, cout)`.
        orders: for each layer an int array `(cin * cout,)`, `order[p]` the kernel at
            position p; `None` for the kernels as they stand. Defaults to `None`.
        kind: `None`, `"in_filter"` or `"cross_filter"`, which tells what bits the
            orders cost. Defaults to `"cross_filter"`.

    Attributes:
        shapes: tuple of `(kh, kw, cin, cout)`.
        orders: tuple of int64 arrays, not to be written to.
        kind: as given.

    Raises:
        ValueError: for another kind, or orders that are not permutations of that kind.

    Example:

    >>> permutation = Permutation.of(base, "cross_filter")
    >>> permutation.save("resnet20.npz")
    >>> nern = keras_nern.NeRNModel(base, permutation=Permutation.load("resnet20.npz"))

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554, section 3.2.
    """

    def __init__(self, shapes, orders=None, kind="cross_filter"):
        validate("permutation", kind, PERMUTATIONS)
        self.kind = kind
        self.shapes = tuple(tuple(int(side) for side in shape) for shape in shapes)
        counts = [shape[2] * shape[3] for shape in self.shapes]
        if orders is None:
            orders = [np.arange(count) for count in counts]
        if len(orders) != len(counts):
            raise ValueError(
                f"Expected one order for each of {len(counts)} layers. Received: {len(orders)}"
            )
        self.orders = tuple(np.array(order, "int64") for order in orders)
        for index, (order, shape) in enumerate(zip(self.orders, self.shapes, strict=True)):
            _check_kind(order, shape, kind, index)
            order.flags.writeable = False

    @classmethod
    def of(cls, model, kind="cross_filter", method="greedy", metric="euclidean", verbose="auto"):
        """Finds the order of a model's kernels.

        Args:
            model: a built `keras.Model` with 2-D convolutions.
            kind: `None` (as they stand), `"in_filter"` or `"cross_filter"`. Defaults to
                `"cross_filter"`.
            method: `"greedy"`, `"two_opt"` or `"fast_tsp"` (see `tours`). Defaults to
                `"greedy"`.
            metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
            verbose: 1 for a progress bar, 0 for none, `"auto"` for one where there are
                `PROGRESS_FROM` kernels or more. Defaults to `"auto"`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: for another kind, method or metric, or a layer too large for
                `"fast_tsp"`.
            ImportError: where `"fast_tsp"` is not installed.
        """
        cls.validate(kind, method, metric)
        convolutions = find_convolutions(model)
        shapes = [conv.shape for conv in convolutions]
        if kind is None:
            return cls(shapes, kind=None)
        total = sum(conv.num_kernels for conv in convolutions)
        progress = None
        if verbose == 1 or (verbose == "auto" and total >= PROGRESS_FROM):
            phases = 1 if method == "greedy" else 2
            bar = keras.utils.Progbar(phases * total, unit_name="kernel")
            progress = bar.add
        orders = [
            kernel_order(conv.layer.kernel.numpy(), kind, method, metric, progress)
            for conv in convolutions
        ]
        return cls(shapes, orders, kind)

    @classmethod
    def from_coordinates(cls, coordinates, shapes, kind="cross_filter"):
        """Reads the orders from permuted coordinates, the inverse of `coordinates`.

        Args:
            coordinates: int array `(kernels, 3)` of (layer, filter, channel).
            shapes: the layers' kernel shapes, each `(kh, kw, cin, cout)`.
            kind: as for the constructor. Defaults to `"cross_filter"`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: as the constructor does.
        """
        coordinates = np.asarray(coordinates)
        ends = np.cumsum([shape[2] * shape[3] for shape in shapes])
        orders = [
            np.argsort(rows[:, 1] * shape[2] + rows[:, 2])
            for rows, shape in zip(np.split(coordinates, ends[:-1]), shapes, strict=True)
        ]
        return cls(shapes, orders, kind)

    @staticmethod
    def validate(kind, method="greedy", metric="euclidean"):
        """Raises a ValueError for another kind, method or metric than there are."""
        validate("permutation", kind, PERMUTATIONS)
        validate("permutation_method", method, METHODS)
        validate("metric", metric, METRICS)

    def check(self, shapes):
        """Raises a ValueError unless this is the order of kernels of these shapes."""
        shapes = tuple(map(tuple, shapes))
        if shapes != self.shapes:
            raise ValueError(
                "Expected a permutation of the base's kernels, of the shapes "
                f"{list(shapes)}. Received: one of kernels of the shapes {list(self.shapes)}"
            )

    def coordinates(self):
        """The kernels' coordinates, permuted: int32 `(kernels, 3)`, see `coordinates`."""
        return kernel_coordinates(self.shapes, self.orders)

    def inverse(self):
        """The permutation that undoes this one: its `order[i]` is the position of kernel i."""
        return Permutation(self.shapes, [invert(order) for order in self.orders], self.kind)

    @property
    def layer_bits(self):
        """The bits that each layer's order costs, a list of floats."""
        return [permutation_bits(shape, self.kind) for shape in self.shapes]

    @property
    def bits(self):
        """The bits that all orders cost together."""
        return sum(self.layer_bits)

    def save(self, path):
        """Writes an `.npz` file, whole or not at all.

        Args:
            path: where to; a file that is there is replaced.
        """
        with whole_file(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file,
                kind=np.array(self.kind or ""),
                shapes=np.array(self.shapes, "int64").reshape(-1, 4),
                orders=np.concatenate([np.empty(0, "int32"), *self.orders]).astype("int32"),
            )

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Args:
            path: of the file.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: where the file holds no permutation.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                kind, shapes, orders = (arrays[name] for name in ("kind", "shapes", "orders"))
            counts = np.prod(shapes[:, 2:], axis=1)
            if counts.sum() != len(orders):
                raise ValueError(f"{len(orders)} entries for {counts.sum()} kernels")
            return cls(shapes, np.split(orders, np.cumsum(counts)[:-1]), str(kind) or None)
        except (ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"Expected a file that Permutation.save wrote. Received: {str(path)!r} ({error})"
            ) from error

    def __eq__(self, other):
        if not isinstance(other, Permutation):
            return NotImplemented
        same = (self.kind, self.shapes) == (other.kind, other.shapes)
        return same and all(map(np.array_equal, self.orders, other.orders))

    __hash__ = None

    def __repr__(self):
        kernels = sum(len(order) for order in self.orders)
        return (
            f"<Permutation {self.kind!r} of {kernels:,} kernels in {len(self.shapes)} layers, "
            f"{self.bits:,.0f} bits>"
        )


def kernel_order(kernel, kind=None, method="greedy", metric="euclidean", progress=None):
    """The order of one layer's kernels.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        kind: `None` (as they stand), `"in_filter"` or `"cross_filter"`. Defaults to
            `None`.
        method: `"greedy"`, `"two_opt"` or `"fast_tsp"`. Defaults to `"greedy"`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
        progress: as for `tours.order_vectors`. Defaults to `None`.

    Returns:
        int64 array `(cin * cout,)` of kernel indices; in-filter, positions `f * cin` to
        `(f + 1) * cin - 1` all belong to one filter.

    Raises:
        ValueError: for another kind, method or metric.
    """
    Permutation.validate(kind, method, metric)
    kernel = np.asarray(kernel)
    _, _, cin, cout = kernel.shape
    if kind is None:
        return np.arange(cin * cout)
    blocks = kernel_to_blocks(kernel, max(kernel.shape[:2]))
    if kind == "cross_filter":
        return order_vectors(blocks, method, metric, progress)
    filters = blocks.reshape(cout, cin, -1)
    channels = np.stack([order_vectors(one, method, metric, progress) for one in filters])
    ordered = np.take_along_axis(filters, channels[:, :, None], axis=1)
    by_filter = order_vectors(ordered.reshape(cout, -1), method, metric)
    return (by_filter[:, None] * cin + channels[by_filter]).ravel()


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


def permutation_bits(shape, kind=None):
    """The bits it takes to keep a layer's permutation.

    Args:
        shape: `(kh, kw, cin, cout)` of the layer's kernel.
        kind: `None`, `"in_filter"` or `"cross_filter"`. Defaults to `None`.

    Returns:
        The logarithm, to base 2, of the number of possible permutations: a float.

    Raises:
        ValueError: for another kind.

    Example:

    >>> permutation_bits((3, 3, 4, 1), "cross_filter") == math.log2(24)
    True
    """
    validate("permutation", kind, PERMUTATIONS)
    cin, cout = shape[2:]
    if kind == "cross_filter":
        return _log2_factorial(cin * cout)
    if kind == "in_filter":
        return cout * _log2_factorial(cin) + _log2_factorial(cout)
    return 0.0


def _log2_factorial(n):
    return math.lgamma(n + 1) / math.log(2)


def _check_kind(order, shape, kind, index):
    count = shape[2] * shape[3]
    check_order(order, count, index)
    if kind is None and not np.array_equal(order, np.arange(count)):
        raise ValueError(f"The order of layer {index} must be range({count}) where kind is None")
    if kind == "in_filter":
        filters = order.reshape(shape[3], shape[2]) // shape[2]
        if (filters != filters[:, :1]).any():
            raise ValueError(
                f"The order of layer {index} must keep the kernels of each filter together "
                "where kind is 'in_filter'"
            )
