"""The kernels of a classifier: the weights that a predictor can stand for.

A convolution holds one variable, a separable one two; *kernels* for short. Put with its
spatial axes first and the axes (channels, filters) last, a kernel is for each filter a row

    W[f] = ( W[f, c, s] ),    channel by channel, and within a channel place by place,

of cin * S weights, S being the number of spatial places: 9 for 3x3, 1 for 1x1 and for Dense
layers. How rows are cut into what a predictor answers with is in `blocks`.
"""

import dataclasses
import math

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.utils.types import Tensor

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
CONVOLUTIONS = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *_TRANSPOSED,
    *_DEPTHWISE,
    *_SEPARABLE,
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A variable that can be represented.

    Attributes:
        path: the layer's, as in `"stem/conv1"`.
        layer: the Keras layer.
        attribute: the layer's attribute that holds the variable.
        shape: the variable's shape.
    """

    path: str
    layer: keras.layers.Layer
    attribute: str
    shape: tuple

    @property
    def name(self) -> str:
        """The path, and the variable's name where the layer has two of them."""
        return self.path if self.attribute == "kernel" else f"{self.path}/{self.attribute}"

    @property
    def variable(self) -> keras.Variable:
        """The Keras variable."""
        return getattr(self.layer, self.attribute)

    @property
    def spatial(self) -> tuple[int, ...]:
        """The lengths of the spatial axes, `()` for a Dense layer's."""
        return self.shape[:-2]

    @property
    def places(self) -> int:
        """S, the weights of one channel in one filter."""
        return math.prod(self.spatial)

    @property
    def channels(self) -> int:
        """cin; of one group, where the convolution has groups."""
        return self.shape[-1 if self._is_transposed else -2]

    @property
    def filters(self) -> int:
        """cout; of a depthwise convolution, its multiplier."""
        return self.shape[-2 if self._is_transposed else -1]

    @property
    def num_weights(self) -> int:
        """All weights in it."""
        return math.prod(self.shape)

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.layer, _TRANSPOSED)

    def rows(self, values: ArrayLike) -> np.ndarray:
        """Lays an array of the variable's shape out as `(filters, channels * places)`."""
        rank = len(self.spatial)
        filters, channels = (rank, rank + 1) if self._is_transposed else (rank + 1, rank)
        values = np.asarray(values).transpose(filters, channels, *range(rank))
        return values.reshape(self.filters, -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`, of a tensor and differentiable."""
        rank = len(self.spatial)
        tensor = keras.ops.reshape(rows, (self.filters, self.channels, *self.spatial))
        last = (0, 1) if self._is_transposed else (1, 0)
        return keras.ops.transpose(tensor, (*range(2, rank + 2), *last))


def kernels_of(path: str, layer: keras.layers.Layer) -> list[Kernel]:
    """Lists the kernels that a layer holds itself.

    Args:
        path: the layer's.
        layer: a built Keras layer.

    Returns:
        A list of `Kernel`: one for a convolution or a Dense layer, two for a separable
        convolution, none for other layers.
    """
    attributes: tuple[str, ...]
    if isinstance(layer, _SEPARABLE):
        attributes = ("depthwise_kernel", "pointwise_kernel")
    elif isinstance(layer, (*CONVOLUTIONS, keras.layers.Dense)):
        attributes = ("kernel",)
    else:
        attributes = ()
    return [
        Kernel(path, layer, attribute, tuple(getattr(layer, attribute).shape))
        for attribute in attributes
    ]


def walk_layers(model: keras.Model) -> list[tuple[str, keras.layers.Layer]]:
    """Lists all layers in a model, to any depth.

    Args:
        model: a `keras.Model`.

    Returns:
        A list of `(path, layer)`, each layer once and after the one it is in, the path as
        in `"inner/conv1"`: nested models, wrappers and custom layers are entered, and
        listed themselves. Where a path is taken, a number is put behind it.
    """
    found, seen, taken = [], {id(model)}, set()

    def walk(layer: keras.layers.Layer, prefix: str) -> None:
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            path, number = prefix + inner.name, 1
            while path in taken:
                number += 1
                path = f"{prefix}{inner.name}_{number}"
            taken.add(path)
            found.append((path, inner))
            walk(inner, f"{path}/")

    walk(model, "")
    return found


def finalize(model: keras.Model) -> None:
    """Lets layers know of weights that were assigned.

    `keras.layers.Normalization` computes with tensors that it makes of its weights when it
    loads them, not when they are assigned.

    Args:
        model: a `keras.Model`.
    """
    for _, layer in walk_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
