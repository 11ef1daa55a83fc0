"""The orders of all layers of a network, as one object that is kept and loaded.

What an order is, of which kinds there are, and what it costs in bits is told in `orders`.
"""

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.network.blocks import Blocks, check_order, kernel_coordinates
from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.orders import block_order, invert, permutation_bits, validate_names
from keras_nern.permutations.tours import METHODS, PASSES, check_fast_tsp
from keras_nern.utils.files import atomic_write
from keras_nern.utils.types import Grid

INFLATES = 500  # how many times its size a file may at most unpack to
# What zipfile, zlib and NumPy raise for files that are none of theirs, or damaged.
DAMAGED = (
    *(ValueError, KeyError, IndexError, TypeError, EOFError, OSError, OverflowError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)
PROGRESS_FROM = 50_000  # blocks from which on a progress bar is shown


class Permutation:
    """The order of the blocks in every layer of a network: computed once, and kept.

    Args:
        grids: for each layer `(filters, columns)`.
        orders: for each layer an int array `(filters * columns,)`, `order[p]` the block at
            position p; `None` for the blocks as they stand. Defaults to `None`.
        kind: `None`, `"in_filter"` or `"cross_filter"`, which tells what bits the
            orders cost. Defaults to `"cross_filter"`.
        method, metric: by which the orders were found, for information; `None` where that
            is not known. Default to `None`.

    Attributes:
        grids: tuple of `(filters, columns)`.
        orders: tuple of int64 arrays, not to be written to.
        kind, method, metric: as given.

    Raises:
        ValueError: for another kind, method or metric, or orders that are not
            permutations of that kind.

    Example:

    >>> permutation = Permutation.from_model(base, "cross_filter")
    >>> permutation.save("resnet20.npz")
    >>> nern = keras_nern.NeRNModel(base, permutation=Permutation.load("resnet20.npz"))

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554, section 3.2.
    """

    def __init__(
        self,
        grids: ArrayLike,
        orders: Sequence[ArrayLike] | None = None,
        kind: str | None = "cross_filter",
        method: str | None = None,
        metric: str | None = None,
    ) -> None:
        validate_names(kind, method or METHODS[0], metric or METRICS[0])
        self.kind = kind
        self.method = method
        self.metric = metric
        grids = np.asarray(grids)
        if grids.ndim != 2 or grids.shape[1] != 2 or not _counts(grids):
            raise ValueError(
                "Expected grids of (filters, columns), integers of at least 1, at least one. "
                f"Received: {grids!r}"
            )
        self.grids = tuple(map(tuple, grids.tolist()))
        counts = [math.prod(grid) for grid in self.grids]
        if orders is None:
            orders = [np.arange(count) for count in counts]
        if len(orders) != len(counts):
            raise ValueError(
                f"Expected one order for each of {len(counts)} layers. Received: {len(orders)}"
            )
        for index, order in enumerate(orders):
            if not np.issubdtype(np.asarray(order).dtype, np.integer):
                raise ValueError(
                    f"The order of layer {index} must be integers. Received: {order!r}"
                )
        self.orders = tuple(np.array(order, "int64") for order in orders)
        for index, (order, grid) in enumerate(zip(self.orders, self.grids, strict=True)):
            _check_kind(order, grid, kind, index)
            order.flags.writeable = False

    @classmethod
    def from_model(
        cls,
        model: keras.Model | Blocks,
        kind: str | None = "cross_filter",
        method: str = "greedy",
        metric: str = "euclidean",
        verbose: str | int = "auto",
        **selection: Any,
    ) -> Self:
        """Finds the order of a model's blocks.

        Args:
            model: a built `keras.Model`, or its `blocks.Blocks`.
            kind: `None` (as they stand), `"in_filter"` or `"cross_filter"`. Defaults to
                `"cross_filter"`.
            method: `"greedy"`, `"two_opt"` or `"fast_tsp"` (see `tours`). Defaults to
                `"greedy"`.
            metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
            verbose: 1 for a progress bar, 0 for none, `"auto"` for one where there are
                `PROGRESS_FROM` blocks or more. Defaults to `"auto"`.
            **selection: arguments of `blocks.Blocks` (`view`, `include`, ...), as they
                are given to `NeRNModel`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: for another kind, method or metric, or a layer too large for
                `"fast_tsp"`.
            ImportError: where `"fast_tsp"` is not installed.
        """
        validate_names(kind, method, metric)
        blocks = model if isinstance(model, Blocks) else Blocks(model, **selection)
        cls.check_size(blocks.grids, kind, method)
        if kind is None:
            return cls(blocks.grids, None, kind, method, metric)
        progress = None
        if verbose == 1 or (verbose == "auto" and blocks.num_blocks >= PROGRESS_FROM):
            paths = blocks.num_blocks  # what all paths have to visit
            if kind == "in_filter":
                paths += sum(filters for filters, _ in blocks.grids)
            bar = keras.utils.Progbar(PASSES[method] * paths, unit_name="block")
            progress = bar.add
        orders = [
            block_order(blocks.kernel_blocks(index), kind, method, metric, progress)
            for index in range(len(blocks.kernels))
        ]
        return cls(blocks.grids, orders, kind, method, metric)

    @classmethod
    def from_positions(
        cls,
        positions: ArrayLike,
        grids: Sequence[Grid],
        kind: str | None = "cross_filter",
        method: str | None = None,
        metric: str | None = None,
    ) -> Self:
        """Reads the orders from positions, the inverse of `positions`.

        Args:
            positions: int array `(blocks,)`.
            grids: for each layer `(filters, columns)`.
            kind, method, metric: as for the constructor. Default to `"cross_filter"`,
                `None` and `None`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: as the constructor does.
        """
        ends = np.cumsum([math.prod(grid) for grid in grids])
        parts = np.split(np.asarray(positions), ends[:-1])
        for index, part in enumerate(parts):
            check_order(part, math.prod(grids[index]), index)
        return cls(grids, [invert(part) for part in parts], kind, method, metric)

    @staticmethod
    def check_size(grids: Iterable[Grid], kind: str | None, method: str) -> None:
        """Raises an error, before anything is ordered, where a layer is too large."""
        if kind is not None and method == "fast_tsp":
            for filters, columns in grids:
                cross = kind == "cross_filter"
                check_fast_tsp(filters * columns if cross else max(filters, columns))

    def check(self, grids: Iterable[Grid]) -> None:
        """Raises a ValueError unless this is the order of the blocks of these grids."""
        expected = tuple((filters, columns) for filters, columns in grids)
        if expected != self.grids:
            raise ValueError(
                "Expected a permutation of the base's blocks, in layers of (filters, columns) = "
                f"{list(expected)}. Received: one of blocks in {list(self.grids)}"
            )

    def positions(self) -> np.ndarray:
        """Where each block stands in its layer: int32 `(blocks,)`, layer by layer."""
        return np.concatenate([invert(order) for order in self.orders]).astype("int32")

    def coordinates(self) -> np.ndarray:
        """The blocks' coordinates, permuted: int32 `(blocks, 3)`, see `coordinates`."""
        return kernel_coordinates(self.grids, self.orders)

    def inverse(self) -> "Permutation":
        """The permutation that undoes this one: its `order[i]` is the position of block i."""
        return Permutation(self.grids, [invert(order) for order in self.orders], self.kind)

    @property
    def layer_bits(self) -> list[float]:
        """The bits that each layer's order costs, a list of floats."""
        return [permutation_bits(grid, self.kind) for grid in self.grids]

    @property
    def bits(self) -> float:
        """The bits that all orders cost together."""
        return sum(self.layer_bits)

    def digest(self) -> str:
        """SHA-256 of kind, grids and orders, in hexadecimal: the same for equal permutations."""
        sha = hashlib.sha256(repr((self.kind, self.grids)).encode())
        for order in self.orders:
            sha.update(order.astype("<i8").tobytes())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file, whole or not at all.

        Args:
            path: where to; a file that is there is replaced.
        """
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file,
                kind=np.array(self.kind or ""),
                method=np.array(self.method or ""),
                metric=np.array(self.metric or ""),
                grids=np.array(self.grids, "int64").reshape(-1, 2),
                orders=np.concatenate([np.empty(0, "int32"), *self.orders]).astype("int32"),
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote.

        Args:
            path: of the file.

        Returns:
            A `Permutation`.

        Raises:
            OSError: where the file cannot be opened.
            ValueError: where it holds no permutation.
        """
        with open(path, "rb") as file:
            return cls._read(file, path)

    @classmethod
    def _read(cls, file: BinaryIO, path: str | os.PathLike) -> Self:
        try:
            with zipfile.ZipFile(file) as members:
                size = sum(member.file_size for member in members.infolist())
            if size > max(2**20, INFLATES * os.stat(path).st_size):
                raise ValueError(f"it would take {size:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                grids, orders = arrays["grids"], arrays["orders"]
                names = [str(arrays[name]) or None for name in ("kind", "method", "metric")]
            counts = np.prod(grids, axis=1)
            if counts.sum() != len(orders):
                raise ValueError(f"{len(orders)} entries for {counts.sum()} blocks")
            return cls(grids, np.split(orders, np.cumsum(counts)[:-1]), *names)
        except DAMAGED as error:
            raise ValueError(
                f"Expected a file that Permutation.save wrote. Received: {str(path)!r} ({error})"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        same = (self.kind, self.grids) == (other.kind, other.grids)
        return same and all(map(np.array_equal, self.orders, other.orders))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count = sum(len(order) for order in self.orders)
        return (
            f"<Permutation {self.kind!r} of {count:,} blocks in {len(self.grids)} layers, "
            f"{self.bits:,.0f} bits>"
        )


def _counts(array: np.ndarray) -> bool:
    return bool(len(array)) and np.issubdtype(array.dtype, np.integer) and bool((array >= 1).all())


def _check_kind(order: np.ndarray, grid: Grid, kind: str | None, index: int) -> None:
    filters, columns = grid
    check_order(order, filters * columns, index)
    if kind is None and not np.array_equal(order, np.arange(filters * columns)):
        raise ValueError(
            f"The order of layer {index} must be range({filters * columns}) where kind is None"
        )
    if kind == "in_filter":
        owners = order.reshape(filters, columns) // columns
        if (owners != owners[:, :1]).any():
            raise ValueError(
                f"The order of layer {index} must keep the blocks of each filter together "
                "where kind is 'in_filter'"
            )
