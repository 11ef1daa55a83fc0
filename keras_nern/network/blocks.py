"""Blocks: the pieces of kernels that a predictor outputs, one per coordinate.

Every row of a kernel (see `kernels`) is cut into *blocks* of B weights. A layer is then a grid of
filters by columns, and (layer, filter, column) is the coordinate of a block. There are two *views*
of the rows:

* *crop* (Ashkenazi et al., ICLR 2023, section 3): one block per channel, where B = k * k and k is
  the largest side of any kernel (B = k for kernels of one spatial axis, k^3 for three). A smaller
  kernel is the center crop of its block. The other entries of the block carry no weight and are
  masked in the losses.
* *block*: B = k * k for a chosen k, and as many blocks as the row needs. The row of a 1x1 kernel is
  cut into runs of channels, a 7x7 kernel into several blocks. Only the last block of a row may have
  entries without a weight.

Both views are equal if all kernels are k x k. The view `"auto"` is *crop* if at least half of all
predicted entries then carry a weight, and *block* otherwise, as for networks of mostly 1x1 kernels.

Blocks are numbered layer by layer, filter by filter and column by column. Position p of a layer's
grid has the coordinate (layer, p // columns, p % columns). A *permutation* assigns the positions of
a layer to its blocks in another order (see `permutations`); weights never move. Layer, coordinate
and weights of a block are computed from its number, so the cost of a training step depends only on
the number of blocks that it draws.
"""

import math
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_nern.network.kernels import check_built
from keras_nern.network.selection import Choice, find_kernels
from keras_nern.utils import checks
from keras_nern.utils.types import Grid, Tensor

VIEWS = ("crop", "block")
BLOCK_SIZE = 3  # default k of the block view


