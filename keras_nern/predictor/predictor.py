"""The predictor: the small MLP that is the representation.

    encoding(layer, filter, channel) -> Dense(h) -> ReLU -> ... -> Dense(h) -> ReLU -> Dense(B)

Five blocks in all by default, as in Ashkenazi et al., ICLR 2023, section 3.1. Its
width h is the knob between size and accuracy. It stays in float32 under any mixed
precision policy: the weights it predicts are small differences of large activations.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_nern.predictor.compressed_dense import CompressedDense
from keras_nern.predictor.positional_encoding import PACKAGE, PositionalEncoding
from keras_nern.predictor.quantization import Quantized
from keras_nern.utils import checks
from keras_nern.utils.types import Shape, Tensor

# The optimizer treats the output layer apart from the hidden ones, by this name.
OUTPUT_LAYER = "predicted_kernels"


@keras.saving.register_keras_serializable(package=PACKAGE)
class KernelPredictor(keras.layers.Layer):
    """Maps kernel coordinates to kernel weights.

    Args:
        hidden_size: h, width of the hidden layers.
        num_layers: number of Dense layers, the output layer among them, at least 2.
            Defaults to `5`.
        block_length: B, weights in a predicted block, as k * k. Defaults to `9`.
        encoding: a Keras layer from `(n, 3)` coordinates to features `(n, d)`;
            `None` for `PositionalEncoding()`. Defaults to `None`.
        activation: activation of the hidden layers. Defaults to `"relu"`.
        bits: of the Dense layers' kernels, 2 to 8, where they are quantised (see
            `compression`); `None` for floats. Defaults to `None`.
        pruned: whether the kernels have masks. Defaults to `False`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(n, 3)`, integer (layer, filter, channel).

    Output shape:
        float32 `(n, block_length)`.

    Raises:
        ValueError: for a width or block length below 1, fewer than 2 blocks, other bits,
            or an encoding that is no Keras layer.

    Example:

    >>> predictor = keras_nern.KernelPredictor(hidden_size=160)
    >>> predictor(np.array([[0, 0, 0], [0, 0, 1]])).shape
    TensorShape([2, 9])

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 5,
        block_length: int = 9,
        encoding: keras.layers.Layer | None = None,
        activation: str | Callable | None = "relu",
        bits: int | None = None,
        pruned: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.hidden_size = hidden_size = checks.integer("hidden_size", hidden_size, least=1)
        self.num_layers = num_layers = checks.integer("num_layers", num_layers, least=2)
        self.block_length = block_length = checks.integer("block_length", block_length, least=1)
        encoding = PositionalEncoding(name="encoding") if encoding is None else encoding
        if not isinstance(encoding, keras.layers.Layer):
            raise ValueError(
                "encoding must be a Keras layer from coordinates (n, 3) to features, or None. "
                f"Received: encoding={encoding!r}"
            )
        self.encoding = encoding
        self.activation = keras.activations.get(activation)
        self.bits = bits
        self.pruned = pruned
        self.hidden = [
            self._dense(hidden_size, activation=self.activation, name=f"hidden_{i}")
            for i in range(num_layers - 1)
        ]
        self.output_layer = self._dense(block_length, name=OUTPUT_LAYER)

    def _dense(self, units: int, **arguments: Any) -> keras.layers.Dense:
        arguments["dtype"] = "float32"
        if self.bits is None and not self.pruned:
            return keras.layers.Dense(units, **arguments)
        return CompressedDense(units, self.bits, self.pruned, **arguments)

    def build(self, input_shape: Shape) -> None:
        # Called, as a layer of the user's own may not say its output shape otherwise.
        shape = self.encoding(keras.KerasTensor(input_shape, "int32")).shape
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    @property
    def layers(self) -> list[keras.layers.Dense]:
        """The Dense layers, from the encoding to the kernels."""
        return [*self.hidden, self.output_layer]

    def compress(self, sparsity: float = 0.0) -> None:
        """Sets masks and step sizes, where there are any, from the kernels as they are.

        Args:
            sparsity: as for `CompressedDense.compress`. Defaults to `0.0`.
        """
        for layer in self.layers:
            if isinstance(layer, CompressedDense):
                layer.compress(sparsity)

    def quantized(self) -> list[Quantized]:
        """The kernels of `layers` as integers and step sizes: a list of `quantization.Quantized`.

        Raises:
            ValueError: where they are not quantised.
        """
        if self.bits is None:
            raise ValueError("The predictor must be quantised, see compress. Received: bits=None")
        return [layer.quantized() for layer in self.layers]

    def not_finite(self) -> list[str]:
        """Paths of the weights of which some are infinite or NaN."""
        return [
            weight.path
            for weight in self.weights
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all()
        ]

    @property
    def num_parameters(self) -> int:
        """Weights and biases, masks and step sizes not counted."""
        apart = {
            id(variable)
            for layer in self.layers
            for variable in (getattr(layer, "mask", None), getattr(layer, "step_sizes", None))
        }
        return sum(int(keras.ops.size(v)) for v in self.weights if id(v) not in apart)

    @property
    def num_bytes(self) -> float:
        """Bytes of these at 4 each; those of quantised kernels at their bits, 2 for a step."""
        size = 4.0 * self.num_parameters
        if self.bits is not None:
            for layer in self.layers:
                size -= (4 - self.bits / 8) * int(keras.ops.size(layer.kernel))
                size += 2 * layer.units
        return size

    def call(self, inputs: Tensor) -> Tensor:
        return collections.deque(self._activations(inputs), maxlen=1).pop()

    def _activations(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yields what each of `layers` is given, and last the kernels."""
        x = self.encoding(inputs)
        for layer in self.layers:
            yield x
            x = layer(x)
        yield x

    def predict_with_means(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predicts kernels, and tells what the Dense layers were given on the way.

        Args:
            inputs: `(n, 3)`, integer (layer, filter, channel).

        Returns:
            `(outputs, means)`: float32 `(n, block_length)`, and for each of `layers` the mean
            of its inputs `(width,)`, through which no gradient goes.
        """
        *given, outputs = self._activations(inputs)
        return outputs, [keras.ops.stop_gradient(keras.ops.mean(x, axis=0)) for x in given]

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape[:-1], self.block_length)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "block_length": self.block_length,
            "encoding": keras.saving.serialize_keras_object(self.encoding),
            "activation": keras.activations.serialize(self.activation),
            "bits": self.bits,
            "pruned": self.pruned,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = {**config, "encoding": keras.saving.deserialize_keras_object(config["encoding"])}
        return cls(**config)


def effective_kernel(layer: keras.layers.Layer) -> Tensor:
    """The kernel that one of a predictor's `layers` computes with, a tensor."""
    if isinstance(layer, CompressedDense):
        return layer.effective_kernel
    return keras.ops.convert_to_tensor(layer.kernel)
