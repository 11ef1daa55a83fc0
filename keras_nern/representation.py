"""Kernels computed from a predictor: coordinates, predicted blocks, assembled kernels.

    coordinate(i) = (layer, filter, column) at which the permutation puts block i
    block(i)      = predictor(coordinate(i))                          B weights
    kernel(l)     = scale_l * (the assembled blocks of layer l)       see `network.blocks`

Training, evaluation, the rebuilt classifier, the compact file and its reader all take kernels from
the `Representation` of this module. It refers to variables that its owner created and creates none.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.utils.types import Tensor

# Largest number of activations per predictor layer to compute at once if no gradient is needed.
MAX_ACTIVATIONS = 2**24

# Largest number of coordinates on which to compute statistics of the predictor.
SAMPLE_SIZE = 65_536


class Representation:
    """The kernels of a network, computed by a predictor.

    Args:
        blocks: the `network.blocks.Blocks` of the network.
        predictor: a built `KernelPredictor`.
        scales: variable or array `(layers,)` by which each layer's predictions are multiplied;
            `None` for ones. Defaults to `None`.
        positions: int variable or array `(blocks,)`, the position of each block in its layer, see
            `Permutation.positions`; `None` for the original order. Defaults to `None`.
        kind, method, metric: as for `Permutation`. Default to `None`.
    """

    def __init__(
        self,
        blocks: Blocks,
        predictor: KernelPredictor,
        scales: Any = None,
        positions: Any = None,
        kind: str | None = None,
        method: str | None = None,
        metric: str | None = None,
    ) -> None:
        self.blocks = blocks
        self.predictor = predictor
        self.scales = np.ones(len(blocks.kernels), "float32") if scales is None else scales
        self.positions = positions
        self._found_by = {"kind": kind, "method": method, "metric": metric}

    @property
    def permutation(self) -> Permutation:
        """The order of the blocks."""
        if self.positions is None:
            return Permutation(self.blocks.grids, **self._found_by)
        positions = keras.ops.convert_to_numpy(self.positions)
        return Permutation.from_positions(positions, self.blocks.grids, **self._found_by)

    def coordinates(self, indices: Tensor) -> Tensor:
        """The coordinates of blocks.

        Args:
            indices: int tensor `(n,)` of block numbers.

        Returns:
            int32 tensor `(n, 3)` of (layer, filter, column).
        """
        positions = self.positions
        if positions is not None:
            positions = keras.ops.convert_to_tensor(positions)
        return self.blocks.coordinates(indices, positions)

    def sample_coordinates(self) -> Tensor:
        """The coordinates of all blocks, or of `SAMPLE_SIZE` drawn at random: int32 `(n, 3)`."""
        count = self.blocks.num_blocks
        indices = np.arange(count, dtype="int32")
        if count > SAMPLE_SIZE:  # at random: equal strides might only reach the even channels
            indices = np.random.default_rng(0).choice(indices, SAMPLE_SIZE, replace=False)
        return self.coordinates(keras.ops.convert_to_tensor(indices))

    def predict(self, indices: Tensor) -> Tensor:
        """Predicts blocks.

        Args:
            indices: int tensor `(n,)` of block numbers.

        Returns:
            float32 tensor `(n, B)`, not yet multiplied by the layers' scales.
        """
        return self.predictor(self.coordinates(indices))

    def predict_range(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Predicts the blocks `start` to `stop - 1` in chunks of bounded memory: `(n, B)`."""
        stop = self.blocks.num_blocks if stop is None else stop
        chunk_size = self._chunk_size

        def chunk(first: Any, size: int = chunk_size) -> Tensor:
            indices = keras.ops.minimum(first + keras.ops.arange(size, dtype="int32"), stop - 1)
            return self.predict(indices)

        starts = range(start, stop, chunk_size)
        if len(starts) == 1 or tf.executing_eagerly():
            chunks = [chunk(i, min(chunk_size, stop - i)) for i in starts]
            return keras.ops.concatenate(chunks)
        # A loop, because TensorFlow would hold all independent chunks in memory at once.
        rows = tf.map_fn(
            chunk,
            tf.range(start, stop, chunk_size),
            parallel_iterations=1,
            fn_output_signature=tf.float32,
        )
        return keras.ops.reshape(rows, (-1, rows.shape[-1]))[: stop - start]

    @property
    def _chunk_size(self) -> int:
        widest = max(max(layer.kernel.shape) for layer in self.predictor.layers)
        return max(1, MAX_ACTIVATIONS // widest)

    def assemble(self, blocks: Tensor) -> list[Tensor]:
        """Assembles all kernels from all predicted blocks and multiplies them by their scales.

        Args:
            blocks: tensor `(blocks, B)`.

        Returns:
            A list of tensors, one per kernel, of the variable's shape.
        """
        scales = keras.ops.convert_to_tensor(self.scales)
        return [kernel * scales[i] for i, kernel in enumerate(self.blocks.split(blocks))]

    def kernel(self, index: int) -> Tensor:
        """Predicts one kernel: a tensor of the variable's shape, multiplied by its scale."""
        start, stop = self.blocks.offsets[index : index + 2].tolist()
        scale = keras.ops.convert_to_tensor(self.scales)[index]
        return self.blocks.kernel(index, self.predict_range(start, stop)) * scale

    def kernels(self) -> list[Tensor]:
        """Predicts all kernels; see `kernel`."""
        if self.blocks.num_blocks <= self._chunk_size:
            return self.assemble(self.predict_range())
        return [self.kernel(index) for index in range(len(self.blocks.kernels))]

    def errors(
        self, originals: Sequence[np.ndarray], kernels: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Computes the errors of all predicted kernels.

        Args:
            originals: list of the original kernels, one array each.
            kernels: the result of `kernels`, or `None` to predict them now. Defaults to `None`.

        Returns:
            A dict with the floats `"reconstruction_loss"` and `"relative_error"`, see `losses`.
        """
        scales = keras.ops.convert_to_numpy(self.scales).astype("float64")
        errors, sizes = self._squares(originals, kernels)
        mean_square = np.sum(errors / scales**2) / self.blocks.num_weights
        return {
            "reconstruction_loss": float(np.sqrt(max(mean_square, losses.EPSILON))),
            "relative_error": float(errors.sum() / max(sizes.sum(), losses.EPSILON)),
        }

    def layer_errors(self, originals: Sequence[np.ndarray]) -> dict[str, float]:
        """A dict from kernel names to relative squared errors; `originals` as for `errors`."""
        errors, sizes = self._squares(originals)
        relative = errors / np.maximum(sizes, losses.EPSILON)
        names = [kernel.name for kernel in self.blocks.kernels]
        return dict(zip(names, relative.tolist(), strict=True))

    def _squares(
        self, originals: Sequence[np.ndarray], kernels: Sequence[Tensor] | None = None
    ) -> np.ndarray:
        """Sums of squares of each kernel's errors and original weights, float64 `(2, layers)`."""
        predicted = self.kernels() if kernels is None else kernels
        sums = []
        for kernel, original in zip(predicted, originals, strict=True):
            original = original.astype("float64")
            error = keras.ops.convert_to_numpy(kernel) - original
            sums.append((np.sum(error**2), np.sum(original**2)))
        return np.array(sums).T

    def with_predictor(self, predictor: KernelPredictor) -> "Representation":
        """Returns a representation with the same blocks, order and scales but another predictor."""
        return Representation(self.blocks, predictor, self.scales, self.positions, **self._found_by)
