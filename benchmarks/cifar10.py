"""CIFAR-10 and its trained networks, for the benchmarks."""

import os
import pathlib

import numpy as np
import tensorflow as tf

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
PADDING = 4


def add_arguments(parser):
    """Adds the places of data and weights to an argument parser."""
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        default=os.environ.get("KERAS_NERN_TFDS", SHARED / "data" / "tfds"),
        help="TFDS data_dir; CIFAR-10 is downloaded into it where it is missing",
    )
    parser.add_argument(
        "--weights",
        type=pathlib.Path,
        default=os.environ.get("KERAS_NERN_WEIGHTS", SHARED / "weights"),
        help="folder of cifar10_resnet{20,56}.npz",
    )


def load(data_dir, split):
    """A split as (images, labels) arrays, uint8 `(n, 32, 32, 3)` and int64 `(n,)`."""
    import tensorflow_datasets as tfds

    download = not (pathlib.Path(data_dir) / "cifar10").exists()
    images, labels = tfds.load(
        "cifar10",
        split=split,
        data_dir=data_dir,
        download=download,
        batch_size=-1,
        as_supervised=True,
    )
    return images.numpy(), labels.numpy().astype("int64")


def resnet(depth, weights):
    """The trained ResNet of that depth, from the folder of `--weights`."""
    import keras_nern

    network = keras_nern.models.resnet_cifar(depth)
    path = pathlib.Path(weights) / f"cifar10_resnet{depth}.npz"
    return keras_nern.models.load_torch_weights(network, path)


def augmented(images, batch_size, seed, mixup=False, labels=None):
    """An endless dataset of flipped and shifted images, as ResNets are trained on.

    Args:
        images: uint8 `(n, 32, 32, 3)`.
        batch_size: images per batch.
        seed: fixes order and augmentation.
        mixup: blend each image with another of its batch, by a share drawn uniformly
            (Zhang et al., "mixup", ICLR 2018); no label is needed for distillation.
        labels: int `(n,)`, to go with the images, which are then not to be mixed up;
            `None` for images alone.

    Returns:
        A `tf.data.Dataset` of float32 `(batch_size, 32, 32, 3)` in 0..255, or of
        `(images, labels)`.
    """
    rng = tf.random.Generator.from_seed(seed)
    height, width, channels = images.shape[1:]

    def augment(batch):
        batch = tf.cast(batch, tf.float32)
        n = tf.shape(batch)[0]
        flip = rng.uniform((n, 1, 1, 1)) < 0.5
        batch = tf.where(flip, batch[:, :, ::-1], batch)
        batch = tf.pad(batch, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
        shift = rng.uniform((n, 2), 0, 2 * PADDING + 1, dtype=tf.int32)
        rows = shift[:, :1] + tf.range(height)
        columns = shift[:, 1:] + tf.range(width)
        batch = tf.gather(batch, rows, axis=1, batch_dims=1)
        batch = tf.gather(batch, columns, axis=2, batch_dims=1)
        if mixup:
            share = rng.uniform((n, 1, 1, 1))
            batch = share * batch + (1 - share) * batch[::-1]
        return tf.ensure_shape(batch, (None, height, width, channels))

    numbers = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    batches = numbers.repeat().batch(batch_size)
    images = tf.constant(images)
    if labels is None:
        batches = batches.map(lambda batch: augment(tf.gather(images, batch)))
    else:
        labels = tf.constant(labels)
        batches = batches.map(
            lambda batch: (augment(tf.gather(images, batch)), tf.gather(labels, batch))
        )
    return batches.prefetch(2)


def accuracy_and_agreement(model, base_classes, images, labels):
    """Shares of images classified rightly, and as `base_classes` has them."""
    classes = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    return np.mean(classes == labels), np.mean(classes == base_classes)
