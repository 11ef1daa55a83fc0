"""Kernels cut into blocks, one for each coordinate a predictor answers.

Each filter's row of weights (see `kernels`) is cut into *blocks* of B weights, so that a
layer is a grid of filters by columns, and (layer, filter, column) the coordinate of a block.
There are two ways to cut, the *views*:

* *crop*, the paper's (Ashkenazi et al., ICLR 2023, section 3): a block for each channel,
  B = k * k for the largest side k of all kernels (k in networks of one spatial axis, k^3 of
  three). A smaller kernel is the centre crop of its block, whose other entries carry no
  weight and count in no loss.
* *block*: B = k * k for a chosen k, and as many blocks as a row has weights for. The row of
  a 1x1 kernel is cut into runs along its channels, a 7x7 kernel into several blocks; only the
  last block of a row may have entries that carry no weight.

Where all kernels are k x k the two are the same. Blocks are numbered layer by layer, filter by
filter, column by column. Nothing is kept for each of them: layer, place and weights of a block
are computed from its number, so that a step costs what its own blocks do.
"""

import math
import numbers
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_nern.network.selection import Choice, find_kernels
from keras_nern.utils import checks
from keras_nern.utils.types import Grid, Tensor

VIEWS = ("crop", "block")
BLOCK_SIZE = 3  # k of the block view, unless another is asked for


