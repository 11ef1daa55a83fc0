"""600 validation images of ImageNet, and EfficientNet-Lite0 trained on ImageNet."""

import os
import pathlib
import re

import cifar
import keras
import numpy as np
import tensorflow as tf

import keras_nern

SIDE = 224
CLASSES = 1000
SPLITS = {"all": slice(None), "train": slice(None, 300), "test": slice(300, None)}

# Each stage: expansion factor, filters, side of the depthwise kernels, stride of the first block
# and number of blocks (Tan and Le, ICML 2019, table 1; the Lite variant has no squeeze-excite
# layers and uses ReLU6).
STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)


def add_arguments(parser):
    """Adds the option `--imagenet-dir`; `cifar.add_arguments` adds `--weights`."""
    parser.add_argument(
        "--imagenet-dir",
        type=pathlib.Path,
        default=os.environ.get("KERAS_NERN_IMAGENET", cifar.SHARED / "data" / "imagenet"),
        help="folder with labels.txt (lines of a file name and a class) and the folder images",
    )


def load(data_dir, split):
    """Loads a split as `(images, labels)`: uint8 `(n, 224, 224, 3)` and int64 `(n,)`.

    The images are the middle of larger ones, in the order of `labels.txt`. The split `"train"` has
    the first 300, `"test"` the others, and `"all"` has both.
    """
    data_dir = pathlib.Path(data_dir)
    lines = (data_dir / "labels.txt").read_text().splitlines()
    names, labels = zip(*map(str.split, lines[SPLITS[split]]), strict=True)
    images = np.stack([_middle(data_dir / "images" / name) for name in names])
    return images, np.array(labels, "int64")


def _middle(path):
    # The pixels that Pillow decodes. The default method differs by up to 24 gray levels.
    image = tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE").numpy()
    top, left = (side - SIDE for side in image.shape[:2])
    if min(top, left) < 0:
        raise ValueError(
            f"Expected at least {SIDE} x {SIDE} pixels. Received: {path}, {image.shape}"
        )
    return image[top // 2 :, left // 2 :][:SIDE, :SIDE]


def efficientnet_lite0(weights=None):
    """Builds EfficientNet-Lite0, which takes raw pixels in 0..255 and returns logits.

    Args:
        weights: folder with `imagenet_efficientnet_lite0.npz`, or `None` for an untrained network.
            Defaults to `None`.

    Returns:
        A functional `keras.Model` from images `(batch, 224, 224, 3)` to logits `(batch, 1000)`.

    Raises:
        ValueError: if an array of the file is missing, superfluous or of the wrong shape.
    """
    inputs = keras.Input((SIDE, SIDE, 3), name="images")
    x = keras.layers.Rescaling(1 / 128, -127 / 128, name="normalization")(inputs)
    x = _conv_bn(x, 32, 3, 2, "conv_stem", "bn0")
    index = 0
    for expansion, filters, side, stride, repeats in STAGES:
        for repeat in range(repeats):
            x = _block(x, expansion, filters, side, 1 if repeat else stride, f"blocks_{index}")
            index += 1
    x = _conv_bn(x, 1280, 1, 1, "conv_head", "bn1")
    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    logits = keras.layers.Dense(CLASSES, name="fc")(x)
    network = keras.Model(inputs, logits, name="efficientnet_lite0")
    if weights is None:
        return network
    with np.load(pathlib.Path(weights) / "imagenet_efficientnet_lite0.npz") as state:
        return keras_nern.models.load_torch_weights(network, in_layer_names(state))


def _conv_bn(x, filters, side, stride, conv_name, bn_name, relu=True):
    """A convolution (depthwise if `filters` is `None`), batch normalization and ReLU6."""
    options = {"strides": stride, "padding": "same", "use_bias": False, "name": conv_name}
    if filters is None:
        x = keras.layers.DepthwiseConv2D(side, **options)(x)
    else:
        x = keras.layers.Conv2D(filters, side, **options)(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=bn_name)(x)
    return keras.layers.ReLU(6.0, name=f"{bn_name}_relu")(x) if relu else x


def _block(x, expansion, filters, side, stride, name):
    """An inverted residual block (MBConv): expansion, depthwise convolution and projection."""
    y = x
    if expansion > 1:
        wide = expansion * x.shape[-1]
        y = _conv_bn(y, wide, 1, 1, f"{name}_expand_conv", f"{name}_bn0")
    y = _conv_bn(y, None, side, stride, f"{name}_depthwise_conv", f"{name}_bn1")
    y = _conv_bn(y, filters, 1, 1, f"{name}_project_conv", f"{name}_bn2", relu=False)
    if stride > 1 or filters != x.shape[-1]:
        return y
    return keras.layers.Add(name=f"{name}_add")([y, x])


def in_layer_names(state):
    """Renames PyTorch's arrays to the names and layouts that `load_torch_weights` expects.

    `"_blocks.0._depthwise_conv.weight"` becomes `"blocks.0.depthwise.conv.weight"`, the array of
    the layer `"blocks_0_depthwise_conv"`. Its shape changes from `(channels, 1, height, width)` to
    `(1, channels, height, width)`, because Keras counts a depthwise kernel's channels as inputs.
    """
    arrays = {}
    for name, value in state.items():
        layer, suffix = name.rsplit(".", 1)
        if layer.endswith("depthwise_conv"):
            value = np.swapaxes(value, 0, 1)
        arrays[".".join([*re.findall("[a-z0-9]+", layer), suffix])] = value
    return arrays


def predict_classes(model, images):
    """The classes that `model` predicts for `images`, int64 `(n,)`."""
    return model.predict(images, batch_size=20, verbose=0).argmax(axis=1)


def accuracy(model, images, labels):
    """The percentage of `images` that `model` classifies correctly."""
    return cifar.percent_equal(predict_classes(model, images), labels)
