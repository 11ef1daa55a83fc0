"""Names that annotations use for what has no type of its own.

Keras and TensorFlow come without types, and a tensor is the backend's own: to the type
checker it is Any, to the reader a `Tensor`.
"""

import typing
from collections.abc import Callable

# What keras.ops take: a backend's tensor, a Keras variable, a symbol; often an array, too.
Tensor: typing.TypeAlias = typing.Any

# (filters, columns) of a layer's blocks.
Grid: typing.TypeAlias = tuple[int, int]

# A shape in which some lengths may be open.
Shape: typing.TypeAlias = tuple[int | None, ...]

# Told of so much work done.
Progress: typing.TypeAlias = Callable[[int], object]
