"""The permutation of a network: the order of the blocks in each of its layers.

`orders` defines the kinds of permutation and the number of bits that store them.
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.network.blocks import Blocks, block_coordinates
from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.orders import (
    block_order,
    check_order,
    check_permutation_arguments,
    invert,
    permutation_bits,
)
from keras_nern.permutations.tours import METHODS, PASSES, check_fast_tsp
from keras_nern.utils import checks
from keras_nern.utils.files import DAMAGED, atomic_write
from keras_nern.utils.progress import Part, Progress
from keras_nern.utils.types import Grid, Path

MAX_RATIO = 500  # largest ratio of a file's unpacked size to its size
PROGRESS_FROM = 50_000  # number of blocks from which `verbose="auto"` shows the progress


class Permutation:
    """The order of the blocks in every layer of a network.

    Finding an order can take long, so a permutation can be saved and reused.

    Args:
        grids: `(filters, columns)` of each layer.
        orders: for each layer an int array `(filters * columns,)`: `order[p]` is the block at
            position p. `None` for the original orders. Defaults to `None`.
        kind: `None`, `"in_filter"` or `"cross_filter"`, which determines the number of bits.
            Defaults to `"cross_filter"`.
        method, metric: method and metric with which the orders were found, which are only stored;
            `None` if unknown. Default to `None`.

    Attributes:
        grids: tuple of `(filters, columns)`.
        orders: tuple of read-only int64 arrays.
        kind, method, metric: as given.

    Raises:
        ValueError: if `kind`, `method` or `metric` is unknown, if a grid is not two integers of
            at least 1, or if an order is not a permutation of this kind.

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
        known_method = METHODS[0] if method is None else method
        check_permutation_arguments(kind, known_method, METRICS[0] if metric is None else metric)
        self.kind = kind
        self.method = method
        self.metric = metric
        self.grids = _checked_grids(grids)
        if orders is None:
            orders = [np.arange(math.prod(grid)) for grid in self.grids]
        if not isinstance(orders, (list, tuple, np.ndarray)) or len(orders) != len(self.grids):
            raise ValueError(
                f"orders must be one order for each of {len(self.grids)} layers. "
                f"Received: {orders!r}"
            )
        self.orders = tuple(
            _checked_order(np.asarray(order), grid, kind, index)
            for index, (order, grid) in enumerate(zip(orders, self.grids, strict=True))
        )

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
        """Finds smooth orders of a model's blocks.

        Args:
            model: a built `keras.Model`, or its `network.blocks.Blocks`.
            kind: `"in_filter"`, `"cross_filter"`, or `None` for the original orders. Defaults
                to `"cross_filter"`.
            method: `"greedy"`, `"two_opt"` or `"fast_tsp"` (see `tours`). Defaults to
                `"greedy"`.
            metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
            verbose: 1 to show the progress, 0 for none, `"auto"` to show it for
                `PROGRESS_FROM` blocks or more. Defaults to `"auto"`.
            **selection: `view`, `block_size`, `include`, `exclude` and `include_dense`, as for
                `NeRNModel`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: if `kind`, `method` or `metric` is unknown, a weight is not finite, or a
                layer has too many blocks for `"fast_tsp"`.
            ImportError: if `method` is `"fast_tsp"` and the package is not installed.
        """
        check_permutation_arguments(kind, method, metric)
        checks.one_of("verbose", verbose, ("auto", 0, 1))
        blocks = model if isinstance(model, Blocks) else Blocks(model, **selection)
        cls.check_method(blocks.grids, kind, method)
        if kind is None:
            return cls(blocks.grids, None, kind, method, metric)
        progress = None
        if verbose == 1 or (verbose == "auto" and blocks.num_blocks >= PROGRESS_FROM):
            vectors = blocks.num_blocks
            if kind == "in_filter":
                vectors += sum(filters for filters, _ in blocks.grids)
            progress = _OrderProgress(PASSES[method] * vectors)
        add = None if progress is None else progress.add
        orders = [
            block_order(blocks.kernel_blocks(index), kind, method, metric, add)
            for index in range(len(blocks.kernels))
        ]
        if progress is not None:
            progress.end()
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
        """Creates a permutation from the array that `positions` returns.

        Args:
            positions: int array `(blocks,)`, the position of each block in its layer, layer by
                layer.
            grids: `(filters, columns)` of each layer.
            kind, method, metric: as for the constructor. Default to `"cross_filter"`, `None` and
                `None`.

        Returns:
            A `Permutation`.

        Raises:
            ValueError: if the positions are not a permutation of this kind.
        """
        counts = [math.prod(grid) for grid in _checked_grids(grids)]
        positions = np.asarray(positions)
        if positions.shape != (sum(counts),) or positions.dtype.kind not in "iu":
            raise ValueError(
                f"positions must be {sum(counts)} integers, one per block. Received: {positions!r}"
            )
        parts = np.split(positions, np.cumsum(counts)[:-1])
        for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
            check_order(part, count, index, "positions")
        return cls(grids, [invert(part) for part in parts], kind, method, metric)

    @staticmethod
    def check_method(grids: Iterable[Grid], kind: str | None, method: str) -> None:
        """Checks that a method can order the blocks of a network.

        Args:
            grids: `(filters, columns)` of each layer.
            kind: `None`, `"in_filter"` or `"cross_filter"`.
            method: `"greedy"`, `"two_opt"` or `"fast_tsp"`.

        Raises:
            ValueError: if a layer has too many blocks for `"fast_tsp"`.
            ImportError: if `method` is `"fast_tsp"` and the package is not installed.
        """
        check_permutation_arguments(kind, method)
        grids = _checked_grids(grids)
        if kind is not None and method == "fast_tsp":
            for filters, columns in grids:
                cross = kind == "cross_filter"
                check_fast_tsp(filters * columns if cross else max(filters, columns))

    def check_grids(self, grids: Iterable[Grid], name: str = "permutation") -> None:
        """Checks that this permutation fits a network.

        Args:
            grids: `(filters, columns)` of the network's layers.
            name: name of the argument that is this permutation, for the error. Defaults to
                `"permutation"`.

        Raises:
            ValueError: if the grids differ from those of this permutation.
        """
        expected = _checked_grids(grids)
        if expected != self.grids:
            raise ValueError(
                f"{name} must be a permutation of the base's blocks, whose grids are (filters, "
                f"columns) = {list(expected)}. Received: one of blocks in {list(self.grids)}"
            )

    def positions(self) -> np.ndarray:
        """The position of each block in its layer: int32 `(blocks,)`, layer by layer."""
        return np.concatenate([invert(order) for order in self.orders]).astype("int32")

    def coordinates(self) -> np.ndarray:
        """The permuted coordinate of each block, (layer, filter, column): int32 `(blocks, 3)`."""
        return block_coordinates(self.grids, self.positions())

    @property
    def layer_bits(self) -> list[float]:
        """The number of bits that store each layer's order."""
        return [permutation_bits(grid, self.kind) for grid in self.grids]

    @property
    def bits(self) -> float:
        """The number of bits that store all orders."""
        return sum(self.layer_bits)

    def digest(self) -> str:
        """The SHA-256 of kind, grids and orders in hexadecimal; equal for equal permutations."""
        sha = hashlib.sha256(repr((self.kind, self.grids)).encode())
        for order in self.orders:
            sha.update(order.astype("<i8").tobytes())
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Saves the permutation as an `.npz` file.

        An existing file is replaced when the new one is complete.

        Args:
            path: path of the file.
        """
        checks.path("path", path)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file,
                kind=np.array(self.kind or ""),
                method=np.array(self.method or ""),
                metric=np.array(self.metric or ""),
                grids=np.array(self.grids, "int64"),
                orders=np.concatenate(self.orders).astype("int32"),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Loads a permutation that `save` wrote.

        Args:
            path: path of the file.

        Returns:
            A `Permutation`.

        Raises:
            OSError: if the file cannot be opened.
            ValueError: if the file is damaged or contains something else.
        """
        checks.path("path", path)
        with open(path, "rb") as file:
            try:
                with zipfile.ZipFile(file) as members:
                    size = sum(member.file_size for member in members.infolist())
                if size > max(2**20, MAX_RATIO * os.stat(path).st_size):
                    raise ValueError(f"it would unpack to {size:,} bytes")
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
                    "Expected a file that was written by Permutation.save. "
                    f"Received: {str(path)!r} ({error})"
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