class Blocks:
    """The represented kernels of a model, cut into blocks.

    Args:
        model: a built `keras.Model`.
        view: `"crop"`, `"block"` or `"auto"`. Defaults to `"auto"`.
        block_size: k of the block view; `None` for 3. It must be `None` for the crop view, and
            makes `"auto"` the block view. Defaults to `None`.
        include, exclude: as for `selection.find_kernels`. Default to `None`.
        include_dense: as for `selection.find_kernels`. Defaults to `False`.

    Attributes:
        view: `"crop"` or `"block"`.
        kernels: list of `kernels.Kernel`.
        skipped: list of `selection.SkippedLayer`.
        block_length: B.
        grids: list of `(filters, columns)` per kernel.
        offsets: int64 array `(kernels + 1,)`, number of the first block of each kernel, followed
            by the number of blocks.

    Raises:
        ValueError: if `model` is not a built `keras.Model`, if `view` is unknown, if `block_size`
            is not an integer of at least 1 or is given for the crop view, if the selection names a
            layer that the model does not have, or if no layer is selected.

    Example:

    >>> blocks = Blocks(model, "block", block_size=4)
    >>> values, mask = blocks.take(blocks.weights(), np.array([0, 1]))  # (2, 16) each
    """

    def __init__(
        self,
        model: keras.Model,
        view: str = "auto",
        block_size: int | None = None,
        include: Choice = None,
        exclude: Choice = None,
        include_dense: bool = False,
    ) -> None:
        check_built("model", model)
        checks.one_of("view", view, ("auto", *VIEWS))
        include_dense = checks.flag("include_dense", include_dense)
        if block_size is not None:
            block_size = checks.integer("block_size", block_size, minimum=1)
            if view == "crop":
                raise ValueError(
                    "block_size must be None if view='crop'. "
                    f"Received: block_size={block_size}, view={view!r}"
                )
        self.kernels, self.skipped = find_kernels(model, include, exclude, include_dense)
        if not self.kernels:
            reasons = sorted({one.reason for one in self.skipped}) or ["it has no weights"]
            raise ValueError(
                "Expected a model with at least one layer to represent. Received: "
                f"{model.name!r}, whose layers are all skipped: {'; '.join(reasons)}"
            )
        row_lengths = [kernel.channels * kernel.spatial_size for kernel in self.kernels]
        shapes = [kernel.spatial_shape for kernel in self.kernels]
        if view == "auto":
            crops = sum(kernel.filters * kernel.channels for kernel in self.kernels)
            predicted = crops * math.prod(block_sides("crop", None, shapes))
            used = sum(kernel.num_weights for kernel in self.kernels) / predicted
            view = "crop" if block_size is None and used >= 0.5 else "block"
        self.view = view
        sides = block_sides(view, block_size, shapes)
        self.block_length = math.prod(sides)
        if view == "crop":
            entries = [_center_crop(shape, sides[0], len(sides)) for shape in shapes]
            columns = [kernel.channels for kernel in self.kernels]
            strides = [kernel.spatial_size for kernel in self.kernels]
        else:
            entries = [np.arange(self.block_length)] * len(self.kernels)
            columns = [math.ceil(length / self.block_length) for length in row_lengths]
            strides = [self.block_length] * len(self.kernels)
        self.grids = [
            (kernel.filters, count) for kernel, count in zip(self.kernels, columns, strict=True)
        ]
        self.offsets = _running_total(filters * count for filters, count in self.grids)
        self._weight_offsets = _running_total(kernel.num_weights for kernel in self.kernels)
        self._columns = np.array(columns, "int32")
        self._strides = np.array(strides, "int32")  # weights per column
        self._row_lengths = np.array(row_lengths, "int32")
        # (kernels, B): index within its column of the weight that each entry carries, -1 for none
        self._entries = np.stack(entries).astype("int32")

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all kernels."""
        return int(self.offsets[-1])

    @property
    def num_weights(self) -> int:
        """Number of represented weights."""
        return int(self._weight_offsets[-1])

    def weights(self) -> np.ndarray:
        """The kernels' current weights, row by row: float32 array `(weights,)`."""
        return np.concatenate([kernel.rows(kernel.values()).ravel() for kernel in self.kernels])

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Locates blocks.

        Args:
            indices: int tensor `(n,)`, numbers of blocks.

        Returns:
            `(layers, within)`: int32 tensors `(n,)`, the index of each block's kernel and the
            block's number within that kernel.
        """
        indices = ops.cast(indices, "int32")
        ends = ops.convert_to_tensor(self.offsets[1:].astype("int32"))
        layers = ops.cast(ops.searchsorted(ends, indices, side="right"), "int32")
        starts = ops.convert_to_tensor(self.offsets[:-1].astype("int32"))
        return layers, indices - ops.take(starts, layers)

    def coordinates(self, indices: Tensor, positions: Tensor | None = None) -> Tensor:
        """Computes the coordinates of blocks.

        Args:
            indices: int tensor `(n,)`, numbers of blocks.
            positions: int tensor `(blocks,)`, position of every block within its layer (see
                `permutations.Permutation.positions`); `None` for the original order. Defaults to
                `None`.

        Returns:
            int32 tensor `(n, 3)` of (layer, filter, column).
        """
        layers, within = self.locate(indices)
        if positions is not None:
            within = ops.cast(ops.take(positions, indices), "int32")
        return _coordinates(layers, within, ops.take(self._columns, layers))

    def take(self, weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers the weights of blocks.

        Args:
            weights: tensor `(weights,)`, as returned by `weights`.
            indices: int tensor `(n,)`, numbers of blocks.

        Returns:
            `(blocks, mask)`: tensors `(n, B)`; both are 0 for entries without a weight.
        """
        layers, within = self.locate(indices)
        columns = ops.take(self._columns, layers)
        strides = ops.take(self._strides, layers)
        lengths = ops.take(self._row_lengths, layers)
        entries = ops.take(self._entries, layers, axis=0)  # (n, B)
        in_row = (within % columns * strides)[:, None] + entries
        has_weight = ops.logical_and(entries >= 0, in_row < lengths[:, None])
        starts = ops.take(self._weight_offsets[:-1].astype("int32"), layers)
        starts = starts + within // columns * lengths
        in_weights = ops.where(has_weight, starts[:, None] + in_row, 0)
        mask = ops.cast(has_weight, "float32")
        return mask * ops.take(weights, in_weights), mask

    def norms(self) -> np.ndarray:
        """Euclidean norm of each block: float64 array `(blocks,)`."""
        return np.concatenate(
            [
                np.linalg.norm(self.kernel_blocks(index).astype("float64"), axis=-1).ravel()
                for index in range(len(self.kernels))
            ]
        )

    def kernel_blocks(self, index: int) -> np.ndarray:
        """The current blocks of a kernel.

        Args:
            index: index of the kernel.

        Returns:
            float32 array `(filters, columns, B)`, 0 for entries without a weight.
        """
        kernel, entries = self.kernels[index], self._entries[index]
        rows = kernel.rows(kernel.values())
        in_row = np.arange(self._columns[index])[:, None] * self._strides[index] + entries
        has_weight = (entries >= 0) & (in_row < rows.shape[1])  # (columns, B)
        return rows[:, np.where(has_weight, in_row, 0)] * has_weight.astype("float32")

    def kernel(self, index: int, blocks: Tensor) -> Tensor:
        """Assembles a kernel from its blocks.

        Args:
            index: index of the kernel.
            blocks: tensor `(filters * columns, B)`.

        Returns:
            Tensor of the kernel's shape, differentiable with respect to `blocks`.
        """
        filters, columns = self.grids[index]
        entries = self._entries[index]
        # the entries that carry a weight, in the order of the weights
        used = np.argsort(entries)[np.count_nonzero(entries < 0) :]
        if len(used) < len(entries):
            blocks = ops.take(blocks, used, axis=1)
        rows = ops.reshape(blocks, (filters, columns * blocks.shape[-1]))
        return self.kernels[index].from_rows(rows[:, : int(self._row_lengths[index])])

    def split(self, blocks: Tensor) -> list[Tensor]:
        """Assembles all kernels from all blocks `(blocks, B)`: a list of tensors."""
        parts = [blocks]
        if len(self.kernels) > 1:  # each slice would have a gradient as large as all blocks
            parts = ops.split(blocks, self.offsets[1:-1].tolist())
        return [self.kernel(index, part) for index, part in enumerate(parts)]


