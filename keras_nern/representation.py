"""Kernels computed from a predictor: coordinates, predicted blocks, assembled kernels.

    coordinate(i) = (layer, filter, column) at which the permutation puts block i
    block(i)      = predictor(coordinate(i))                          B weights
    kernel(l)     = scale_l * (the assembled blocks of layer l)       see `network.blocks`

Local predictors take the run and the place within it in place of the coordinate: the rank of block
i, which is the number of blocks in earlier layers plus the block's position in its own layer, is a
place of a run (see `predictor.runs`). A *slot* is an input of the predictor: the number of a block,
or, for local predictors, a place of a run.

Training, evaluation, the rebuilt classifier, the compact file and its reader all take kernels from
the `Representation` of this module. It refers to variables that its owner created and creates none.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.predictor import Predictor
from keras_nern.predictor.residual import Residual
from keras_nern.predictor.runs import Runs
from keras_nern.utils.types import Tensor

# Largest number of activations per predictor layer to compute at once if no gradient is needed.
MAX_ACTIVATIONS = 2**24

# Largest number of coordinates on which to compute statistics of the predictor.
SAMPLE_SIZE = 65_536


class Representation:
    """The kernels of a network, computed by a predictor.

    Args:
        blocks: the `network.blocks.Blocks` of the network.
        predictor: a built `KernelPredictor` or `LocalPredictor`.
        scales: variable or array `(layers,)` by which each layer's predictions are multiplied;
            `None` for ones. Defaults to `None`.
        positions: int variable or array `(blocks,)`, the position of each block in its layer, see
            `Permutation.positions`; `None` for the original order. Defaults to `None`.
        kind, method, metric: as for `Permutation`. Default to `None`.
        residual: a `Residual` that is added to the predicted kernels, or `None`. Defaults to
            `None`.
        vectors: the variables of `OriginalNetwork.vectors`, which the residual changes. Defaults to
            none.
        balanced: whether each layer has the same share of the reconstruction loss, instead of a
            share by its number of weights. Defaults to `False`.

    Attributes:
        layer_weights: float32 array `(layers,)`, by which the squared errors of each layer's
            weights are multiplied in the reconstruction loss.
    """

    def __init__(
        self,
        blocks: Blocks,
        predictor: Predictor,
        scales: Any = None,
        positions: Any = None,
        kind: str | None = None,
        method: str | None = None,
        metric: str | None = None,
        balanced: bool = False,
        residual: Residual | None = None,
        vectors: Sequence[keras.Variable] = (),
    ) -> None:
        self.blocks = blocks
        self.predictor = predictor
        self.residual = residual
        self._vectors = vectors
        self.scales = np.ones(len(blocks.kernels), "float32") if scales is None else scales
        self.positions = positions
        self._found_by = {"kind": kind, "method": method, "metric": metric}
        self._balanced = balanced
        sizes = np.array([kernel.num_weights for kernel in blocks.kernels])
        weights = sizes.mean() / sizes if balanced else np.ones(len(sizes))
        self.layer_weights = weights.astype("float32")
        # `None` for a single predictor, whose slots are the blocks
        self.runs = Runs(predictor.run_lengths) if predictor.experts > 1 else None

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

    def sample_inputs(self) -> Tensor:
        """Inputs of the predictor on which to compute its statistics.

        Returns:
            For a single predictor, the coordinates of all blocks, or of `SAMPLE_SIZE` drawn at
            random: int32 `(n, 3)`. For local predictors all places: int32 `(experts, places)`.
        """
        if self.runs is not None:
            return self._places(keras.ops.arange(self.runs.num_slots, dtype="int32"))
        count = self.blocks.num_blocks
        indices = np.arange(count, dtype="int32")
        if count > SAMPLE_SIZE:  # at random: equal strides might only reach the even channels
            indices = np.random.default_rng(0).choice(indices, SAMPLE_SIZE, replace=False)
        return self.coordinates(keras.ops.convert_to_tensor(indices))

    def input_layers(self, inputs: Tensor) -> np.ndarray:
        """The index of the kernel to which each of `sample_inputs` belongs, of its shape."""
        if self.runs is None:
            return keras.ops.convert_to_numpy(inputs)[:, 0]
        layers = np.searchsorted(self.blocks.offsets[1:], self.runs.ranks(), side="right")
        return layers.reshape(self.runs.experts, self.runs.length)

    @property
    def num_slots(self) -> int:
        """The number of slots."""
        return self.blocks.num_blocks if self.runs is None else self.runs.num_slots

    def block_of_slots(self) -> np.ndarray:
        """The number of the block in each slot: int32 `(slots,)`."""
        if self.runs is None:
            return np.arange(self.blocks.num_blocks, dtype="int32")
        blocks = np.argsort(keras.ops.convert_to_numpy(self._block_ranks()))
        return blocks.astype("int32")[self.runs.ranks()]

    def norms_of_slots(self, blocks: np.ndarray) -> np.ndarray:
        """The norm of the original block in each slot, 0 where another slot has the same block.

        Args:
            blocks: the result of `block_of_slots`.
        """
        norms = self.blocks.norms()[blocks]
        if self.runs is None:
            return norms
        first = np.zeros_like(norms)
        slots = self.runs.slots()
        first[slots] = norms[slots]
        return first

    def _block_ranks(self) -> Tensor:
        """The rank of every block: int32 `(blocks,)`."""
        starts = np.repeat(self.blocks.offsets[:-1], np.diff(self.blocks.offsets)).astype("int32")
        if self.positions is None:
            return keras.ops.arange(self.blocks.num_blocks, dtype="int32")
        return keras.ops.cast(keras.ops.convert_to_tensor(self.positions), "int32") + starts

    def _places(self, slots: Tensor) -> Tensor:
        """Converts slots, equally many of each run and sorted by run, to places of the runs."""
        assert self.runs is not None
        places = keras.ops.reshape(slots, (self.runs.experts, -1)) % self.runs.length
        return places % self.runs.lengths[:, None].astype("int32")

    def draw(self, sampling: Any, seed: Any, cumulative: Tensor | None) -> tuple[Any, bool]:
        """Draws slots.

        Args:
            sampling: a sampling, see `training.sampling`.
            seed: a `keras.random.SeedGenerator`.
            cumulative: cumulative magnitude of the slots, float32 `(slots,)`, or `None`.

        Returns:
            `(slots, by_run)`: an int tensor `(n,)`, or `None` for all slots; and whether equally
            many are drawn of each run, as samplings with the parameter `runs` do.
        """
        if self.runs is None:
            return sampling.sample(self.num_slots, seed, cumulative), False
        if "runs" not in inspect.signature(sampling.sample).parameters:  # it draws blocks by rank
            slots = keras.ops.convert_to_tensor(self.runs.slots())
            if cumulative is not None:  # constant over the slots without a block of their own
                cumulative = keras.ops.take(cumulative, slots)
            drawn = sampling.sample(self.blocks.num_blocks, seed, cumulative)
            return None if drawn is None else keras.ops.take(slots, drawn), False
        drawn = sampling.sample(self.num_slots, seed, cumulative, runs=self.runs.lengths)
        return drawn, True

    def shares(self, drawn: Tensor) -> Tensor:
        """What each of the slots that are drawn by run stands for: float32 `(n,)`.

        Every run has equally many draws, so that a draw stands for as many blocks as its run is
        long. Sums with these weights estimate sums over all blocks.
        """
        assert self.runs is not None
        return keras.ops.take(self.runs.lengths.astype("float32"), drawn // self.runs.length)

    def predict(self, slots: Tensor | None, by_run: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Predicts the blocks in slots.

        Args:
            slots, by_run: as `draw` returns. If local predictors get slots of other numbers per
                run, all slots are computed.

        Returns:
            `(predicted, means)`: a float32 tensor `(n, B)`, not yet multiplied by the layers'
            scales, and the mean inputs of a single predictor's layers, see
            `KernelPredictor.predict_with_means`; an empty list for local predictors.
        """
        every = keras.ops.arange(self.num_slots, dtype="int32")
        if self.runs is None:
            slots = every if slots is None else slots
            return self.predictor.predict_with_means(self.coordinates(slots))
        computed = slots if slots is not None and by_run else every
        rows = keras.ops.reshape(
            self.predictor(self._places(computed)), (-1, self.blocks.block_length)
        )
        return (rows if slots is None or by_run else keras.ops.take(rows, slots, axis=0)), []

    def in_block_order(self, rows: Tensor) -> Tensor:
        """Sorts the predictions of all slots `(slots, B)` by block: `(blocks, B)`."""
        if self.runs is None:
            return rows
        return keras.ops.take(rows, self._slot_of_blocks(), axis=0)

    def _slot_of_blocks(self, first: int = 0, last: int | None = None) -> Tensor:
        """The slots of the blocks `first` to `last - 1` of local predictors: int32 `(n,)`."""
        assert self.runs is not None
        slots = keras.ops.convert_to_tensor(self.runs.slots())
        return keras.ops.take(slots, self._block_ranks()[first:last])

    def predict_all(self) -> Tensor:
        """Predicts all slots in chunks of bounded memory: float32 `(slots, B)`."""
        return self._predict_units(0, self._num_units)

    def _predict_layers(self, first: int, last: int) -> Tensor:
        """Predicts the blocks of the kernels `first` to `last - 1`: float32 `(n, B)`."""
        start, stop = (int(self.blocks.offsets[index]) for index in (first, last))
        if self.runs is None:
            return self._predict_units(start, stop)
        # The blocks of a layer have successive ranks, so their runs are neighbors.
        run, final = np.searchsorted(self.runs.starts, [start, stop - 1], side="right") - 1
        rows = self._predict_units(int(run), int(final) + 1)
        slots = self._slot_of_blocks(start, stop) - int(run) * self.runs.length
        return keras.ops.take(rows, slots, axis=0)

    # What is predicted at once: blocks of a single predictor, whole runs of local ones.

    @property
    def _num_units(self) -> int:
        return self.blocks.num_blocks if self.runs is None else self.runs.experts

    @property
    def _unit_length(self) -> int:
        return 1 if self.runs is None else self.runs.length

    def _predict_units(self, start: int, stop: int) -> Tensor:
        chunk_size = min(self._chunk_size, stop - start)

        def chunk(first: Any, size: int = chunk_size) -> Tensor:
            if self.runs is None:
                units = first + keras.ops.arange(size, dtype="int32")
                return self.predictor(self.coordinates(units))
            lengths = keras.ops.slice(self.runs.lengths.astype("int32"), (first,), (size,))
            places = keras.ops.arange(self.runs.length, dtype="int32") % lengths[:, None]
            rows = self.predictor(places, first=first)
            return keras.ops.reshape(rows, (size * self.runs.length, rows.shape[-1]))

        starts = range(start, stop, chunk_size)
        if len(starts) == 1 or tf.executing_eagerly():
            chunks = [chunk(i, min(chunk_size, stop - i)) for i in starts]
            return keras.ops.concatenate(chunks)
        # A loop, because TensorFlow would hold all independent chunks in memory at once. The last
        # chunk overlaps the one before.
        whole = tf.map_fn(
            chunk,
            tf.range(start, starts[-1], chunk_size),
            parallel_iterations=1,
            fn_output_signature=tf.float32,
        )
        whole = keras.ops.reshape(whole, (-1, whole.shape[-1]))
        rest = stop - starts[-1]
        tail = chunk(stop - chunk_size)[(chunk_size - rest) * self._unit_length :]
        return keras.ops.concatenate([whole, tail])

    @property
    def _chunk_size(self) -> int:
        widest = max((max(x.kernel.shape[-2:]) for x in self.predictor.layers), default=1)
        return max(1, MAX_ACTIVATIONS // (widest * self._unit_length))

    def assemble(self, blocks: Tensor) -> list[Tensor]:
        """Assembles all kernels from all predicted blocks, with their scales and the residual.

        Args:
            blocks: tensor `(blocks, B)`.

        Returns:
            A list of tensors, one per kernel, of the variable's shape.
        """
        scales = keras.ops.convert_to_tensor(self.scales)
        kernels = self.blocks.split(blocks)
        return [self._corrected(i, kernel * scales[i]) for i, kernel in enumerate(kernels)]

    def kernel(self, index: int) -> Tensor:
        """Predicts one kernel: a tensor of the variable's shape, with its scale and residual."""
        return self._corrected(index, self.prediction(index))

    def prediction(self, index: int) -> Tensor:
        """Predicts one kernel without its residual: a tensor of the variable's shape."""
        scale = keras.ops.convert_to_tensor(self.scales)[index]
        return self.blocks.kernel(index, self._predict_layers(index, index + 1)) * scale

    def _corrected(self, index: int, kernel: Tensor) -> Tensor:
        if self.residual is None:
            return kernel
        return kernel + self.blocks.kernels[index].from_matrices(self.residual.values(index))

    def vectors(self) -> list[Tensor] | None:
        """The vectors of the rebuilt network; `None` for those of the base, without a residual."""
        if self.residual is None:
            return None
        values = []
        for variable, change in zip(self._vectors, self.residual.changes(), strict=True):
            if not variable.trainable:  # of a frozen layer
                change = keras.ops.stop_gradient(change)
            own = keras.ops.convert_to_tensor(variable)
            values.append(keras.ops.cast(own, "float32") + change)
        return values

    def kernels(self) -> list[Tensor]:
        """Predicts all kernels; see `kernel`."""
        if self.runs is None and self._num_units > self._chunk_size:
            return [self.kernel(index) for index in range(len(self.blocks.kernels))]
        return self.assemble(self.in_block_order(self.predict_all()))

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
        weighted = self.layer_weights * errors / scales**2
        mean_square = weighted.sum() / self.blocks.num_weights
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

    def with_predictor(self, predictor: Predictor) -> "Representation":
        """Returns a representation with the same blocks, order and scales but another predictor."""
        return Representation(
            self.blocks,
            predictor,
            self.scales,
            self.positions,
            **self._found_by,
            balanced=self._balanced,
            residual=self.residual,
            vectors=self._vectors,
        )
