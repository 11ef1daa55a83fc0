"""CIFAR-10 and CIFAR-100, and the ResNets trained on them."""

import os
import pathlib

import numpy as np
import tensorflow as tf

import keras_nern

# Mean and standard deviation of the pixels in 0..1, of CIFAR-100's training images.
CIFAR100 = {"mean": (0.5070, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2761)}
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
PADDING = 4


def add_arguments(parser):
    """Adds the options `--data-dir` and `--weights` to an argument parser."""
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        default=os.environ.get("KERAS_NERN_TFDS", SHARED / "data" / "tfds"),
        help="TFDS data_dir; a dataset that is missing is downloaded into it",
    )
    parser.add_argument(
        "--weights",
        type=pathlib.Path,
        default=os.environ.get("KERAS_NERN_WEIGHTS", SHARED / "weights"),
        help="folder with cifar10_resnet20.npz and other trained networks",
    )


def load(data_dir, split, dataset="cifar10"):
    """Loads a split as `(images, labels)`: uint8 `(n, 32, 32, 3)` and int64 `(n,)`.

    Args:
        data_dir: folder of TFDS.
        split: `"train"` or `"test"`.
        dataset: `"cifar10"` or `"cifar100"`. Defaults to `"cifar10"`.
    """
    import tensorflow_datasets as tfds

    data = tfds.load(
        dataset,
        split=split,
        data_dir=data_dir,
        download=not (pathlib.Path(data_dir) / dataset).exists(),
        batch_size=-1,
    )
    return data["image"].numpy(), data["label"].numpy().astype("int64")


def resnet(depth, weights, dataset="cifar10"):
    """Loads the ResNet of a depth that was trained on `dataset` from the folder `weights`."""
    arguments = {"classes": 100, **CIFAR100} if dataset == "cifar100" else {}
    network = keras_nern.models.resnet_cifar(depth, **arguments)
    path = pathlib.Path(weights) / f"{dataset}_resnet{depth}.npz"
    return keras_nern.models.load_torch_weights(network, path)


def augmented(images, batch_size, seed, mixup=False, labels=None):
    """Makes an endless dataset of randomly flipped and shifted images.

    Args:
        images: uint8 `(n, 32, 32, 3)`.
        batch_size: images per batch.
        seed: seed of the order and the augmentation.
        mixup: whether to blend each image with another one of its batch, by a share drawn
            uniformly from [0, 1) (Zhang et al., "mixup: Beyond Empirical Risk Minimization",
            ICLR 2018). Use it for distillation only, which needs no labels. Defaults to `False`.
        labels: int `(n,)`, or `None` for a dataset of images alone. Defaults to `None`.

    Returns:
        A `tf.data.Dataset` of float32 images `(batch_size, 32, 32, 3)` in 0..255, or of pairs
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
        rows = shift[:, :1] + tf.range(height)  # (n, height)
        columns = shift[:, 1:] + tf.range(width)  # (n, width)
        batch = tf.gather(batch, rows, axis=1, batch_dims=1)
        batch = tf.gather(batch, columns, axis=2, batch_dims=1)
        if mixup:
            share = rng.uniform((n, 1, 1, 1))
            batch = share * batch + (1 - share) * batch[::-1]
        return tf.ensure_shape(batch, (None, height, width, channels))

    indices = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    batches = indices.repeat().batch(batch_size)
    images = tf.constant(images)
    if labels is None:
        batches = batches.map(lambda index: augment(tf.gather(images, index)))
    else:
        labels = tf.constant(labels)
        batches = batches.map(
            lambda index: (augment(tf.gather(images, index)), tf.gather(labels, index))
        )
    return batches.prefetch(2)


def predict_classes(model, images):
    """The classes that `model` predicts for `images`, int64 `(n,)`."""
    return model.predict(images, batch_size=500, verbose=0).argmax(axis=1)


def accuracy(model, images, labels):
    """The percentage of `images` that `model` classifies correctly."""
    return percent_equal(predict_classes(model, images), labels)


def percent_equal(classes, others):
    """The percentage of entries in which two arrays of classes are equal."""
    return 100 * float(np.mean(classes == others))