def block_sides(
    view: str, block_size: int | None, shapes: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """The shape of a block, whose product is B.

    Args:
        view, block_size: as for `Blocks`.
        shapes: spatial shape of each kernel.
    """
    if view == "block":
        return (block_size or BLOCK_SIZE,) * 2
    rank = max(1, *map(len, shapes))
    return (max(1, *(max(shape, default=1) for shape in shapes)),) * rank


def block_coordinates(grids: Sequence[Grid], positions: ArrayLike) -> np.ndarray:
    """Computes the coordinates of all blocks of a network from their positions.

    Args:
        grids: `(filters, columns)` of each layer.
        positions: int array `(blocks,)`, position of every block within its layer.

    Returns:
        int32 array `(blocks, 3)` of (layer, filter, column).

    Example:

    >>> block_coordinates([(1, 2)], [1, 0])
    array([[0, 0, 1],
           [0, 0, 0]], dtype=int32)
    """
    sizes = [filters * columns for filters, columns in grids]
    layers = np.repeat(np.arange(len(grids), dtype="int32"), sizes)
    columns = np.array(grids, "int32")[layers, 1]
    coordinates = _coordinates(layers, np.asarray(positions, "int32"), columns)
    return ops.convert_to_numpy(coordinates)


def _coordinates(layers: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """Converts positions `(n,)` in layers with `columns` `(n,)` to coordinates `(n, 3)`."""
    return ops.stack([layers, positions // columns, positions % columns], axis=1)


def _center_crop(shape: Sequence[int], side: int, rank: int) -> np.ndarray:
    """The spatial position of each entry of a block, -1 for none: `(side^rank,)`."""
    shape = (1,) * (rank - len(shape)) + tuple(shape)
    block = np.full((side,) * rank, -1)
    window = tuple(slice((side - length) // 2, (side - length) // 2 + length) for length in shape)
    block[window] = np.arange(math.prod(shape)).reshape(shape)
    return block.ravel()


def _running_total(counts: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, "int64"))])
