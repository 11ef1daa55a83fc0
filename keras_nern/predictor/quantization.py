"""Uniform symmetric quantization of Dense kernels.

A kernel W `(inputs, units)` is stored as integers q and one step size s_j per unit:

    W^[i, j] = s_j q[i, j],    q = clip(round(W[i, j] / s_j), -Q, Q),    Q = 2^(bits - 1) - 1.

The kernels of local predictors `(experts, inputs, units)` have one step size per expert instead.
Their weights have no large outliers, so with 7 or 8 bits level Q is at least 4.25 standard
deviations there, close to the *4-sigma loading* of Jayant and Noll ("Digital Coding of Waveforms",
1984). Finer levels would make entropy-coded files larger and reduce the error little.

The levels are symmetric about 0, so that a pruned weight stays 0. Step sizes are float16, two
bytes each. A step size is the candidate with the least squared error. Candidates place level Q at
30 to 100 percent of the largest weight of the unit or expert, because clipping a few large weights
allows finer levels for all others.
"""

import dataclasses
import numbers

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_nern.utils.types import Shape, Tensor

BITS = tuple(range(2, 9))
CLIPPING = np.linspace(1.0, 0.3, 29)  # candidates for s_j Q, as fractions of the largest weight
SMALLEST_STEP = 2.0**-14  # the smallest normal float16


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized kernel.

    Attributes:
        levels: int8 array of the kernel's shape, q.
        step_sizes: float16 array `(units,)` or `(experts, 1, 1)`, s.
    """

    levels: np.ndarray
    step_sizes: np.ndarray

    def values(self) -> np.ndarray:
        """The dequantized kernel W^: a float32 array of the kernel's shape."""
        return self.levels.astype("float32") * self.step_sizes.astype("float32")


def largest_level(bits: int) -> int:
    """Returns Q, the largest level for a number of bits.

    Args:
        bits: bits per weight, from 2 to 8.

    Returns:
        2^(bits - 1) - 1.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """
    if not isinstance(bits, numbers.Integral) or bits not in BITS:
        raise ValueError(
            f"bits must be an integer from {BITS[0]} to {BITS[-1]}. Received: bits={bits!r}"
        )
    return 2 ** (bits - 1) - 1


def choose_step_sizes(
    kernel: ArrayLike, bits: int, shape: Shape | None = None, loading: float = 0.0
) -> np.ndarray:
    """Chooses step sizes that minimize the squared error.

    Args:
        kernel: array `(inputs, units)` or `(experts, inputs, units)`.
        bits: bits per weight, from 2 to 8.
        shape: shape of the result, which broadcasts with the kernel; `None` for `(units,)`.
            Defaults to `None`.
        loading: level Q is at least this many root mean squares of the weights. Defaults to
            `0.0`.

    Returns:
        float16 array of that shape, all positive.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """
    top = largest_level(bits)
    kernel = np.asarray(kernel, "float64")
    shape = kernel.shape[-1:] if shape is None else shape
    aligned = (1,) * (kernel.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, length in enumerate(aligned) if length == 1)
    largest = np.abs(kernel).max(axis=axes).reshape(shape)
    smallest = loading * np.sqrt((kernel**2).mean(axis=axes)).reshape(shape) / top
    steps = CLIPPING.reshape(-1, *(1,) * len(shape)) * largest / top
    candidates = np.maximum(np.maximum(steps, smallest), SMALLEST_STEP).astype("float16")
    errors = []  # (candidates, *shape)
    for step_sizes in candidates.astype("float64"):
        levels = np.clip(np.rint(kernel / step_sizes), -top, top)
        errors.append(((kernel - levels * step_sizes) ** 2).sum(axis=axes).reshape(shape))
    best = np.argmin(errors, axis=0)[None]
    return np.take_along_axis(candidates, best, axis=0)[0]


def quantize(kernel: ArrayLike, bits: int, step_sizes: ArrayLike | None = None) -> Quantized:
    """Quantizes a kernel.

    Args:
        kernel: array `(inputs, units)` or `(experts, inputs, units)`.
        bits: bits per weight, from 2 to 8.
        step_sizes: float16 array that broadcasts with the kernel; `None` to call
            `choose_step_sizes`. Defaults to `None`.

    Returns:
        A `Quantized`.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.

    Example:

    >>> quantize(np.array([[0.75], [-0.3]]), bits=3, step_sizes=np.float16([0.25])).levels
    array([[ 3],
           [-1]], dtype=int8)
    """
    top = largest_level(bits)
    if step_sizes is None:
        step_sizes = choose_step_sizes(kernel, bits)
    step_sizes = np.asarray(step_sizes, "float16")
    levels = np.rint(np.asarray(kernel, "float32") / step_sizes.astype("float32"))
    return Quantized(np.clip(levels, -top, top).astype("int8"), step_sizes)


def fake_quantize(kernel: Tensor, step_sizes: Tensor, bits: int) -> Tensor:
    """Quantizes a kernel in the forward pass only, with the straight-through estimator.

    Args:
        kernel: float32 tensor.
        step_sizes: float32 tensor with float16 values, which broadcasts with the kernel.
        bits: bits per weight, from 2 to 8.

    Returns:
        float32 tensor of the kernel's shape with the values of `quantize(...).values()` and the
        gradient of the identity.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation", 2013, arXiv 1308.3432.
    """
    top = largest_level(bits)
    levels = ops.clip(ops.round(kernel / step_sizes), -top, top)
    # Adding an exact 0 keeps the values exact; kernel + stop_gradient(W^ - kernel) would round.
    return ops.stop_gradient(levels * step_sizes) + (kernel - ops.stop_gradient(kernel))
