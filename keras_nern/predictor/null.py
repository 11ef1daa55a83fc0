"""No predictor: every prediction is zero, and a residual holds the kernels."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor


@register
class NullPredictor(keras.layers.Layer):
    """Predicts zeros; the interface is that of a `Predictor` without layers.

    Args:
        block_length: B, weights per block, such as k * k. Defaults to `9`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(n, 3)`, integers (layer, filter, column).

    Output shape:
        float32 `(n, block_length)`.
    """

    experts = hidden_size = num_layers = 0
    bits: int | None = None
    pruned = False
    num_parameters = 0
    num_bytes = 0.0
    layers: Sequence[keras.layers.Layer] = ()

    def __init__(self, block_length: int = 9, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.block_length = checks.integer("block_length", block_length, minimum=1)

    def call(self, inputs: Tensor) -> Tensor:
        return keras.ops.zeros((*keras.ops.shape(inputs)[:-1], self.block_length), "float32")

    def predict_with_means(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns `(zeros, [])`, see `KernelPredictor.predict_with_means`."""
        return self(inputs), []

    def not_finite(self) -> list[str]:
        """Returns an empty list, as there are no weights."""
        return []

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape[:-1], self.block_length)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block_length": self.block_length}
