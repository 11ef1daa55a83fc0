"""Type aliases of the package.

Keras and TensorFlow come without type annotations, so a tensor is `Any` to the type checker.
"""

import os
import typing
from collections.abc import Callable

# What keras.ops accept: a backend's tensor, a Keras variable or a symbolic tensor, often an array.
Tensor: typing.TypeAlias = typing.Any

# (filters, columns) of a layer's blocks.
Grid: typing.TypeAlias = tuple[int, int]

# A shape; `None` stands for a length that is not fixed.
Shape: typing.TypeAlias = tuple[int | None, ...]

# Path of a file.
Path: typing.TypeAlias = str | os.PathLike[str]

# Called with the amount of work done since the last call.
Progress: typing.TypeAlias = Callable[[int], object]
