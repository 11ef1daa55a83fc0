"""Second moments of what convolutions are given: which errors of a kernel would show.

A convolution is linear in its kernel. With x a patch of its input, flattened, and D an
error of its kernel as a matrix (patch, filters), its outputs change by D^T x, whose mean
square over patches and images is

    E |D^T x|^2 = tr(D^T C D),      C = E x x^T.

C, gathered once from a few thousand images, or noise, says what an error of the weights
does to the layer's output without running the network again. The batch normalisation
that follows scales filter f by gamma_f / sigma_f, and the change with it.
"""

import math
import typing
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_nern.network.kernels import Kernel
from keras_nern.network.recording import Call, capture_calls, normalisations
from keras_nern.utils.types import Tensor


class InputMoments(typing.NamedTuple):
    """What is known of a kernel's inputs and outputs.

    Attributes:
        moments: C, float32 `(groups, patch, patch)`, with patch = kh kw cin in the order of
            a kernel's axes.
        scale: of its outputs by the normalisation that follows, float32 `(filters,)`.
    """

    moments: np.ndarray
    scale: np.ndarray


def second_moments(
    base: keras.Model, kernels: Sequence[Kernel], batches: Iterable
) -> list[InputMoments | None]:
    """C of every ordinary convolution and Dense layer, over all patches of all images.

    Args:
        base: a built `keras.Model`.
        kernels: list of `kernels.Kernel`.
        batches: an iterable of what the base takes.

    Returns:
        A list of `InputMoments`, `None` for kernels of other layers (transposed, depthwise,
        separable and 3-D convolutions) and for those that are not called.

    Raises:
        ValueError: where there are no batches.
    """
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    scales: dict[int, np.ndarray] = {}
    seen = False
    for inputs in batches:
        with capture_calls(base) as calls:
            base(inputs, training=False)
        after = normalisations(calls)
        for index, kernel in enumerate(kernels):
            for call in calls:
                if call.operation is not kernel.layer or not _is_plain(kernel.layer):
                    continue
                patches = _patches(call.inputs[0], kernel)  # (groups, positions, patch)
                product = keras.ops.matmul(keras.ops.transpose(patches, (0, 2, 1)), patches)
                product = keras.ops.convert_to_numpy(product).astype("float64")
                sums[index] = sums.get(index, 0.0) + product
                counts[index] = counts.get(index, 0) + patches.shape[1]
                scales.setdefault(index, _scale(kernel, after.get(id(call.output))))
        seen = True
    if not seen:
        raise ValueError("Expected at least one batch of images. Received: none")
    return [
        InputMoments((sums[index] / counts[index]).astype("float32"), scales[index])
        if index in sums
        else None
        for index in range(len(kernels))
    ]


def _is_plain(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense))


def _scale(kernel: Kernel, normalisation: Call | None) -> np.ndarray:
    if normalisation is None:
        return np.ones(kernel.filters, "float32")
    layer = normalisation.operation
    scale = 1.0 / np.sqrt(keras.ops.convert_to_numpy(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * keras.ops.convert_to_numpy(layer.gamma)
    return scale.astype("float32")


def _patches(tensor: Tensor, kernel: Kernel) -> Tensor:
    """The patches a kernel is multiplied with: `(groups, positions, places * channels)`."""
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
    shape = (positions, kernel.places, layer.groups, kernel.channels)
    patches = keras.ops.transpose(keras.ops.reshape(patches, shape), (2, 0, 1, 3))
    return keras.ops.reshape(patches, (layer.groups, positions, -1))
