"""Integers that correct predicted kernels.

With a residual, a kernel is

    W^ = prediction + s_u q,

with an integer q for each weight and a step size s_u for each output u of the layer: each filter,
or each filter of each group. An entropy coder spends few bits on integers that are mostly zero, so
that the residual takes any number of bytes from almost none to those of an exact copy.

Training keeps a float x for each integer q and rounds it in the forward pass; the gradient passes
through the rounding unchanged (Bengio et al., 2013, arXiv 1308.3432). This is the gradient at q and
not at x, so on its own it would drive x to the border between two integers, where it jumps back and
forth (Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, arXiv
2203.11086). To first order, the gradients differ by h s^2 (x - q), where h is the second derivative
of the loss with respect to the weight. With the *rounding loss*

    1/2 sum of h s^2 (x - q)^2

as part of the loss, x settles at the minimum of the loss along its weight, and q only changes if
another integer is nearer to it.

The loss also contains the number of bits of the integers, as in entropy-constrained quantization
(Chou, Lookabaugh and Gray, IEEE Transactions on Acoustics, Speech, and Signal Processing, 1989). It
is estimated for each kernel from the mean m of |q|: if |q| has a geometric distribution and the
sign is a fair coin, a weight takes

    (1 + m) log2(1 + m) - m log2(m) + m / (1 + m)    bits.

It also trains the *vectors* of the classifier: scales and offsets of its normalizations, and its
biases. They are few, a file stores them in any case, and they correct what the integers do to whole
channels.

The loss of a bit, `rate_weight`, is in proportion to the cost that a bit saves where the integers
were chosen (see `rounding`), so that training neither adds nor removes many.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_nern.utils.backend import register
from keras_nern.utils.types import Shape, Tensor

LARGEST_LEVEL = 127  # levels are stored as int8
STEPS_PER_OCTAVE = 4  # step sizes are 2^(j / 4) with an integer j, which costs a few bits
EXPONENTS = (-14 * STEPS_PER_OCTAVE, 15 * STEPS_PER_OCTAVE)  # of normal float16 numbers
# The change of a vector's entry when its variable, whose rate is that of levels, changes by 1.
VECTOR_UNIT = 0.02
SMALLEST_MEAN = 1e-6  # of |q|, in the logarithm


@register
class Residual(keras.layers.Layer):
    """Integers and step sizes of all kernels.

    Args:
        shapes: list of `(groups, patch, filters)` per kernel, see `Kernel.matrix_shape`.
        lengths: list of the lengths of the vectors. Defaults to none.
        **kwargs: `keras.layers.Layer` arguments.

    Attributes:
        levels: list of float32 variables of these shapes, which are rounded to the integers q.
        step_sizes: list of float32 variables `(groups, 1, filters)`, s, see `step_sizes_of`.
        curvature: list of float32 variables of these shapes, h; zeros until they are assigned.
        vectors: list of float32 variables of these lengths, see `changes`.
        rate_weight: float32 scalar variable, the loss of a bit.
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], lengths: Sequence[int] = (), **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.shapes = [tuple(shape) for shape in shapes]
        self.lengths = list(lengths)
        self.levels: list[keras.Variable] = []
        self.step_sizes: list[keras.Variable] = []
        self.curvature: list[keras.Variable] = []
        self.vectors: list[keras.Variable] = []

    def build(self, input_shape: Shape | None = None) -> None:
        for index, (groups, patch, filters) in enumerate(self.shapes):
            self.levels.append(
                self.add_weight(
                    name=f"levels_{index}", shape=(groups, patch, filters), initializer="zeros"
                )
            )
            self.step_sizes.append(
                self.add_weight(
                    name=f"step_sizes_{index}",
                    shape=(groups, 1, filters),
                    initializer="ones",
                    trainable=False,
                )
            )
            self.curvature.append(
                self.add_weight(
                    name=f"curvature_{index}",
                    shape=(groups, patch, filters),
                    initializer="zeros",
                    trainable=False,
                )
            )
        for index, length in enumerate(self.lengths):
            self.vectors.append(
                self.add_weight(name=f"vector_{index}", shape=(length,), initializer="zeros")
            )
        self.rate_weight = self.add_weight(
            name="rate_weight", shape=(), initializer="zeros", trainable=False
        )

    def values(self, index: int) -> Tensor:
        """The residual of a kernel: float32 `(groups, patch, filters)`."""
        return ops.convert_to_tensor(self.step_sizes[index]) * self._rounded(index)

    def changes(self) -> list[Tensor]:
        """By how much each vector differs from the original: float32 tensors `(length,)`."""
        return [VECTOR_UNIT * ops.convert_to_tensor(vector) for vector in self.vectors]

    def _rounded(self, index: int) -> Tensor:
        levels = ops.convert_to_tensor(self.levels[index])
        rounded = ops.clip(ops.round(levels), -LARGEST_LEVEL, LARGEST_LEVEL)
        # Adding an exact 0 keeps the integers exact.
        return ops.stop_gradient(rounded) + (levels - ops.stop_gradient(levels))

    def bits(self) -> Tensor:
        """Estimates the bits of all integers; differentiable.

        Returns:
            A scalar.
        """
        total = ops.zeros((), "float32")
        for index, shape in enumerate(self.shapes):
            mean = ops.mean(ops.abs(self._rounded(index)))
            total = total + math.prod(shape) * _bits_per_weight(mean)
        return total

    def rate_loss(self) -> Tensor:
        """The loss of all bits; a differentiable scalar."""
        return ops.convert_to_tensor(self.rate_weight) * self.bits()

    def rounding_loss(self) -> Tensor:
        """What the distances of the floats from their integers cost; a differentiable scalar."""
        total = ops.zeros((), "float32")
        for index, variable in enumerate(self.levels):
            levels = ops.convert_to_tensor(variable)
            distances = levels - ops.stop_gradient(self._rounded(index))
            steps = ops.convert_to_tensor(self.step_sizes[index])
            curvature = ops.convert_to_tensor(self.curvature[index])
            total = total + 0.5 * ops.sum(curvature * ops.square(steps * distances))
        return total

    def integers(self) -> list[np.ndarray]:
        """The integers q of every kernel: int8 arrays of `shapes`."""
        rounded = [np.rint(ops.convert_to_numpy(levels)) for levels in self.levels]
        return [np.clip(one, -LARGEST_LEVEL, LARGEST_LEVEL).astype("int8") for one in rounded]

    def layer_bits(self) -> list[float]:
        """The entropy of the integers and of the step sizes of every kernel, in bits.

        An entropy coder takes a few percent more (see `artifact.codec`).
        """
        return [
            sum(map(_entropy, pair)) for pair in zip(self.integers(), self.exponents(), strict=True)
        ]

    def exponents(self) -> list[np.ndarray]:
        """The exponents of the step sizes of every kernel: int8 arrays `(groups, 1, filters)`."""
        return [exponents_of(ops.convert_to_numpy(one)) for one in self.step_sizes]

    def assign(self, integers: Sequence[np.ndarray], exponents: Sequence[np.ndarray]) -> None:
        """Sets integers and step sizes, each a list with an array per kernel."""
        for variable, value in zip(self.levels, integers, strict=True):
            variable.assign(value.astype("float32"))
        for variable, value in zip(self.step_sizes, exponents, strict=True):
            variable.assign(step_sizes_of(value))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shapes": self.shapes, "lengths": self.lengths}


def _entropy(values: np.ndarray) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def exponents_of(step_sizes: np.ndarray, rounding: Callable = np.rint) -> np.ndarray:
    """The integers j of the powers 2^(j / 4) next to given step sizes of at least 0: int8."""
    smallest = 2.0 ** (EXPONENTS[0] / STEPS_PER_OCTAVE)
    exponents = rounding(STEPS_PER_OCTAVE * np.log2(np.maximum(step_sizes, smallest)))
    return np.clip(exponents, *EXPONENTS).astype("int8")


def step_sizes_of(exponents: np.ndarray) -> np.ndarray:
    """The step sizes 2^(j / 4), rounded to float16: a float32 array."""
    return (
        np.exp2(exponents.astype("float64") / STEPS_PER_OCTAVE).astype("float16").astype("float32")
    )


def _bits_per_weight(mean: Tensor) -> Tensor:
    mean = ops.maximum(mean, SMALLEST_MEAN)
    nats = (1 + mean) * ops.log(1 + mean) - mean * ops.log(mean)
    return nats / math.log(2) + mean / (1 + mean)
