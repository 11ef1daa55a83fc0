"""Positional encoding of coordinates, the predictor's input.

Each index v of a coordinate (layer, filter, column) is encoded as

    sin(pi v b^i), cos(pi v b^i),    i = 0 .. F - 1,

with b = 0.76 and F = 40 for convolutional networks (Ashkenazi et al., ICLR 2023, section 3.1 and
appendix). Indices are not normalized. The features of the three indices are concatenated to
3 * 2 * 40 = 240 features. Their wavelengths range from 2 to 2 / b^(F - 1), about 89,000 indices.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor


@register
class PositionalEncoding(keras.layers.Layer):
    """Encodes integer coordinates as sines and cosines of geometric frequencies.

    With a base of at most 1, features are accurate to 2e-6 for every index below 4,096 on every
    device. A float32 product pi * v is only accurate to 5e-4 at v = 2,000, so b^i is split into
    its leading 12 bits, whose product with v is exact and is reduced modulo 2, and a small
    remainder.

    Args:
        num_frequencies: F, sine and cosine pairs per index. Defaults to `40`.
        base: b, ratio of successive frequencies, in (0, 2). Defaults to `0.76`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(..., indices)`, integers.

    Output shape:
        float32 `(..., indices * 2 * num_frequencies)`. Each index contributes its sines,
        followed by its cosines.

    Raises:
        ValueError: if `num_frequencies` is not an integer of at least 1, or if `base` is not a
            number in (0, 2).

    Example:

    >>> features = keras_nern.PositionalEncoding()(np.array([[0, 3, 7]]))
    >>> features.shape
    TensorShape([1, 240])

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    def __init__(self, num_frequencies: int = 40, base: float = 0.76, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.num_frequencies = checks.integer("num_frequencies", num_frequencies, minimum=1)
        self.base = checks.number("base", base)
        if not 0 < self.base < 2:
            raise ValueError(f"base must be between 0 and 2. Received: base={base!r}")
        frequencies = self.base ** np.arange(self.num_frequencies, dtype="float64")
        _, exponents = np.frexp(frequencies)
        last_bit = 2.0 ** (exponents - 12)
        coarse = np.floor(frequencies / last_bit) * last_bit
        self._coarse = coarse.astype("float32")
        self._fine = (frequencies - coarse).astype("float32")

    def call(self, inputs: Tensor) -> Tensor:
        index = keras.ops.cast(inputs, "float32")[..., None]  # (..., indices, 1)
        half_turns = keras.ops.mod(index * self._coarse, 2.0) + index * self._fine
        angle = math.pi * half_turns  # (..., indices, F)
        features = keras.ops.concatenate([keras.ops.sin(angle), keras.ops.cos(angle)], axis=-1)
        shape = keras.ops.shape(inputs)
        return keras.ops.reshape(features, (*shape[:-1], self._width(inputs.shape)))

    def compute_output_shape(self, input_shape: Sequence) -> Shape:
        return (*input_shape[:-1], self._width(input_shape))

    def _width(self, input_shape: Sequence[int]) -> int:
        return input_shape[-1] * 2 * self.num_frequencies

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_frequencies": self.num_frequencies,
            "base": self.base,
        }
