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

from keras_nern.utils.types import Tensor

BITS = tuple(range(2, 9))
SHARES = np.linspace(1.0, 0.3, 29)  # of the largest weight, where Q is put
LEAST_STEP = 2.0**-14  # the smallest normal float16


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantised kernel.

    Attributes:
        levels: int8 `(inputs, units)`, q.
        step_sizes: float16 `(units,)`, s.
    """

    levels: np.ndarray
    step_sizes: np.ndarray

    def values(self) -> np.ndarray:
        """The weights that these stand for, float32 `(inputs, units)`."""
        return self.levels.astype("float32") * self.step_sizes.astype("float32")


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


def choose_step_sizes(kernel: ArrayLike, bits: int) -> np.ndarray:
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
        step_sizes = np.maximum(share * largest / top, LEAST_STEP).astype("float16")
        exact = step_sizes.astype("float64")
        levels = np.clip(np.rint(kernel / exact), -top, top)
        error = ((kernel - levels * exact) ** 2).sum(axis=0)
        if best is None:
            best, least = step_sizes, error
        else:
            better = error < least
            best, least = np.where(better, step_sizes, best), np.where(better, error, least)
    assert best is not None  # there are shares
    return best


def quantize(kernel: ArrayLike, bits: int, step_sizes: ArrayLike | None = None) -> Quantized:
    """Quantises a kernel.

    Args:
        kernel: array `(inputs, units)`.
        bits: 2 to 8.
        step_sizes: float16 `(units,)`; `None` for those of `choose_step_sizes`. Defaults to
            `None`.

    Returns:
        A `Quantized`.

    Raises:
        ValueError: for other bits.

    Example:

    >>> quantize(np.array([[0.75], [-0.3]]), bits=3, step_sizes=np.float16([0.25])).levels
    array([[ 3],
           [-1]], dtype=int8)
    """
    top = largest_level(bits)
    step_sizes = (
        choose_step_sizes(kernel, bits) if step_sizes is None else np.asarray(step_sizes, "float16")
    )
    levels = np.rint(np.asarray(kernel, "float32") / step_sizes.astype("float32"))
    return Quantized(np.clip(levels, -top, top).astype("int8"), step_sizes)


def fake_quantize(kernel: Tensor, step_sizes: Tensor, bits: int) -> Tensor:
    """A kernel as it is quantised, with gradients as if it were not.

    Args:
        kernel: float32 tensor `(inputs, units)`.
        step_sizes: float32 tensor `(units,)`, of float16 values.
        bits: 2 to 8.

    Returns:
        float32 tensor `(inputs, units)`; the values are those of `quantize`, the gradient is
        the identity's (Bengio et al., "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013, arXiv 1308.3432).
    """
    top = largest_level(bits)
    levels = ops.clip(ops.round(kernel / step_sizes), -top, top)
    # this way round the first term is not rounded
    return ops.stop_gradient(levels * step_sizes) + (kernel - ops.stop_gradient(kernel))
