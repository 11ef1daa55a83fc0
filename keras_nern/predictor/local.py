"""Local predictors: many small MLPs, each for a run of blocks.

The cost of one MLP for all blocks is blocks x parameters, and both grow with the network. Here the
blocks, in the order of their coordinates, are cut into runs (see `runs`). Every run has an MLP of
its own, an *expert* (Reiser et al., "KiloNeRF", ICCV 2021, arXiv 2103.13744), so that the cost of a
block does not depend on the size of the network:

    features(place) -> [matmul -> sin] x (n - 1) -> matmul -> B weights

* The features are sines and cosines of a block's place within its run, at F geometric frequencies,
  the lowest of which is half a cycle per longest run (see `runs`). Features of the filter and the
  column do not lower the error, whatever the order (docs/predictors.md).
* Activations are sines (Sitzmann et al., "Implicit Neural Representations with Periodic Activation
  Functions", NeurIPS 2020, arXiv 2006.09661). They reach a given error in about half the time of
  ReLU. There are no biases, which would only be further numbers to store.
* All experts are evaluated by one batched matrix product per layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_nern.predictor.compressed_dense import Compressible
from keras_nern.predictor.predictor import OUTPUT_LAYER, Predictor
from keras_nern.predictor.runs import place_features
from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor


@register
class LocalDense(Compressible, keras.layers.Layer):
    """One linear layer per expert, with an optional sine.

    Args:
        experts: number of experts.
        units: number of outputs of an expert.
        sine: whether to apply the sine to the outputs. Defaults to `False`.
        bits, pruned: as for `Compressible`; there is one step size per expert.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(experts, n, inputs)`.

    Output shape:
        `(experts, n, units)`.
    """

    def __init__(
        self,
        experts: int,
        units: int,
        sine: bool = False,
        bits: int | None = None,
        pruned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(bits=bits, pruned=pruned, **kwargs)
        self.experts = experts
        self.units = units
        self.sine = sine
        self.bias = None

    @property
    def step_shape(self) -> tuple[int, ...]:
        """The shape of the step sizes: one for each expert."""
        return (self.experts, 1, 1)

    @property
    def loading(self) -> float:
        """The argument of `quantization.choose_step_sizes`."""
        return 4.25 if self.bits is not None and self.bits >= 7 else 0.0

    def build(self, input_shape: Sequence[Any]) -> None:
        inputs: int = input_shape[-1]
        limit = math.sqrt(6 / (inputs + self.units))  # of Glorot's uniform distribution
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.experts, inputs, self.units),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.add_compression()

    def call(self, inputs: Tensor, first: Tensor | None = None) -> Tensor:
        """Applies the experts, or those from `first` on, one for each entry of `inputs`."""
        kernel = self.effective_kernel
        if first is not None:
            size = (inputs.shape[0], *self.kernel.shape[1:])
            kernel = ops.slice(kernel, (first, 0, 0), size)
        outputs = ops.matmul(inputs, kernel)
        return ops.sin(outputs) if self.sine else outputs

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        own = {"experts": self.experts, "units": self.units, "sine": self.sine}
        return {**super().get_config(), **own}


@register
class LocalPredictor(Predictor):
    """Predicts the blocks of each run by an MLP of its own.

    Args:
        run_lengths: list of the number of blocks of each run, of at least 2 runs. Each has an MLP
            of its own.
        hidden_size: h, width of the hidden layers of an expert.
        num_layers: number of layers of an expert including the output layer, at least 2. Defaults
            to `9`.
        block_length: B, weights per block, such as k * k. Defaults to `9`.
        bits: bits per weight of the kernels, from 2 to 8, if they are quantized (see `compress`);
            `None` for floats. Defaults to `None`.
        pruned: whether the kernels have pruning masks. Defaults to `False`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(experts, n)`, integers: places within the run of each expert.

    Output shape:
        float32 `(experts, n, block_length)`.

    Raises:
        ValueError: if `hidden_size`, `block_length` or one of `run_lengths` is not an integer of at
            least 1, if `run_lengths` is not a list of at least 2, if `num_layers` is not an integer
            of at least 2, or if `bits` is neither `None` nor an integer from 2 to 8.

    Example:

    >>> predictor = keras_nern.LocalPredictor(run_lengths=[1879] * 16, hidden_size=31)
    >>> predictor(np.zeros((16, 100), "int32")).shape
    TensorShape([16, 100, 9])

    Source: Reiser et al., ICCV 2021, arXiv 2103.13744; Sitzmann et al., NeurIPS 2020,
    arXiv 2006.09661.
    """

    def __init__(
        self,
        run_lengths: Sequence[int],
        hidden_size: int,
        num_layers: int = 9,
        block_length: int = 9,
        bits: int | None = None,
        pruned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size, num_layers, block_length, bits, pruned, **kwargs)
        checks.instance("run_lengths", run_lengths, (list, tuple), "a list of integers")
        self.run_lengths = [
            checks.integer(f"run_lengths[{i}]", one, minimum=1) for i, one in enumerate(run_lengths)
        ]
        self.experts = checks.integer("the number of run_lengths", len(self.run_lengths), minimum=2)
        common: dict[str, Any] = {
            "experts": self.experts,
            "bits": bits,
            "pruned": self.pruned,
            "dtype": "float32",
        }
        self.hidden = [
            LocalDense(units=self.hidden_size, sine=True, name=f"hidden_{i}", **common)
            for i in range(self.num_layers - 1)
        ]
        self.output_layer = LocalDense(units=self.block_length, name=OUTPUT_LAYER, **common)
        self._features = place_features(max(self.run_lengths))

    def build(self, input_shape: Shape | None = None) -> None:
        shape: Shape = (self.experts, None, self._features.shape[1])
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def features(self, places: Tensor) -> Tensor:
        """The features of places: float32 `(..., 2 F)` for integers `(...)`."""
        return ops.take(ops.convert_to_tensor(self._features), places, axis=0)

    def call(self, inputs: Tensor, first: Tensor | None = None) -> Tensor:
        """Predicts blocks.

        Args:
            inputs: `(experts, n)`, integers: places within each run.
            first: index of the first expert, if `inputs` belongs to a part of the experts;
                `None` for all. Defaults to `None`.

        Returns:
            float32 tensor `(experts, n, block_length)`.
        """
        x = self.features(inputs)
        for layer in self.layers:
            x = layer(x, first=first)
        return x

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape, self.block_length)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "run_lengths": self.run_lengths}
