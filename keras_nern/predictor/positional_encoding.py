"""Sines and cosines of the coordinate, the predictor's input.

Each index v of a coordinate (layer, filter, channel) becomes

    sin(pi v b^i), cos(pi v b^i),    i = 0 .. F - 1,

with b = 0.76 and F = 40 for convolutional networks (Ashkenazi et al., ICLR 2023,
section 3.1 and appendix), on the raw integers; the three indices' features are
concatenated, 3 * 2 * 40 = 240 of them. A base below 1 gives wavelengths from 2 up to
2 / b^(F - 1), about 89,000 indices.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_nern.utils import checks
from keras_nern.utils.types import Shape, Tensor

PACKAGE = "keras_nern"


@keras.saving.register_keras_serializable(package=PACKAGE)
class PositionalEncoding(keras.layers.Layer):
    """Encodes integer coordinates as sines and cosines of geometric frequencies.

    Float32 holds pi * v for v = 2,000 only to 5e-4, and the error would differ
    between devices. So b^i is split into a part of 12 bits, whose product with v is
    exact and is reduced modulo 2 first, and a small remainder: for bases up to 1,
    features are right to 2e-6 for every index below 4,096.

    Args:
        num_frequencies: F, the sine and cosine pairs per index. Defaults to `40`.
        base: b, ratio of neighbouring frequencies, in (0, 2). Defaults to `0.76`.
        **kwargs: `keras.layers.Layer` arguments.

    Input shape:
        `(..., indices)`, integers.

    Output shape:
        float32 `(..., indices * 2 * num_frequencies)`: for the first index all
        sines, then all cosines; then for the second.

    Raises:
        ValueError: for a number of frequencies that is no integer of at least 1, or a base
            outside (0, 2).

    Example:

    >>> features = keras_nern.PositionalEncoding()(np.array([[0, 3, 7]]))
    >>> features.shape
    TensorShape([1, 240])

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    def __init__(self, num_frequencies: int = 40, base: float = 0.76, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        num_frequencies = checks.integer("num_frequencies", num_frequencies, least=1)
        if not 0 < base < 2:
            raise ValueError(f"base must be between 0 and 2. Received: base={base!r}")
        self.num_frequencies = num_frequencies
        self.base = base
        frequencies = base ** np.arange(num_frequencies, dtype="float64")
        _, exponent = np.frexp(frequencies)
        unit = 2.0 ** (exponent - 12)  # the last of 12 bits
        self._coarse = np.floor(frequencies / unit) * unit
        self._fine = (frequencies - self._coarse).astype("float32")
        self._coarse = self._coarse.astype("float32")

    def call(self, inputs: Tensor) -> Tensor:
        index = keras.ops.cast(inputs, "float32")[..., None]  # (..., indices, 1)
        turns = keras.ops.mod(index * self._coarse, 2.0) + index * self._fine
        angle = math.pi * turns  # (..., indices, F)
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
