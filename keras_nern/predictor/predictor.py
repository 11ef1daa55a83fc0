"""The predictor: the small MLP that represents a network.

    encoding(layer, filter, column) -> Dense(h) -> ReLU -> ... -> Dense(h) -> ReLU -> Dense(B)

It has five Dense layers by default, as in Ashkenazi et al., ICLR 2023, section 3.1. A larger width
h makes it larger and more accurate. It computes in float32 under every dtype policy, because
kernels are small differences of large activations. `local` has the predictor of large networks.
"""

from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_nern.predictor.compressed_dense import CompressedDense
from keras_nern.predictor.positional_encoding import PositionalEncoding
from keras_nern.predictor.quantization import Quantized
from keras_nern.predictor.size import predictor_bytes
from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor

# Name of the output layer, which the default optimizer treats differently from hidden layers.
OUTPUT_LAYER = "predicted_kernels"


class Predictor(keras.layers.Layer):
    """What the predictors have in common: Dense layers that can be compressed.

    A subclass creates `hidden` and `output_layer`.

    Args:
        hidden_size, num_layers, block_length, bits, pruned: as for `KernelPredictor`.
        **kwargs: `keras.layers.Layer` arguments.
    """

    experts: int
    hidden: list
    output_layer: keras.layers.Layer

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        block_length: int,
        bits: int | None,
        pruned: bool,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.hidden_size = checks.integer("hidden_size", hidden_size, minimum=1)
        self.num_layers = checks.integer("num_layers", num_layers, minimum=2)
        self.block_length = checks.integer("block_length", block_length, minimum=1)
        self.bits = bits
        self.pruned = checks.flag("pruned", pruned)

    @property
    def layers(self) -> list[Any]:
        """The Dense layers, from the first hidden layer to the output layer."""
        return [*self.hidden, self.output_layer]

    def compress(self, sparsity: float = 0.0) -> None:
        """Sets the masks and step sizes of all Dense layers from their current kernels.

        Args:
            sparsity: fraction of the weights to prune in each layer, in [0, 1). Defaults to
                `0.0`.
        """
        checks.share("sparsity", sparsity, with_one=False)
        for layer in self.layers:
            layer.compress(sparsity)

    def quantized(self) -> list[Quantized]:
        """Returns the integers and step sizes of the Dense kernels.

        Returns:
            A list with one `quantization.Quantized` per layer.

        Raises:
            ValueError: if the predictor is not quantized.
        """
        return [layer.quantized() for layer in self.layers]

    def not_finite(self) -> list[str]:
        """The paths of weights with infinite or NaN entries."""
        return [
            weight.path
            for weight in self.weights
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all()
        ]

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases, excluding masks and step sizes."""
        dense = [layer.kernel for layer in self.layers]
        dense += [layer.bias for layer in self.layers if layer.bias is not None]
        return sum(int(keras.ops.size(variable)) for variable in dense)

    @property
    def num_bytes(self) -> float:
        """The size in bytes, see `size`."""
        features = self.layers[0].kernel.shape[-2]
        shape = self.hidden_size, self.num_layers, self.block_length, features
        return predictor_bytes(*shape, self.bits, self.experts)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "block_length": self.block_length,
            "bits": self.bits,
            "pruned": self.pruned,
        }


@register
class KernelPredictor(Predictor):
    """Predicts blocks of kernel weights from their coordinates.

    Args:
        hidden_size: h, width of the hidden layers.
        num_layers: number of Dense layers including the output layer, at least 2. Defaults to
            `5`.
        block_length: B, weights per block, such as k * k. Defaults to `9`.
        encoding: a Keras layer that maps coordinates `(n, 3)` to features `(n, d)`; `None` for
            `PositionalEncoding()`. Defaults to `None`.
        bits: bits per weight of the Dense kernels, from 2 to 8, if they are quantized (see
            `compress`); `None` for floats. Defaults to `None`.
        pruned: whether the Dense kernels have pruning masks. Defaults to `False`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(n, 3)`, integers (layer, filter, column).

    Output shape:
        float32 `(n, block_length)`.

    Raises:
        ValueError: if `hidden_size` or `block_length` is not an integer of at least 1,
            `num_layers` is not an integer of at least 2, `bits` is neither `None` nor an integer
            from 2 to 8, or `encoding` is not a Keras layer.

    Example:

    >>> predictor = keras_nern.KernelPredictor(hidden_size=160)
    >>> predictor(np.array([[0, 0, 0], [0, 0, 1]])).shape
    TensorShape([2, 9])

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    experts = 1

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 5,
        block_length: int = 9,
        encoding: keras.layers.Layer | None = None,
        bits: int | None = None,
        pruned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size, num_layers, block_length, bits, pruned, **kwargs)
        encoding = PositionalEncoding(name="encoding") if encoding is None else encoding
        if not isinstance(encoding, keras.layers.Layer):
            raise ValueError(
                "encoding must be a Keras layer from coordinates (n, 3) to features, or None. "
                f"Received: encoding={encoding!r}"
            )
        self.encoding = encoding
        common: dict[str, Any] = {"bits": bits, "pruned": self.pruned, "dtype": "float32"}
        self.hidden = [
            CompressedDense(self.hidden_size, activation="relu", name=f"hidden_{i}", **common)
            for i in range(self.num_layers - 1)
        ]
        self.output_layer = CompressedDense(self.block_length, name=OUTPUT_LAYER, **common)

    def build(self, input_shape: Shape) -> None:
        # Calls the encoding, because a user's may lack compute_output_shape.
        shape = self.encoding(keras.KerasTensor(input_shape, "int32")).shape
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases, excluding masks and step sizes."""
        return self.encoding.count_params() + super().num_parameters

    @property
    def num_bytes(self) -> float:
        """The size of the Dense layers (see `size`), plus 4 bytes per weight of the encoding."""
        return super().num_bytes + 4 * self.encoding.count_params()

    def features(self, coordinates: Tensor) -> Tensor:
        """The features of coordinates `(n, 3)`: a tensor `(n, d)`."""
        return self.encoding(coordinates)

    def call(self, inputs: Tensor) -> Tensor:
        x = self.encoding(inputs)
        for layer in self.layers:
            x = layer(x)
        return x

    def predict_with_means(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predicts blocks and returns the mean input of each Dense layer.

        Args:
            inputs: `(n, 3)`, integers (layer, filter, column).

        Returns:
            `(outputs, means)`: float32 `(n, block_length)`, and one tensor `(width,)` per layer,
            through which no gradient flows.
        """
        x = self.encoding(inputs)
        means = []
        for layer in self.layers:
            means.append(keras.ops.stop_gradient(keras.ops.mean(x, axis=0)))
            x = layer(x)
        return x, means

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape[:-1], self.block_length)

    def get_config(self) -> dict[str, Any]:
        encoding = keras.saving.serialize_keras_object(self.encoding)
        return {**super().get_config(), "encoding": encoding}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        if isinstance(config.get("encoding"), dict):
            config["encoding"] = keras.saving.deserialize_keras_object(config["encoding"])
        return cls(**config)
