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

import keras
import numpy as np

from keras_nern.graph import convolution_calls


def convolution_inputs(base, convolutions):
    """The symbolic input and the output scale of each convolution.

    Args:
        base: a built functional or Sequential model.
        convolutions: its `kernels.Convolution` list.

    Returns:
        A list of `(tensor, scale)`, the scale a float32 array `(filters,)`, or of
        `None` for a convolution inside a nested model. Of one used at several places
        it is the first.
    """
    return [
        (call.input_tensors[0], _scale(call.operation, normalisation)) if call else None
        for call, normalisation in convolution_calls(base, convolutions)
    ]


def _scale(convolution, normalisation):
    if normalisation is None:
        return np.ones(convolution.filters, "float32")
    layer = normalisation.operation
    scale = 1.0 / np.sqrt(keras.ops.convert_to_numpy(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * keras.ops.convert_to_numpy(layer.gamma)
    return scale.astype("float32")


def second_moments(base, convolutions, batches):
    """C of every convolution, over all patches of all images.

    Args:
        base: a built functional or Sequential model.
        convolutions: its `kernels.Convolution` list.
        batches: an iterable of images `(batch, height, width, channels)`.

    Returns:
        A list of float32 arrays `(groups, patch, patch)`, with patch = kh kw cin in the
        order of a kernel's axes, or of `None` for a convolution inside a nested model.

    Raises:
        ValueError: where there are no images.
    """
    inputs = convolution_inputs(base, convolutions)
    seen = [i for i, found in enumerate(inputs) if found]
    probe = keras.Model(base.inputs[0], [inputs[i][0] for i in seen])
    sums, counts = [0.0] * len(convolutions), [0] * len(convolutions)
    for images in batches:
        for i, tensor in zip(seen, keras.tree.flatten(probe(images, training=False)), strict=True):
            patches = _patches(tensor, convolutions[i])  # (groups, positions, patch)
            product = keras.ops.matmul(keras.ops.transpose(patches, (0, 2, 1)), patches)
            sums[i] = sums[i] + keras.ops.convert_to_numpy(product).astype("float64")
            counts[i] += patches.shape[1]
    if seen and not counts[seen[0]]:
        raise ValueError("Expected at least one batch of images. Received: none")
    return [
        (sums[i] / counts[i]).astype("float32") if found else None for i, found in enumerate(inputs)
    ]


def _patches(tensor, conv):
    kh, kw, cin, _ = conv.shape
    layer = conv.layer
    patches = keras.ops.image.extract_patches(
        keras.ops.cast(tensor, "float32"),
        (kh, kw),
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
        padding=layer.padding,
    )
    positions = math.prod(patches.shape[:3])
    patches = keras.ops.reshape(patches, (positions, kh * kw, layer.groups, cin))
    patches = keras.ops.transpose(patches, (2, 0, 1, 3))
    return keras.ops.reshape(patches, (layer.groups, positions, kh * kw * cin))
