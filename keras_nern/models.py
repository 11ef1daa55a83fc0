"""Residual networks for CIFAR, in the form the field compares on.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section
4.2: a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 filters, global
average pooling and one Dense layer; depth = 6 n + 2. Where a block changes the
shape, its shortcut is

* option A: every second pixel, the new channels filled with zeros (no weights);
* option B: a 1x1 convolution of stride 2 with its own batch normalisation.

Strided convolutions pad one pixel on *every* side, as PyTorch does, so weights
trained there give the same outputs here (Keras's "same" would pad the far side only).
"""

import os
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.utils import checks
from keras_nern.utils.types import Tensor

# The usual per-channel statistics of CIFAR-10's training images, in 0..1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

DEPTHS = (20, 32, 44, 56)
SHORTCUTS = ("A", "B")

# Trained networks that come with the package; docs/smoothness.md tells how they were made.
ZOO = pathlib.Path(__file__).parent / "zoo"
WEIGHTS = ".weights.h5"


def resnet_cifar(
    depth: int = 20,
    classes: int = 10,
    shortcut: str = "B",
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: ArrayLike = CIFAR10_MEAN,
    std: ArrayLike = CIFAR10_STD,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual classifier for small images, untrained.

    The network takes raw pixels in 0..255 (any numeric dtype) and returns logits.

    Args:
        depth: one of 20, 32, 44, 56. Defaults to 20.
        classes: number of logits. Defaults to 10.
        shortcut: `"A"` (subsample and zero-pad) or `"B"` (1x1 convolution).
            Defaults to `"B"`.
        input_shape: `(height, width, channels)`. Defaults to `(32, 32, 3)`.
        mean: mean of each input channel in 0..1, or one for all. Defaults to
            CIFAR-10's.
        std: standard deviation of each input channel in 0..1, or one for all.
            Defaults to CIFAR-10's.
        name: name of the model. Defaults to `"resnet{depth}"`.

    Returns:
        A functional `keras.Model`: images `(batch, height, width, channels)` to
        logits `(batch, classes)`.

    Raises:
        ValueError: for another depth or shortcut, fewer than one class, or
            statistics that do not fit the channels.

    Example:

    >>> model = keras_nern.models.resnet_cifar(depth=20)
    >>> model.output_shape
    (None, 10)

    Source: He et al., CVPR 2016, arXiv 1512.03385, section 4.2.
    """
    checks.one_of("depth", depth, DEPTHS)
    checks.one_of("shortcut", shortcut, SHORTCUTS)
    checks.integer("classes", classes, least=1)
    channels = input_shape[-1]
    for label, value in (("mean", mean), ("std", std)):
        if np.size(value) not in (1, channels):
            raise ValueError(
                f"{label} must be one number or one per input channel ({channels}). "
                f"Received: {label}={value!r}"
            )

    inputs = keras.Input(input_shape, name="images")
    scale = 1.0 / (255.0 * np.broadcast_to(std, channels))
    shift = -np.broadcast_to(mean, channels) / np.broadcast_to(std, channels)
    x = keras.layers.Rescaling(scale.tolist(), shift.tolist(), name="normalization")(inputs)
    x = _conv_bn(x, 16, 3, 1, "conv1", "bn1")
    x = keras.layers.ReLU(name="relu1")(x)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(x, filters, stride, shortcut, f"layer{stage}_{block}")
    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    logits = keras.layers.Dense(classes, name="fc")(x)
    return keras.Model(inputs, logits, name=name or f"resnet{depth}")


def _conv_bn(
    x: Tensor, filters: int, size: int, stride: int, conv_name: str, bn_name: str
) -> Tensor:
    if stride > 1 and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{conv_name}_pad")(x)
    x = keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer="he_normal",
        name=conv_name,
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=bn_name)(x)


def _basic_block(x: Tensor, filters: int, stride: int, shortcut: str, name: str) -> Tensor:
    y = _conv_bn(x, filters, 3, stride, f"{name}_conv1", f"{name}_bn1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_bn(y, filters, 3, 1, f"{name}_conv2", f"{name}_bn2")
    if stride > 1 and shortcut == "B":
        x = _conv_bn(x, filters, 1, stride, f"{name}_downsample_0", f"{name}_downsample_1")
    elif stride > 1:
        missing = filters - x.shape[-1]
        x = keras.layers.MaxPooling2D(1, strides=stride, name=f"{name}_subsample")(x)
        x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu2")(y)


def load(name: str) -> keras.Model:
    """Loads a trained network that comes with the package.

    Args:
        name: `"resnet20-cifar10"`, or `"resnet20-cifar10-smooth"`, which was trained
            with a `SmoothnessRegularizer(0.01, 0.01)`; in `list_models()`. Both were trained
            for 20 epochs by `benchmarks/train_resnet20.py`, and put 89.58 and 88.53 % of
            the test images in their class.

    Returns:
        A functional `keras.Model`: images `(batch, 32, 32, 3)` in 0..255 to logits
        `(batch, 10)`.

    Raises:
        ValueError: for another name.

    Example:

    >>> base = keras_nern.models.load("resnet20-cifar10")
    """
    checks.one_of("name", name, list_models())
    model = resnet_cifar(20, name=name)
    model.load_weights(ZOO / f"{name}{WEIGHTS}")
    return model


def list_models() -> list[str]:
    """The names that `load` knows, a sorted list."""
    return sorted(path.name.removesuffix(WEIGHTS) for path in ZOO.glob(f"*{WEIGHTS}"))


def load_torch_weights(
    model: keras.Model, state: Mapping[str, ArrayLike] | str | os.PathLike
) -> keras.Model:
    """Copies weights with PyTorch's names and layouts into a `resnet_cifar`.

    Names are those of the common PyTorch ports (`layer1.0.conv1.weight`,
    `layer2.0.downsample.1.running_var`, ...); convolutions are laid out
    `(out, in, height, width)`, Dense layers `(out, in)`.

    Args:
        model: a model built by `resnet_cifar`.
        state: a mapping from name to array (an open `.npz`, a state dict), or the
            path of an `.npz` file.

    Returns:
        `model`, with every weight replaced.

    Raises:
        ValueError: where an array is missing, left over, or has another shape;
            the model is then unchanged.

    Example:

    >>> model = keras_nern.models.resnet_cifar(depth=20)
    >>> model = keras_nern.models.load_torch_weights(model, "cifar10_resnet20.npz")
    """
    if isinstance(state, (str, os.PathLike)):
        with np.load(state, allow_pickle=False) as file:
            return load_torch_weights(model, dict(file))
    left = {
        name: np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assignments = []
    for layer in model.layers:
        for weight in layer.weights:
            name = _torch_name(layer, weight)
            if name not in left:
                raise ValueError(
                    f"Expected an array {name!r} for the weight {weight.path!r}. "
                    f"Received: {sorted(state)}"
                )
            value = left.pop(name)
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
            elif value.ndim == 2:
                value = value.T  # (out, in) -> (in, out)
            if value.shape != tuple(weight.shape):
                raise ValueError(
                    f"Expected {name!r} to give the shape {tuple(weight.shape)}. "
                    f"Received: {value.shape}"
                )
            assignments.append((weight, value))
    if left:
        raise ValueError(
            f"Expected one array for each weight of {model.name!r}. "
            f"Received some that have no place in it: {sorted(left)}"
        )
    for weight, value in assignments:
        weight.assign(value)
    return model


def _torch_name(layer: keras.layers.Layer, weight: keras.Variable) -> str:
    parts = layer.name.replace("downsample_", "downsample.").split("_")
    suffix = {
        "kernel": "weight",
        "bias": "bias",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }[weight.name]
    return ".".join([*parts, suffix])
