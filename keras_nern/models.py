"""Residual networks for CIFAR: architecture, PyTorch weights, and trained networks.

A network has a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 filters, global
average pooling and one Dense layer; depth = 6 n + 2. If a block changes the shape, its
shortcut is

* option A: every second pixel, with zeros in the new channels (no weights);
* option B: a 1x1 convolution of stride 2, followed by batch normalization.

Strided convolutions pad one pixel on every side, as in PyTorch, so that weights trained in
PyTorch give the same outputs (Keras's `padding="same"` pads only the far side).

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

import os
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.utils import checks
from keras_nern.utils.types import Path, Tensor

# Mean and standard deviation of each channel of CIFAR-10's training images, in 0..1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

DEPTHS = (20, 32, 44, 56)
SHORTCUTS = ("A", "B")

# Trained networks of the package; docs/smoothness.md describes their training.
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
    """Builds an untrained residual classifier for small images.

    The network takes raw pixels in 0..255 (any numeric dtype), normalizes them and returns logits.

    Args:
        depth: 20, 32, 44 or 56. Defaults to `20`.
        classes: number of logits. Defaults to `10`.
        shortcut: `"A"` (subsampling and zero padding) or `"B"` (1x1 convolution).
            Defaults to `"B"`.
        input_shape: `(height, width, channels)`. Defaults to `(32, 32, 3)`.
        mean, std: mean and standard deviation of the pixels in 0..1, one number per channel
            or one for all. Default to the statistics of CIFAR-10.
        name: name of the model. Defaults to `"resnet{depth}"`.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, channels)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: if `depth` or `shortcut` is unknown, `classes` is below 1, or `mean` or `std`
            does not fit the channels.

    Example:

    >>> model = keras_nern.models.resnet_cifar(depth=20)
    >>> model.output_shape
    (None, 10)

    Source: He et al., CVPR 2016, arXiv 1512.03385, section 4.2.
    """
    checks.one_of("depth", depth, DEPTHS)
    checks.one_of("shortcut", shortcut, SHORTCUTS)
    checks.integer("classes", classes, minimum=1)
    checks.instance("input_shape", input_shape, (list, tuple), "(height, width, channels)")
    for side in input_shape:
        checks.integer("input_shape", side, minimum=1)
    if len(input_shape) != 3:
        raise ValueError(
            f"input_shape must be (height, width, channels). Received: input_shape={input_shape!r}"
        )
    checks.instance("name", name, (str, type(None)), "a name or None")
    channels = input_shape[-1]
    if (checks.reals("std", std) <= 0).any():
        raise ValueError(f"std must be above 0. Received: std={std!r}")
    for label, value in (("mean", mean), ("std", std)):
        if np.size(checks.reals(label, value)) not in (1, channels):
            raise ValueError(
                f"{label} must be one number, or one per channel ({channels}). "
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
    """Loads a trained network of the package.

    `benchmarks/train_resnet20.py` trained each network for 20 epochs on CIFAR-10.

    | name | training | test accuracy, % |
    | --- | --- | --- |
    | `"resnet20-cifar10"` | plain | 89.58 |
    | `"resnet20-cifar10-smooth"` | with `SmoothnessRegularizer(0.01, 0.01)` | 88.53 |

    Args:
        name: one of `list_models()`.

    Returns:
        A functional `keras.Model` from images `(batch, 32, 32, 3)` in 0..255 to logits
        `(batch, 10)`.

    Raises:
        ValueError: if `name` is unknown.

    Example:

    >>> base = keras_nern.models.load("resnet20-cifar10")
    """
    checks.one_of("name", name, list_models())
    model = resnet_cifar(20, name=name)
    model.load_weights(ZOO / f"{name}{WEIGHTS}")
    return model


def list_models() -> list[str]:
    """Lists the names that `load` accepts, sorted."""
    return sorted(path.name.removesuffix(WEIGHTS) for path in ZOO.glob(f"*{WEIGHTS}"))


def load_torch_weights(model: keras.Model, state: Mapping[str, ArrayLike] | Path) -> keras.Model:
    """Copies weights from PyTorch into a network of `resnet_cifar`.

    The arrays have the names of the common PyTorch ports (`layer1.0.conv1.weight`,
    `layer2.0.downsample.1.running_var`, ...) and PyTorch's layouts: `(out, in, height, width)`
    for convolutions and `(out, in)` for Dense layers. `num_batches_tracked` is ignored.

    Args:
        model: a model built by `resnet_cifar`; its weights are replaced.
        state: a mapping from names to arrays (a state dict or an open `.npz` file), or the path
            of an `.npz` file.

    Returns:
        `model`.

    Raises:
        ValueError: if an array is missing, superfluous or of the wrong shape; the model is then
            unchanged.

    Example:

    >>> model = keras_nern.models.resnet_cifar(depth=20)
    >>> model = keras_nern.models.load_torch_weights(model, "cifar10_resnet20.npz")
    """
    is_built = isinstance(model, keras.Model) and model.built
    if not is_built:
        raise ValueError(f"model must be a built keras.Model. Received: model={model!r}")
    if isinstance(state, (str, os.PathLike)):
        with np.load(state, allow_pickle=False) as file:
            return load_torch_weights(model, dict(file))
    checks.instance("state", state, Mapping, "a mapping from names to arrays, or a path")
    for name in state:
        checks.instance("state", name, str, "a mapping from names to arrays, or a path")
    arrays = {
        name: np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assignments = []
    for layer in model.layers:
        for weight in layer.weights:
            name = _torch_name(layer, weight)
            if name not in arrays:
                raise ValueError(
                    f"state must have an array {name!r} for the weight {weight.path!r}. "
                    f"Received: {sorted(state)}"
                )
            value = arrays.pop(name)
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
            elif value.ndim == 2:
                value = value.T  # (out, in) -> (in, out)
            if value.shape != tuple(weight.shape):
                raise ValueError(
                    f"{name!r} must have the shape {tuple(weight.shape)} in Keras's layout. "
                    f"Received: {value.shape}"
                )
            assignments.append((weight, value))
    if arrays:
        raise ValueError(
            f"state must have one array per weight of {model.name!r}. "
            f"Received: superfluous arrays {sorted(arrays)}"
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
