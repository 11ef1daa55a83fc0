"""Second moments of layers' inputs, which determine how a kernel's errors affect the outputs.

A convolution is linear in its kernel. Let x be a flattened patch of its input and D the error of
its kernel as a matrix (patch, filters). The outputs then change by D^T x. The mean square of this
change over patches and images is

    E |D^T x|^2 = tr(D^T C D),      C = E x x^T.

C is computed once, from a few thousand images or from noise. It gives the effect of any error on
the layer's outputs without running the network again. A batch normalization after the layer scales
the output of filter f, and its change, by gamma_f / sigma_f.
"""

import math
import typing
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np

from keras_nern.network.kernels import Kernel
from keras_nern.network.recording import Call, capture_calls, normalizations
from keras_nern.utils.types import Tensor

PIXELS_AT_ONCE = 2**16  # 64 images of 32 x 32, one of 224 x 224


class InputMoments(typing.NamedTuple):
    """Second moments of a kernel's inputs, and the scale of its outputs.

    Attributes:
        moments: C, float32 array `(groups, patch, patch)` with patch = kh kw cin, in the order of
            the kernel's axes.
        scale: float32 array `(filters,)`: gamma / sigma of the batch normalization after the
            layer, or ones if there is none.
    """

    moments: np.ndarray
    scale: np.ndarray


def second_moments(
    base: keras.Model, kernels: Sequence[Kernel], batches: Iterable
) -> list[InputMoments | None]:
    """Computes the second moments of kernels' inputs over all patches of all images.

    Args:
        base: a built `keras.Model`.
        kernels: sequence of `kernels.Kernel` of the model.
        batches: an iterable of inputs of the model.

    Returns:
        A list with one `InputMoments` per kernel, or `None` for a layer that is not called and for
        layers other than `Dense`, `Conv1D` and `Conv2D`.

    Raises:
        ValueError: if `batches` is empty.

    Example:

    >>> from keras_nern.network.selection import find_kernels
    >>> kernels, skipped = find_kernels(base)
    >>> moments, scale = second_moments(base, kernels, [images])[0]
    """
    indices = {
        id(kernel.layer): index for index, kernel in enumerate(kernels) if _is_plain(kernel.layer)
    }
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    scales: dict[int, np.ndarray] = {}
    is_empty = True
    for inputs in _in_parts(batches):
        is_empty = False
        with capture_calls(base) as calls, keras.StatelessScope():
            base(inputs, training=False)
        after = normalizations(calls)
        for call in calls:
            index = indices.get(id(call.operation))
            if index is None or call.in_loop:
                continue
            patches = _patches(call.inputs[0], kernels[index])  # (groups, positions, patch)
            product = keras.ops.matmul(keras.ops.transpose(patches, (0, 2, 1)), patches)
            if index not in sums:
                sums[index] = np.zeros(product.shape)
            sums[index] += keras.ops.convert_to_numpy(product)
            counts[index] = counts.get(index, 0) + patches.shape[1]
            scales.setdefault(index, _scale(kernels[index], after.get(id(call.output))))
    if is_empty:
        raise ValueError("batches must yield at least one batch of inputs. Received: none")
    moments: list[InputMoments | None] = [None] * len(kernels)
    for index in sorted(sums):
        total = sums.pop(index)
        total /= counts[index]
        moments[index] = InputMoments(total.astype("float32"), scales[index])
    return moments


def _in_parts(batches: Iterable) -> Iterator:
    """Splits batches into parts of about `PIXELS_AT_ONCE` pixels, and of at least one image.

    All activations of a part are in memory at once.
    """
    for batch in batches:
        arrays = keras.tree.flatten(batch)
        count = max(1, PIXELS_AT_ONCE // max(1, *(math.prod(one.shape[1:-1]) for one in arrays)))
        for start in range(0, len(arrays[0]), count):
            yield keras.tree.map_structure(lambda one, i=start, n=count: one[i : i + n], batch)


def _is_plain(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense))


def _scale(kernel: Kernel, normalization: Call | None) -> np.ndarray:
    if normalization is None:
        return np.ones(kernel.filters, "float32")
    layer = normalization.operation
    scale = 1.0 / np.sqrt(keras.ops.convert_to_numpy(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * keras.ops.convert_to_numpy(layer.gamma)
    return scale.astype("float32")


def _patches(tensor: Tensor, kernel: Kernel) -> Tensor:
    """The patches of an input that the kernel multiplies: `(groups, positions, patch)`."""
    layer = kernel.layer
    tensor = keras.ops.cast(tensor, "float32")
    if isinstance(layer, keras.layers.Dense):
        return keras.ops.reshape(tensor, (1, -1, tensor.shape[-1]))
    if layer.data_format == "channels_first":
        tensor = keras.ops.moveaxis(tensor, 1, -1)
    size, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    padding = layer.padding
    if isinstance(layer, keras.layers.Conv1D):
        if padding == "causal":
            tensor = keras.ops.pad(tensor, ((0, 0), (dilation[0] * (size[0] - 1), 0), (0, 0)))
            padding = "valid"
        tensor = tensor[:, None]
        size, strides, dilation = (1, *size), (1, *strides), (1, *dilation)
    patches = keras.ops.image.extract_patches(
        tensor,
        size,
        strides=strides,
        dilation_rate=dilation,
        padding=padding,
        data_format="channels_last",
    )
    positions = math.prod(patches.shape[:3])
    shape = (positions, kernel.spatial_size, layer.groups, kernel.channels)
    patches = keras.ops.transpose(keras.ops.reshape(patches, shape), (2, 0, 1, 3))
    return keras.ops.reshape(patches, (layer.groups, positions, -1))