class _OrderProgress:
    """Shows how many vectors the search for orders has processed.

    Args:
        total: number of vectors to process.
    """

    def __init__(self, total: int) -> None:
        self._progress = Progress(total, "block")
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        """Counts `count` more vectors."""
        self._done += count
        self._progress.update(self._done, part=self._part())

    def end(self) -> None:
        """Shows the line of the whole search."""
        self._progress.end(self._done, part=self._part())

    def _part(self) -> Part:
        return Part("Order: ", self._done, self._total)


def _checked_grids(grids: Any) -> tuple[Grid, ...]:
    """Grids as tuples of two integers of at least 1."""
    try:
        pairs = np.asarray(list(grids) if isinstance(grids, Iterable) else grids)
    except ValueError:  # of different lengths
        pairs = np.asarray(None)
    is_pairs = pairs.ndim == 2 and pairs.shape[1] == 2 and len(pairs) > 0
    if not is_pairs or not np.issubdtype(pairs.dtype, np.integer) or pairs.min() < 1:
        raise ValueError(
            "grids must be at least one pair (filters, columns) of integers of at least 1. "
            f"Received: grids={grids!r}"
        )
    return tuple((filters, columns) for filters, columns in pairs.tolist())


def _checked_order(order: np.ndarray, grid: Grid, kind: str | None, index: int) -> np.ndarray:
    """A read-only int64 copy of layer `index`'s order; raises unless it is of this kind."""
    filters, columns = grid
    if not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"The order of layer {index} must be integers. Received: {order!r}")
    check_order(order, filters * columns, index)
    order = order.astype("int64")
    if kind is None and not np.array_equal(order, np.arange(filters * columns)):
        raise ValueError(
            f"The order of layer {index} must be range({filters * columns}) if kind is None. "
            f"Received: {order!r}"
        )
    if kind == "in_filter":
        owners = order.reshape(filters, columns) // columns
        if (owners != owners[:, :1]).any():
            raise ValueError(
                f"The order of layer {index} must keep the blocks of each filter together "
                f"if kind is 'in_filter'. Received: {order!r}"
            )
    order.flags.writeable = False
    return order
