"""Type aliases of the package.

Keras and TensorFlow come without type annotations, so a tensor is `Any` to the type checker.
"""

import os
import typing
from collections.abc import Callable

# An argument of keras.ops: a backend's tensor, a Keras variable, a symbolic tensor or an array.
Tensor: typing.TypeAlias = typing.Any

# (filters, columns) of a layer's blocks.
Grid: typing.TypeAlias = tuple[int, int]

# A shape; `None` is an axis of any length.
Shape: typing.TypeAlias = tuple[int | None, ...]

# Path of a file.
Path: typing.TypeAlias = str | os.PathLike[str]

# Called with the amount of work done since the last call.
Progress: typing.TypeAlias = Callable[[int], object]
