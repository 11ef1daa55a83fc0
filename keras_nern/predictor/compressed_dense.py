"""A Dense layer that computes with a pruned and quantised kernel, and learns with it.

    y = W~^T x + b,    W~ = quantise(M * W)

M is a mask of zeros and ones, and what quantising does is in `quantization`. Forwards the
layer is what a compact file will hold. Backwards the kernel W, which is a float32 as ever,
learns as if it were not quantised, so that a few small steps move its weights to where
rounding harms least (quantisation-aware training: Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv 1712.05877).
Mask and step_sizes are set once, by `compress`, and do not learn.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_nern.predictor.positional_encoding import PACKAGE
from keras_nern.predictor.quantization import (
    Quantized,
    choose_step_sizes,
    fake_quantize,
    largest_level,
    quantize,
)
from keras_nern.utils.types import Shape, Tensor


@keras.saving.register_keras_serializable(package=PACKAGE)
class CompressedDense(keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel is pruned, quantised, or both.

    Args:
        units: as for `keras.layers.Dense`.
        bits: of the kernel, 2 to 8; `None` for floats. Defaults to `None`.
        pruned: whether there is a mask. Defaults to `False`.
        **kwargs: `keras.layers.Dense` arguments.

    Raises:
        ValueError: for other bits.
    """

    def __init__(
        self, units: int, bits: int | None = None, pruned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(units, **kwargs)
        if bits is not None:
            largest_level(bits)
        self.bits = bits
        self.pruned = pruned
        self.mask: keras.Variable | None = None
        self.step_sizes: keras.Variable | None = None

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.pruned:
            self.mask = self._constant("mask", self.kernel.shape)
        if self.bits is not None:
            self.step_sizes = self._constant("step_sizes", (self.units,))

    def _constant(self, name: str, shape: Shape) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer="ones", trainable=False)

    def compress(self, sparsity: float = 0.0) -> None:
        """Prunes the smallest weights, then chooses the step_sizes for those that are left.

        Args:
            sparsity: share of the weights to prune, in [0, 1), where the layer is pruned at
                all. Defaults to `0.0`.
        """
        kernel = ops.convert_to_numpy(self.kernel)
        if self.mask is not None:
            count = round(sparsity * kernel.size)
            mask = np.ones(kernel.size, "float32")
            mask[np.argsort(np.abs(kernel), axis=None, kind="stable")[:count]] = 0
            self.mask.assign(mask.reshape(kernel.shape))
            kernel = kernel * mask.reshape(kernel.shape)
        if self.bits is not None and self.step_sizes is not None:
            self.step_sizes.assign(choose_step_sizes(kernel, self.bits).astype("float32"))

    @property
    def effective_kernel(self) -> Tensor:
        """W~, a float32 tensor `(inputs, units)`."""
        kernel = ops.convert_to_tensor(self.kernel)
        if self.pruned:
            kernel = kernel * self.mask
        if self.bits is not None:
            kernel = fake_quantize(kernel, ops.convert_to_tensor(self.step_sizes), self.bits)
        return kernel

    def quantized(self) -> Quantized:
        """The kernel as integers and step_sizes, a `quantization.Quantized`.

        Raises:
            ValueError: where it is not quantised.
        """
        if self.bits is None:
            raise ValueError(f"{self.name!r} must be quantised. Received: bits=None")
        kernel = self.kernel * self.mask if self.pruned else self.kernel
        step_sizes = ops.convert_to_numpy(self.step_sizes).astype("float16")
        return quantize(ops.convert_to_numpy(kernel), self.bits, step_sizes)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = ops.matmul(inputs, self.effective_kernel)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)

    # Dense saves its kernel and bias and nothing else.

    def save_own_variables(self, store: Any) -> None:
        for variable in self.variables:
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        missing = sorted({variable.name for variable in self.variables} - set(store.keys()))
        if missing:
            raise ValueError(
                f"Expected a file with {missing} of the layer {self.name!r}. "
                f"Received: {sorted(store.keys())}"
            )
        for variable in self.variables:
            variable.assign(store[variable.name])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits, "pruned": self.pruned}
