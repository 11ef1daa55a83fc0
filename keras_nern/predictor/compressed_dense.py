"""Layers of a predictor, whose kernels can be pruned and quantized.

    y = W~^T x + b,    W~ = quantize(M * W)

M is a mask of zeros and ones; `quantization` defines the quantizer. The forward pass computes
with W~, the kernel that a compact file stores. In the backward pass the float32 kernel W receives
gradients as if it were not quantized, so that a short fit reduces the error that rounding causes.
This is quantization-aware training (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv 1712.05877). `compress` sets the mask
and the step sizes once; they are not trained.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_nern.predictor.quantization import (
    Quantized,
    choose_step_sizes,
    fake_quantize,
    largest_level,
    quantize,
)
from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor


class Compressible(keras.layers.Layer):
    """The mask and the step sizes of a layer with a `kernel`; a base class of layers.

    A subclass calls `add_compression` in `build`.

    Args:
        *args: arguments of the layer.
        bits: bits per weight of the kernel, from 2 to 8; `None` for floats. Defaults to `None`.
        pruned: whether the kernel has a mask. Defaults to `False`.
        **kwargs: arguments of the layer.

    Attributes:
        mask: float32 variable of zeros and ones, of the kernel's shape, or `None`.
        step_sizes: float32 variable with float16 values, which broadcasts with the kernel, or
            `None`.

    Raises:
        ValueError: if `bits` is neither `None` nor an integer from 2 to 8.
    """

    kernel: keras.Variable
    bias: keras.Variable | None
    units: int

    def __init__(
        self, *args: Any, bits: int | None = None, pruned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if bits is not None:
            largest_level(bits)
        self.bits = bits
        self.pruned = pruned
        self.mask: keras.Variable | None = None
        self.step_sizes: keras.Variable | None = None

    @property
    def loading(self) -> float:
        """The argument of `quantization.choose_step_sizes`."""
        return 0.0

    @property
    def step_shape(self) -> tuple[int, ...]:
        """The shape of the step sizes: one for each unit."""
        return (self.units,)

    def add_compression(self) -> None:
        """Creates the mask and the step sizes."""
        if self.pruned:
            self.mask = self._constant("mask", self.kernel.shape)
        if self.bits is not None:
            self.step_sizes = self._constant("step_sizes", self.step_shape)

    def _constant(self, name: str, shape: Shape) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer="ones", trainable=False)

    def compress(self, sparsity: float = 0.0) -> None:
        """Prunes the smallest weights, then chooses step sizes for the remaining ones.

        A layer without a mask is not pruned, and a layer without `bits` has no step sizes.

        Args:
            sparsity: fraction of the weights to prune, in [0, 1). Defaults to `0.0`.
        """
        kernel = ops.convert_to_numpy(self.kernel)
        if self.mask is not None:
            mask = np.ones(kernel.size, "float32")
            smallest = np.argsort(np.abs(kernel), axis=None, kind="stable")
            mask[smallest[: round(sparsity * kernel.size)]] = 0
            mask = mask.reshape(kernel.shape)
            self.mask.assign(mask)
            kernel = kernel * mask
        if self.bits is not None and self.step_sizes is not None:
            step_sizes = choose_step_sizes(kernel, self.bits, self.step_shape, self.loading)
            self.step_sizes.assign(step_sizes.astype("float32"))

    @property
    def effective_kernel(self) -> Tensor:
        """W~, the kernel that the forward pass uses: a float32 tensor of the kernel's shape."""
        kernel = ops.convert_to_tensor(self.kernel)
        if self.pruned:
            kernel = kernel * self.mask
        if self.bits is not None:
            kernel = fake_quantize(kernel, ops.convert_to_tensor(self.step_sizes), self.bits)
        return kernel

    def quantized(self) -> Quantized:
        """Returns the kernel's integers and step sizes.

        Returns:
            A `quantization.Quantized`.

        Raises:
            ValueError: if the kernel is not quantized.
        """
        if self.bits is None:
            raise ValueError(
                f"The kernel of {self.name!r} must be quantized, see compress. Received: bits=None"
            )
        kernel = self.kernel * self.mask if self.pruned else self.kernel
        step_sizes = ops.convert_to_numpy(self.step_sizes).astype("float16")
        return quantize(ops.convert_to_numpy(kernel), self.bits, step_sizes)

    # keras.layers.Dense saves only its kernel and bias.

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


@register
class CompressedDense(Compressible, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel can be pruned, quantized, or both.

    Args:
        *args: `keras.layers.Dense` arguments: `units`, the number of outputs, and others.
        bits, pruned: as for `Compressible`.
        **kwargs: `keras.layers.Dense` arguments.

    Attributes:
        mask: float32 variable `(inputs, units)` of zeros and ones, or `None`.
        step_sizes: float32 variable `(units,)` with float16 values, or `None`.

    Raises:
        ValueError: if `bits` is neither `None` nor an integer from 2 to 8.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.add_compression()

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.bits is None and not self.pruned:
            return super().call(inputs, training)
        outputs = ops.matmul(inputs, self.effective_kernel)
        if self.bias is not None:
            outputs = outputs + self.bias
        return self.activation(outputs)