class Blocks:
    """The represented kernels of a model, in blocks.

    Args:
        model: a built `keras.Model`.
        view: `"crop"` or `"block"`. Defaults to `"crop"`.
        block_size: k of the block view; `None` for 3. The crop view has no choice.
            Defaults to `None`.
        include, exclude, include_dense: see `selection.find_kernels`.

    Attributes:
        kernels: list of `kernels.Kernel`.
        kept: list of `selection.SkippedLayer`.
        block_length: B.
        grids: for each kernel `(filters, columns)`.
        offsets: int64 `(layers + 1,)`, the first block of each kernel, and the number of
            all.

    Raises:
        ValueError: for another view, a block size below 1 or for the crop view, a
            selection that names what is not there or leaves nothing.
    """

    def __init__(
        self,
        model: keras.Model,
        view: str = "crop",
        block_size: int | None = None,
        include: Choice = None,
        exclude: Choice = None,
        include_dense: bool = False,
    ) -> None:
        checks.one_of("view", view, VIEWS)
        whole = isinstance(block_size, numbers.Integral) and block_size >= 1
        if block_size is not None and (view == "crop" or not whole):
            raise ValueError(
                "block_size must be an integer of at least 1, and goes with view='block'. "
                f"Received: block_size={block_size!r}, view={view!r}"
            )
        self.view = view
        self.kernels, self.skipped = find_kernels(model, include, exclude, include_dense)
        if not self.kernels:
            reasons = sorted({one.reason for one in self.skipped}) or ["it has no weights"]
            raise ValueError(
                "Expected at least one layer whose kernel can be represented. Received: "
                f"{model.name!r}, where every layer is kept: {'; '.join(reasons)}"
            )
        if view == "crop":
            rank = max(1, *(len(kernel.spatial) for kernel in self.kernels))
            side = max((1, *(max(kernel.spatial, default=1) for kernel in self.kernels)))
            self.block_length = side**rank
            entries = [_centre_crop(kernel.spatial, side, rank) for kernel in self.kernels]
            columns = [kernel.channels for kernel in self.kernels]
            strides = [kernel.places for kernel in self.kernels]
        else:
            side = BLOCK_SIZE if block_size is None else int(block_size)
            self.block_length = side * side
            entries = [np.arange(self.block_length)] * len(self.kernels)
            lengths = [kernel.channels * kernel.places for kernel in self.kernels]
            columns = [math.ceil(length / self.block_length) for length in lengths]
            strides = [self.block_length] * len(self.kernels)
        self.grids = [
            (kernel.filters, count) for kernel, count in zip(self.kernels, columns, strict=True)
        ]
        self.offsets = _running_total(filters * count for filters, count in self.grids)
        self._weight_offsets = _running_total(kernel.num_weights for kernel in self.kernels)
        self._columns = np.array(columns, "int32")
        self._strides = np.array(strides, "int32")  # weights from column to column
        self._row_lengths = np.array(
            [kernel.channels * kernel.places for kernel in self.kernels], "int32"
        )
        self._entries = np.stack(entries).astype("int32")  # (layers, B), -1 without weight

    @property
    def num_blocks(self) -> int:
        """Blocks of all kernels together."""
        return int(self.offsets[-1])

    @property
    def num_weights(self) -> int:
        """Represented weights."""
        return int(self._weight_offsets[-1])

    def weights(self) -> np.ndarray:
        """The kernels' current weights, row by row: float32 `(weights,)`."""
        rows = [kernel.rows(_numpy(kernel.variable)).ravel() for kernel in self.kernels]
        return np.concatenate(rows).astype("float32")

    def places(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Where blocks are.

        Args:
            indices: int tensor `(n,)` of block numbers.

        Returns:
            `(layers, within)`: int32 tensors `(n,)`, the kernel each belongs to, and its
            number among the blocks of that kernel.
        """
        indices = ops.cast(indices, "int32")
        ends = ops.convert_to_tensor(self.offsets[1:].astype("int32"))
        layers = ops.cast(ops.searchsorted(ends, indices, side="right"), "int32")
        starts = ops.convert_to_tensor(self.offsets[:-1].astype("int32"))
        return layers, indices - ops.take(starts, layers)

    def take(self, weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Reads blocks.

        Args:
            weights: tensor `(weights,)`, as `weights` gives them.
            indices: int tensor `(n,)` of block numbers.

        Returns:
            `(blocks, mask)`: tensors `(n, B)`, 0 in both where an entry carries no weight.
        """
        layers, within = self.places(indices)
        columns = ops.take(self._columns, layers)
        strides = ops.take(self._strides, layers)
        lengths = ops.take(self._row_lengths, layers)
        entries = ops.take(self._entries, layers, axis=0)  # (n, B)
        in_row = (within % columns * strides)[:, None] + entries
        has_weight = ops.logical_and(entries >= 0, in_row < lengths[:, None])
        starts = ops.take(self._weight_offsets[:-1].astype("int32"), layers)
        starts = starts + within // columns * lengths
        places = ops.where(has_weight, starts[:, None] + in_row, 0)
        mask = ops.cast(has_weight, "float32")
        return mask * ops.take(weights, places), mask

    def coordinates(self, indices: Tensor, positions: Tensor | None = None) -> Tensor:
        """The coordinates of blocks.

        Args:
            indices: int tensor `(n,)` of block numbers.
            positions: int tensor `(blocks,)`, where each stands in its layer (see
                `permutations.Permutation.positions`); `None` for their own places.
                Defaults to `None`.

        Returns:
            int32 tensor `(n, 3)` of (layer, filter, column).
        """
        layers, within = self.places(indices)
        if positions is not None:
            within = ops.cast(ops.take(positions, indices), "int32")
        columns = ops.take(self._columns, layers)
        return ops.stack([layers, within // columns, within % columns], axis=1)

    def norms(self) -> np.ndarray:
        """The euclidean norm of each block's weights, float64 `(blocks,)`."""
        return np.concatenate(
            [
                np.linalg.norm(self.kernel_blocks(index).astype("float64"), axis=-1).ravel()
                for index in range(len(self.kernels))
            ]
        )

    def split(self, blocks: Tensor) -> list[Tensor]:
        """All blocks `(blocks, B)` as one kernel tensor for each of `kernels`."""
        parts = [blocks]
        if len(self.kernels) > 1:  # the gradient of a slice would be as large as all blocks
            parts = ops.split(blocks, self.offsets[1:-1].tolist())
        return [self.kernel(index, part) for index, part in enumerate(parts)]

    def kernel(self, index: int, blocks: Tensor) -> Tensor:
        """Puts a kernel together from its blocks.

        Args:
            index: of the kernel.
            blocks: tensor `(filters * columns, B)`.

        Returns:
            Tensor of the kernel's shape, differentiable with respect to `blocks`.
        """
        filters, columns = self.grids[index]
        kernel, entries = self.kernels[index], self._entries[index]
        if self.view == "crop":
            used = np.argsort(entries)[np.count_nonzero(entries < 0) :]
            blocks = ops.take(blocks, used, axis=1) if len(used) < len(entries) else blocks
        rows = ops.reshape(blocks, (filters, columns * blocks.shape[-1]))
        return kernel.from_rows(rows[:, : int(self._row_lengths[index])])

    def kernel_blocks(self, index: int, values: ArrayLike | None = None) -> np.ndarray:
        """A kernel's blocks: float32 array `(filters, columns, B)`, 0 without weight.

        Args:
            index: of the kernel.
            values: array of the kernel's shape; `None` for its current weights. Defaults
                to `None`.
        """
        kernel, (filters, columns) = self.kernels[index], self.grids[index]
        rows = kernel.rows(_numpy(kernel.variable) if values is None else values)
        places = np.arange(columns)[:, None] * self._strides[index] + self._entries[index]
        has_weight = (self._entries[index] >= 0) & (places < rows.shape[1])
        blocks = rows[:, np.where(has_weight, places, 0)] * has_weight
        return blocks.reshape(filters, columns, -1).astype("float32")


def _centre_crop(spatial: Sequence[int], side: int, rank: int) -> np.ndarray:
    """For each entry of a block the place of a kernel that it carries, or -1: `(side^rank,)`."""
    spatial = (1,) * (rank - len(spatial)) + tuple(spatial)
    block = np.full((side,) * rank, -1)
    window = tuple(slice((side - length) // 2, (side - length) // 2 + length) for length in spatial)
    block[window] = np.arange(math.prod(spatial)).reshape(spatial)
    return block.ravel()


def _running_total(counts: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, "int64"))])


def _numpy(variable: Tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), "float32")


# The (layer, filter, column) coordinate of every block.
#
# A layer l of F filters by C columns of blocks (see `blocks`) owns the grid
#
#     (l, f, c),    0 <= f < F,  0 <= c < C,
#
# and position p = f * C + c of that grid belongs to the p-th block in the layer's order.
# Unpermuted, a block's coordinate names its own filter and column; permuted, similar blocks
# get neighbouring coordinates (see `permutations`). The weights themselves never move.


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
