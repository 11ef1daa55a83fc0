"""The convolution kernels of a classifier, and their common block view.

A convolution layer l holds one variable of shape (kh, kw, cin, cout). NeRN takes it
as cin * cout separate *kernels* of kh x kw weights, numbered filter by filter:

    kernel i of the layer  =  W[:, :, i % cin, i // cin],    0 <= i < cin * cout

The predictor answers every coordinate with k x k weights, k the largest kernel
side in the network. A smaller kernel is the centre crop of its k x k *block*
(Ashkenazi et al., ICLR 2023, section 3); the block's other entries carry no weight
and count in no loss.
"""

import dataclasses

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution layer's place among a classifier's kernels.

    Attributes:
        name: the layer's name, made unique by its path where submodels are nested.
        layer: the `keras.layers.Conv2D` itself.
        shape: `(kh, kw, cin, cout)` of its kernel variable.
    """

    name: str
    layer: keras.layers.Layer
    shape: tuple

    @property
    def num_kernels(self):
        """`cin * cout`."""
        return self.shape[2] * self.shape[3]

    @property
    def num_weights(self):
        """`kh * kw * cin * cout`."""
        return int(np.prod(self.shape))


def find_convolutions(model):
    """Lists a model's 2-D convolutions in the order its layers are listed.

    Args:
        model: a built functional or Sequential `keras.Model`; nested models are
            entered.

    Returns:
        A list of `Convolution`, one for each `keras.layers.Conv2D`. A layer used
        twice is listed once. Depthwise, separable and transposed convolutions are
        not listed: they keep their own weights.

    Example:

    >>> convolutions = keras_nern.kernels.find_convolutions(model)
    >>> convolutions[0].shape
    (3, 3, 3, 16)
    """
    return [
        Convolution(path, layer, tuple(layer.kernel.shape))
        for path, layer in walk_layers(model)
        if isinstance(layer, keras.layers.Conv2D)
    ]


def walk_layers(model):
    """Lists a model's layers and those of the models nested in it.

    Args:
        model: a `keras.Model`.

    Returns:
        A list of `(path, layer)`, each layer once, the path as in `"inner/conv1"`.
        Nested models are entered and listed themselves.
    """
    return list(_walk(model, prefix="", seen=set()))


def _walk(model, prefix, seen):
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield prefix + layer.name, layer
        if isinstance(layer, keras.Model):
            yield from _walk(layer, f"{prefix}{layer.name}/", seen)


def block_size(convolutions):
    """The side k of the common block: the largest kernel side of all layers."""
    return max(max(conv.shape[:2]) for conv in convolutions)


def kernel_to_blocks(kernel, k):
    """Lays a layer's kernels out as rows of k * k weights, zero-padded.

    Args:
        kernel: array `(kh, kw, cin, cout)`.
        k: side of the block, at least `max(kh, kw)`.

    Returns:
        Array `(cin * cout, k * k)`, kernel i in row i, row-major within the block.
    """
    kernel = np.asarray(kernel)
    kh, kw, cin, cout = kernel.shape
    top, left = _crop_offset((kh, kw), k)
    blocks = np.zeros((cout, cin, k, k), kernel.dtype)
    blocks[:, :, top : top + kh, left : left + kw] = kernel.transpose(3, 2, 0, 1)
    return blocks.reshape(cout * cin, k * k)


def blocks_to_kernel(blocks, shape):
    """Crops a layer's blocks back to its kernel, the inverse of `kernel_to_blocks`.

    Args:
        blocks: tensor `(cin * cout, k * k)`.
        shape: `(kh, kw, cin, cout)` of the layer's kernel.

    Returns:
        Tensor of shape `shape`, differentiable with respect to `blocks`.
    """
    kh, kw, cin, cout = shape
    k = round(blocks.shape[-1] ** 0.5)
    top, left = _crop_offset((kh, kw), k)
    blocks = keras.ops.reshape(blocks, (cout, cin, k, k))
    blocks = blocks[:, :, top : top + kh, left : left + kw]
    return keras.ops.transpose(blocks, (2, 3, 1, 0))


def block_mask(shape, k):
    """Marks the entries of a k x k block that a layer's kernels use.

    Args:
        shape: `(kh, kw, cin, cout)` of the layer's kernel.
        k: side of the block.

    Returns:
        float32 array `(k * k,)`: 1 in the centre crop, 0 around it.
    """
    return kernel_to_blocks(np.ones((*shape[:2], 1, 1), "float32"), k)[0]


def _crop_offset(size, k):
    return [(k - side) // 2 for side in size]
