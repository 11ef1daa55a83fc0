"""Images and labels, from a file or from TensorFlow Datasets."""

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_nern
from keras_nern.cli.arguments import DAMAGED, IMAGES

NAMES = {
    "images": ("images", "x"),
    "labels": ("labels", "y"),
}
SHUFFLED = 10_000  # images that a dataset is shuffled among


def load(
    options: dict, base: keras.Model, split: str, for_training: bool = False
) -> tuple[Any, np.ndarray | None]:
    """Loads what `--data` names.

    Args:
        options: those of the verb: `data`, `data_dir`, `split`, `scale`, `batch_size`,
            `noise_batches`, `seed`.
        base: the classifier that takes the images.
        split: of a TFDS dataset, where `--split` is not given.
        for_training: whether labels are left out and the images of a dataset shuffled, into
            the same orders at every run. Defaults to `False`.

    Returns:
        `(images, labels)`: an array, a batched dataset or a `NoiseDataset`, and an int
        array `(n,)`, or `None` where there are no labels.

    Raises:
        ValueError: where there is no such dataset, or nothing that the base takes.
        ImportError: where TFDS is needed and not installed.
    """
    if options["data"] == "noise":
        counts = {"batch_size": options["batch_size"], "steps": options["noise_batches"]}
        noise = keras_nern.NoiseDataset(base, seed=options["seed"], **counts)
        if for_training:
            return noise, None
        return np.concatenate([noise[index] for index in range(len(noise))]), None
    if pathlib.Path(options["data"]).suffix in IMAGES:
        images, labels = _from_file(options["data"])
        if options["scale"] != 1:
            images = (images * options["scale"]).astype("float32")
    else:
        images, labels = _from_tfds(options, options["split"] or split, for_training)
    if isinstance(images, np.ndarray):
        _check_images(images)
    inputs = getattr(base, "inputs", None)
    shapes = [tuple(one.shape[1:]) for one in inputs] if inputs else None
    keras_nern.data.inputs.examine(images, shapes, name="--data")
    if for_training or labels is None:
        return images, None
    if labels.ndim == 2:
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if isinstance(images, np.ndarray) and labels.shape != images.shape[:1]:
        raise ValueError(
            f"--data must have a label for each of {len(images)} images. "
            f"Received: labels of shape {labels.shape}"
        )
    return images, labels


def _from_file(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    found: dict[str, np.ndarray | None] = {}
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None
            for what, names in NAMES.items():
                name = next((name for name in names if name in loaded.files), None)
                found[what] = None if name is None else loaded[name]
    except (*DAMAGED, OSError) as error:
        raise ValueError(
            f"--data must be a file of arrays. Received: {path!r} ({error})"
        ) from error
    if found["images"] is None:
        raise ValueError(
            f"--data must have an array called one of {NAMES['images']}. "
            f"Received: {path!r} with {loaded.files}"
        )
    return found["images"], found["labels"]


def _check_images(images: np.ndarray) -> None:
    finite = int(np.isfinite(images).sum()) if images.dtype.kind in "biuf" else 0
    if finite < images.size:
        raise ValueError(
            "--data must have images of finite real numbers. Received: an array of "
            f"{images.dtype}, {images.size - finite:,} of whose numbers are not"
        )


def one_of(images: Any) -> Any:
    """A first batch of what `load` gives, of one image where it is an array."""
    return images[:1] if isinstance(images, np.ndarray) else next(iter(images))


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Checks labels `(n,)` against the classes that there are.

    Raises:
        ValueError: where they are not integers from 0 up to, and without, `num_classes`.
    """
    whole = labels.dtype.kind in "biuf" and np.array_equal(labels, np.rint(labels))
    if not whole or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"--data must have labels from 0 to {num_classes - 1}, as the classifier has "
            f"{num_classes} classes. Received: {np.unique(labels)[:10].tolist()}, ..."
        )


def _from_tfds(
    options: dict, split: str, for_training: bool
) -> tuple[tf.data.Dataset, np.ndarray | None]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "--data with a dataset's name needs tensorflow-datasets: `pip install keras-nern[data]`"
        ) from error
    name = options["data"]
    try:
        builder = tfds.builder(name, data_dir=options["data_dir"])
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"--data must be noise, a file {' or '.join(IMAGES)}, or a dataset of TFDS. "
            f"Received: {name!r} ({str(error).splitlines()[0]})"
        ) from error
    builder.download_and_prepare()
    pairs = builder.as_dataset(split=split, as_supervised=True)
    images = pairs.map(lambda image, label: tf.cast(image, "float32") * options["scale"])
    if for_training:
        shuffled = images.shuffle(SHUFFLED, seed=options["seed"])
        return shuffled.batch(options["batch_size"]).prefetch(2), None
    labels = np.array([label for _, label in pairs.as_numpy_iterator()])
    return images.batch(options["batch_size"]), labels
