"""Kernels of a classifier: the weight variables that a predictor can represent.

A convolution holds one kernel variable, a separable convolution two. The *rows* of a kernel are
its weights, one row per filter f,

    W[f] = ( W[f, c, s] ),    channel by channel, and position by position within a channel,

with cin * S weights, where S is the number of spatial positions: 9 for 3x3, and 1 for 1x1 and for
Dense layers. `blocks` describes how rows are cut into blocks.
"""

import dataclasses
import math
from typing import Any

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
    """A weight variable that can be represented.

    Attributes:
        path: path of the layer, such as `"stem/conv1"`.
        layer: the Keras layer.
        attribute: name of the layer's attribute that holds the variable.
        shape: shape of the variable.
    """

    path: str
    layer: keras.layers.Layer
    attribute: str
    shape: tuple

    @property
    def name(self) -> str:
        """The layer's path, followed by the attribute if the layer has two kernels."""
        return self.path if self.attribute == "kernel" else f"{self.path}/{self.attribute}"

    @property
    def variable(self) -> keras.Variable:
        """The Keras variable."""
        return getattr(self.layer, self.attribute)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Lengths of the spatial axes; `()` for a Dense layer."""
        return self.shape[:-2]

    @property
    def spatial_size(self) -> int:
        """S, the number of weights per filter and channel."""
        return math.prod(self.spatial_shape)

    @property
    def channels(self) -> int:
        """cin; the channels of one group if the convolution is grouped."""
        return self.shape[-1 if self._is_transposed else -2]

    @property
    def filters(self) -> int:
        """cout; the depth multiplier of a depthwise convolution."""
        return self.shape[-2 if self._is_transposed else -1]

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, channels of a depthwise one, and 1 for others."""
        if isinstance(self.layer, _DEPTHWISE):
            return self.channels
        return getattr(self.layer, "groups", 1) if self.attribute == "kernel" else 1

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """`(groups, patch, filters)`: a matrix for each group, with the filters of one group."""
        filters = self.shape[-1] // (1 if isinstance(self.layer, _DEPTHWISE) else self.groups)
        return self.groups, self.num_weights // (self.groups * filters), filters

    def matrices(self, values: Tensor) -> Tensor:
        """Rearranges a tensor of the variable's shape to `matrix_shape`; differentiable."""
        groups, patch, filters = self.matrix_shape
        split = keras.ops.reshape(values, (patch, groups, filters))
        return keras.ops.transpose(split, (1, 0, 2))

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Rearranges a tensor of `matrix_shape` back to the variable's shape; differentiable."""
        return keras.ops.reshape(keras.ops.transpose(matrices, (1, 0, 2)), self.shape)

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.layer, _TRANSPOSED)

    def values(self) -> np.ndarray:
        """The current weights: float32 array of the variable's shape."""
        return np.asarray(keras.ops.convert_to_numpy(self.variable), "float32")

    def by_channel(self, values: ArrayLike) -> np.ndarray:
        """Rearranges an array of the variable's shape to `(filters, channels, S)`."""
        rank = len(self.spatial_shape)
        filters, channels = (rank, rank + 1) if self._is_transposed else (rank + 1, rank)
        values = np.asarray(values).transpose(filters, channels, *range(rank))
        return values.reshape(self.filters, self.channels, self.spatial_size)

    def rows(self, values: ArrayLike) -> np.ndarray:
        """Rearranges an array of the variable's shape to `(filters, channels * S)`."""
        return self.by_channel(values).reshape(self.filters, -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Rearranges a tensor of `rows` back to the variable's shape; differentiable."""
        rank = len(self.spatial_shape)
        tensor = keras.ops.reshape(rows, (self.filters, self.channels, *self.spatial_shape))
        last = (0, 1) if self._is_transposed else (1, 0)
        return keras.ops.transpose(tensor, (*range(2, rank + 2), *last))


def kernels_of(path: str, layer: keras.layers.Layer) -> list[Kernel]:
    """Lists the kernels that a layer itself holds.

    Args:
        path: path of the layer.
        layer: a built Keras layer.

    Returns:
        A list of `Kernel`: one for a convolution or a Dense layer, two for a separable
        convolution, none for other layers.
    """
    attributes: tuple[str, ...] = ()
    if isinstance(layer, _SEPARABLE):
        attributes = ("depthwise_kernel", "pointwise_kernel")
    elif isinstance(layer, (*CONVOLUTIONS, keras.layers.Dense)):
        attributes = ("kernel",)
    return [
        Kernel(path, layer, attribute, tuple(getattr(layer, attribute).shape))
        for attribute in attributes
    ]


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Lists the layers that a layer holds directly.

    Keras lists them in public only for models, by `Model.layers`. This function calls the private
    method behind it, `Layer._flatten_layers`. Tried on Keras 3.15.
    """
    return layer._flatten_layers(include_self=False, recursive=False)


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Lists the weights that a layer holds itself, without those of its sublayers."""
    inner = {id(variable) for sublayer in sublayers(layer) for variable in sublayer.weights}
    return [variable for variable in layer.weights if id(variable) not in inner]


def check_built(name: str, model: Any) -> None:
    """Raises a ValueError unless an argument is a built `keras.Model`."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{name} must be a built keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    layers = [model, *(layer for _, layer in walk_layers(model))]
    unbuilt = [layer.name for layer in layers if not layer.built]
    # a built model may hold layers that are never called and have no weights
    if not model.built or not any(layer.weights for layer in layers[1:] if layer.built):
        raise ValueError(
            f"{name} must be a built keras.Model: give it a keras.Input, or call it on a batch of "
            f"inputs. Received: {model.name!r}, whose layers {unbuilt} are not built"
        )


def walk_layers(model: keras.Model) -> list[tuple[str, keras.layers.Layer]]:
    """Lists all layers of a model at every depth.

    The list includes nested models, wrappers and custom layers, each followed by the layers that it
    holds.

    Args:
        model: a `keras.Model`.

    Returns:
        A list of `(path, layer)` with paths such as `"inner/conv1"`. Each layer is listed once.
        If a path occurs again, a number is appended to it.
    """
    found, seen, taken = [], {id(model)}, set()

    def walk(layer: keras.layers.Layer, prefix: str) -> None:
        for inner in sublayers(layer):
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
    """Updates the values that layers derive from their weights, after weights were assigned.

    `keras.layers.Normalization` derives tensors from its weights when they are loaded, but not when
    they are assigned.

    Args:
        model: a `keras.Model`.
    """
    for _, layer in walk_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
