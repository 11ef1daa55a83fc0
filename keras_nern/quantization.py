"""Weights as small integers: the arithmetic of a quantised predictor.

A Dense kernel W `(inputs, units)` is kept as integers q and one step s_j for each unit,

    W^[i, j] = s_j q[i, j],    q = clip(round(W[i, j] / s_j), -Q, Q),    Q = 2^(bits - 1) - 1,

symmetric about 0, so that a weight that was pruned stays 0. Steps are float16 numbers, two
bytes for each unit. The step of a unit is that of a few candidates, from its largest weight
down, with the least squared error: clipping a few large weights makes room for the many.
"""

import dataclasses
import numbers

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_nern.hints import Tensor

BITS = tuple(range(2, 9))
SHARES = np.linspace(1.0, 0.3, 29)  # of the largest weight, where Q is put
LEAST_STEP = 2.0**-14  # the smallest normal float16


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantised kernel.

    Attributes:
        levels: int8 `(inputs, units)`, q.
        steps: float16 `(units,)`, s.
    """

    levels: np.ndarray
    steps: np.ndarray

    def values(self) -> np.ndarray:
        """The weights that these stand for, float32 `(inputs, units)`."""
        return self.levels.astype("float32") * self.steps.astype("float32")


def largest_level(bits: int) -> int:
    """Q, the largest integer of so many bits.

    Args:
        bits: 2 to 8.

    Returns:
        2^(bits - 1) - 1.

    Raises:
        ValueError: for other bits than the integers 2 to 8.
    """
    if not isinstance(bits, numbers.Integral) or bits not in BITS:
        raise ValueError(
            f"bits must be an integer from {BITS[0]} to {BITS[-1]}. Received: bits={bits!r}"
        )
    return 2 ** (bits - 1) - 1


def quantization_steps(kernel: ArrayLike, bits: int) -> np.ndarray:
    """Chooses the step of each unit.

    Args:
        kernel: array `(inputs, units)`.
        bits: 2 to 8.

    Returns:
        float16 array `(units,)`, all positive.

    Raises:
        ValueError: for other bits.
    """
    top = largest_level(bits)
    kernel = np.asarray(kernel, "float64")
    largest = np.abs(kernel).max(axis=0)
    best: np.ndarray | None = None
    for share in SHARES:
        steps = np.maximum(share * largest / top, LEAST_STEP).astype("float16")
        exact = steps.astype("float64")
        levels = np.clip(np.rint(kernel / exact), -top, top)
        error = ((kernel - levels * exact) ** 2).sum(axis=0)
        if best is None:
            best, least = steps, error
        else:
            better = error < least
            best, least = np.where(better, steps, best), np.where(better, error, least)
    assert best is not None  # there are shares
    return best


def quantize(kernel: ArrayLike, bits: int, steps: ArrayLike | None = None) -> Quantized:
    """Quantises a kernel.

    Args:
        kernel: array `(inputs, units)`.
        bits: 2 to 8.
        steps: float16 `(units,)`; `None` for those of `quantization_steps`. Defaults to
            `None`.

    Returns:
        A `Quantized`.

    Raises:
        ValueError: for other bits.

    Example:

    >>> quantize(np.array([[0.75], [-0.3]]), bits=3, steps=np.float16([0.25])).levels
    array([[ 3],
           [-1]], dtype=int8)
    """
    top = largest_level(bits)
    steps = quantization_steps(kernel, bits) if steps is None else np.asarray(steps, "float16")
    levels = np.rint(np.asarray(kernel, "float32") / steps.astype("float32"))
    return Quantized(np.clip(levels, -top, top).astype("int8"), steps)


def straight_through(kernel: Tensor, steps: Tensor, bits: int) -> Tensor:
    """A kernel as it is quantised, with gradients as if it were not.

    Args:
        kernel: float32 tensor `(inputs, units)`.
        steps: float32 tensor `(units,)`, of float16 values.
        bits: 2 to 8.

    Returns:
        float32 tensor `(inputs, units)`; the values are those of `quantize`, the gradient is
        the identity's (Bengio et al., "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013, arXiv 1308.3432).
    """
    top = largest_level(bits)
    levels = ops.clip(ops.round(kernel / steps), -top, top)
    # this way round the first term is not rounded
    return ops.stop_gradient(levels * steps) + (kernel - ops.stop_gradient(kernel))
