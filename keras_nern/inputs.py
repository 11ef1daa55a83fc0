"""What `fit` is given, looked at before any work is done.

A mistake in a dataset should not cost the minutes of the reconstruction phase that
comes before its first image is read, so one batch is examined up front.
"""

import itertools
import math
import types

import keras
import numpy as np
import tensorflow as tf


def examine(data, image_shape, name="x"):
    """Checks that data yields batches of images a network takes.

    Args:
        data: what `fit` takes as `x`: an array, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a generator, or a tuple that starts with one.
        image_shape: the network's `(height, width, channels)`, `None` where any
            size will do.
        name: the argument's name, for messages. Defaults to `"x"`.

    Returns:
        `data`, or for a generator an equivalent one that still yields everything.

    Raises:
        ValueError: where there is nothing in it, or its images have another shape.
    """
    if isinstance(data, (tuple, list)) and data and hasattr(data[0], "shape"):
        examine(data[0], image_shape, name)
        return data
    if isinstance(data, types.GeneratorType):
        try:
            first = next(data)
        except StopIteration:
            raise _empty(name, "a generator that yields nothing") from None
        _check_shape(_images(first, name).shape, image_shape, name)
        return _chain(first, data)
    if isinstance(data, tf.data.Dataset):
        shape = _images(data.element_spec, name).shape
        cardinality = int(data.cardinality())
        told = shape.rank is not None and None not in shape[1:]
        if cardinality == tf.data.UNKNOWN_CARDINALITY or not told:
            first = next(iter(data.take(1)), None)
            cardinality = 0 if first is None else cardinality
            shape = shape if first is None else _images(first, name).shape
        if cardinality == 0:
            raise _empty(name, "a tf.data.Dataset without elements")
        _check_shape(shape, image_shape, name)
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches == 0:  # None where it never ends
            raise _empty(name, "a PyDataset without batches")
        _check_shape(_images(data[0], name).shape, image_shape, name)
    elif hasattr(data, "shape"):
        if len(data.shape) and data.shape[0] == 0:
            raise _empty(name, f"an array of shape {tuple(data.shape)}")
        _check_shape(data.shape, image_shape, name)
    return data


def is_pair(data):
    """Whether the data, or the elements of a dataset, hold more than images."""
    element = data.element_spec if isinstance(data, tf.data.Dataset) else data
    return isinstance(element, (tuple, list)) and len(element) > 1


def never_ends(data):
    """Whether an epoch of the data needs `steps_per_epoch` to end."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return (
        isinstance(data, tf.data.Dataset)
        and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    )


def steps_in(data, batch_size=None, validation_split=0.0):
    """Counts the batches of one epoch.

    Args:
        data: as for `examine`.
        batch_size: images per batch of an array; `None` for Keras's 32. Defaults to
            `None`.
        validation_split: share of an array that is held out. Defaults to `0.0`.

    Returns:
        The number of batches, or `None` where it cannot be told.
    """
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return cardinality if cardinality > 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    if hasattr(data, "shape"):
        return math.ceil(math.floor(data.shape[0] * (1 - validation_split)) / (batch_size or 32))
    return None


def image_batches(data, count, batch_size):
    """Yields the first images of what `fit` takes.

    Args:
        data: as for `examine`; it should have passed it.
        count: images in all, fewer where there are fewer.
        batch_size: images at once, where `data` is an array.
    """
    if isinstance(data, (tuple, list)):
        data = data[0]
    batches = data
    if hasattr(data, "shape"):
        batches = (data[start : start + batch_size] for start in range(0, len(data), batch_size))
    elif isinstance(data, keras.utils.PyDataset):
        batches = (data[index] for index in range(data.num_batches or count))
    left = count
    for element in batches:
        images = _images(element, "x")[:left]
        yield images
        left -= len(images)
        if left <= 0:
            return


def _chain(first, rest):
    # A generator function: Keras takes generators, but not every iterator, and of tuples.
    for element in itertools.chain([first], rest):
        yield element if isinstance(element, (tuple, list)) else (element,)


def _images(element, name):
    while isinstance(element, (tuple, list)):
        element = element[0]
    if isinstance(element, dict):
        raise ValueError(
            f"{name} must give images or (images, labels). Received: a dict with the keys "
            f"{sorted(element)} (tfds.load gives pairs with as_supervised=True)"
        )
    return element if hasattr(element, "shape") else np.asarray(element)


def _check_shape(shape, image_shape, name):
    shape = tuple(shape)
    fits = len(shape) == len(image_shape) + 1 and all(
        got is None or wanted is None or got == wanted
        for got, wanted in zip(shape[1:], image_shape, strict=True)
    )
    if fits:
        return
    hint = " The batch dimension is missing: batch the dataset." if shape == image_shape else ""
    raise ValueError(
        f"{name} must give images of shape (batch, {', '.join(map(str, image_shape))}), "
        f"as the base takes them. Received: {shape}.{hint}"
    )


def _empty(name, received):
    return ValueError(f"{name} must give at least one batch of images. Received: {received}")
