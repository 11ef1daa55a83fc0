"""Images and labels: noise, a file, or a dataset of TensorFlow Datasets."""

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.cli.arguments import IMAGES, did_you_mean
from keras_nern.data.inputs import check_inputs, check_targets
from keras_nern.data.noise import NoiseDataset
from keras_nern.network.signature import Signature
from keras_nern.utils.files import DAMAGED
from keras_nern.utils.optional import require

# Names of the arrays of an .npz file.
IMAGE_NAMES = ("images", "x")
LABEL_NAMES = ("labels", "y")

SHUFFLE_BUFFER = 10_000  # images


def load(
    options: dict, base: keras.Model, split: str, for_training: bool = False
) -> tuple[Any, np.ndarray | None]:
    """Loads the images and labels of `--data`.

    Args:
        options: the options of the verb: `data`, `data_dir`, `split`, `scale`, `batch_size`,
            `noise_batches`, `seed`.
        base: the classifier that takes the images.
        split: split of a TFDS dataset if `--split` is not given.
        for_training: whether to drop the labels and to shuffle a TFDS dataset by the seed.
            Defaults to `False`.

    Returns:
        `(images, labels)`: an array, a batched `tf.data.Dataset` or a `NoiseDataset`, and an
        array `(n,)`, or `None` if there are no labels.

    Raises:
        ValueError: if the file or dataset cannot be read, its images do not fit `base`, or its
            labels are not as many as its images.
        ImportError: if tensorflow-datasets is needed and not installed.
    """
    if options["data"] == "noise":
        counts = {"batch_size": options["batch_size"], "steps": options["noise_batches"]}
        return NoiseDataset(base, seed=options["seed"], **counts), None
    if pathlib.Path(options["data"]).suffix in IMAGES:
        images, labels = _from_file(options["data"])
        if images.dtype.kind not in "biuf":
            raise ValueError(
                f"--data must have images of real numbers. Received: an array of {images.dtype}"
            )
        if options["scale"] != 1:
            images = (images * options["scale"]).astype("float32")
    else:
        images, labels = _from_tfds(options, options["split"] or split, for_training)
    check_inputs(images, Signature.of(base), name="--data")
    if for_training or labels is None:
        return images, None
    if isinstance(images, np.ndarray):
        check_targets(images, labels, None, name="--data")
    if labels.ndim == 2:  # one-hot, or a column
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    return images, labels


def _from_file(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None
            images, labels = (
                next((loaded[name] for name in names if name in loaded.files), None)
                for names in (IMAGE_NAMES, LABEL_NAMES)
            )
    except DAMAGED as error:
        raise ValueError(
            f"--data must be a file of NumPy arrays. Received: {path!r} ({error})"
        ) from error
    if images is None:
        raise ValueError(
            f"--data must have an array called {' or '.join(IMAGE_NAMES)}. "
            f"Received: {path!r} with {loaded.files}"
        )
    return images, labels


def _from_tfds(
    options: dict, split: str, for_training: bool
) -> tuple[tf.data.Dataset, np.ndarray | None]:
    tfds = require("tensorflow_datasets", "data")
    name = options["data"]
    try:
        builder = tfds.builder(name, data_dir=options["data_dir"])
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = ["noise", *tfds.list_builders(with_community_datasets=False)]
        raise ValueError(
            f"--data must be noise, a file that ends in {' or '.join(IMAGES)}, or the name of a "
            f"TFDS dataset. Received: {name!r}.{did_you_mean(name, known)}"
        ) from error
    try:
        builder.download_and_prepare()
    except OSError as error:  # such as those of the package requests
        raise ValueError(
            f"--data must be a dataset in --data-dir or one that can be downloaded. "
            f"Received: {name!r}, which is not in {str(builder.data_path)!r} ({error})"
        ) from error
    pairs = builder.as_dataset(split=split, as_supervised=True)
    images = pairs.map(lambda image, label: tf.cast(image, "float32") * options["scale"])
    if for_training:
        shuffled = images.shuffle(SHUFFLE_BUFFER, seed=options["seed"])
        return shuffled.batch(options["batch_size"]).prefetch(2), None
    labels = np.array([label for _, label in pairs.as_numpy_iterator()])
    return images.batch(options["batch_size"]), labels


def with_labels(images: Any, labels: np.ndarray, batch_size: int) -> Any:
    """Joins what `load` returns to `(images, labels)`: a pair of arrays, or a dataset."""
    if isinstance(images, np.ndarray):
        return images, labels
    return tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(labels).batch(batch_size))


def first_batch(images: Any) -> Any:
    """The first batch of what `load` returns; the first image of an array."""
    return images[:1] if isinstance(images, np.ndarray) else next(iter(images))


def check_classes(labels: np.ndarray, num_classes: int) -> None:
    """Raises a ValueError unless labels are integers `(n,)` from 0 to `num_classes - 1`."""
    is_whole = labels.dtype.kind in "biuf" and np.array_equal(labels, np.rint(labels))
    if not is_whole or labels.ndim != 1 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"--data must have one label from 0 to {num_classes - 1} per image, as the classifier "
            f"has {num_classes} classes. Received: labels of shape {labels.shape} with the values "
            f"{np.unique(labels)[:10].tolist()}, ..."
        )
