"""Checks of the data that `fit` and `evaluate` receive, before any training.

The reconstruction phase can take minutes before the first image is read, so one batch is checked
up front.
"""

import itertools
import math
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.utils.types import Shape

# Packages of further data loaders that Keras reads, such as torch's DataLoader.
LOADERS = ("tensorflow", "torch", "grain")


def check_inputs(data: Any, input_shapes: Sequence[Shape] | None, name: str = "x") -> Any:
    """Checks that data yields batches that fit a network's inputs.

    Args:
        data: the argument `x` of `fit`: an array or a structure of arrays, a `tf.data.Dataset`,
            a `keras.utils.PyDataset` or a generator. For a network with one input, also a tuple
            that starts with an array.
        input_shapes: the shape of each of the network's inputs without the batch axis, such as
            `(height, width, channels)`, with `None` for an axis of any length; `None` if the
            shapes are unknown.
        name: name of the argument, for errors. Defaults to `"x"`.

    Returns:
        `data`; for a generator, a new one that yields all of its batches.

    Raises:
        ValueError: if the data are empty or their images have another shape.
    """
    if isinstance(data, types.GeneratorType):
        try:
            first = next(data)
        except StopIteration:
            raise _empty(name, "a generator that yields nothing") from None
        _check_element(first, input_shapes, name)
        return _chain(first, data)
    if isinstance(data, tf.data.Dataset):
        shapes = [spec.shape for spec in keras.tree.flatten(_inputs(data.element_spec))]
        cardinality = int(data.cardinality())
        known = all(shape.rank is not None and None not in shape[1:] for shape in shapes)
        element = data.element_spec
        if cardinality == tf.data.UNKNOWN_CARDINALITY or not known:
            first = next(iter(data.take(1)), None)
            cardinality = 0 if first is None else cardinality
            element = element if first is None else first
        if cardinality == 0:
            raise _empty(name, "a tf.data.Dataset without elements")
        _check_element(element, input_shapes, name)
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches == 0:  # None if it never ends
            raise _empty(name, "a PyDataset without batches")
        _check_element(data[0], input_shapes, name)
    elif _takes_pairs(input_shapes) and isinstance(data, (tuple, list)) and data:
        check_inputs(data[0], input_shapes, name)
    elif are_arrays(data):
        _check_arrays(data, input_shapes, name)
    return data


def check_targets(inputs: Any, labels: Any, weights: Any, name: str = "x") -> None:
    """Checks that labels and sample weights are numbers, and as many as the inputs.

    Args:
        inputs: an array or a structure of arrays.
        labels, weights: arrays or structures of arrays, or `None`.
        name: name of the argument that holds the inputs, for errors. Defaults to `"x"`.

    Raises:
        ValueError: if labels or weights are not numbers, or are more or fewer than the inputs.
    """
    if labels is None and weights is None:
        return
    counts = {len(array) for array in keras.tree.flatten(inputs)}
    for what, given in (("labels", labels), ("sample weights", weights)):
        for array in [] if given is None else keras.tree.flatten(given):
            array = array if hasattr(array, "shape") else np.asarray(array)
            if not len(array.shape) or {array.shape[0]} != counts:
                raise ValueError(
                    f"{name} must have as many {what} as images. Received: "
                    f"{sorted(counts)[0]} images, {what} of shape {tuple(array.shape)}"
                )
            dtype = getattr(array.dtype, "name", str(array.dtype))  # of TensorFlow or NumPy
            if dtype == "object" or "str" in dtype:
                raise ValueError(
                    f"{name} must have {what} that are numbers. Received: {what} of type {dtype}"
                )


def are_arrays(data: Any) -> bool:
    """Whether data consists of arrays, rather than being a source of batches."""
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)):
        return False
    packages = {one.__module__.partition(".")[0] for one in type(data).__mro__}
    return hasattr(data, "shape") or packages.isdisjoint(LOADERS)


def unpack(
    x: Any, y: Any, sample_weight: Any, input_shapes: Sequence[Shape] | None
) -> tuple[Any, Any, Any]:
    """Splits a pair of arrays, `fit((images, labels))`, into the arguments of Keras's `fit`.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`, or `x` a tuple of `(x, y)` or
            `(x, y, sample_weight)`.
        input_shapes: as for `check_inputs`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if y is None and isinstance(x, (tuple, list)) and is_pair(x, input_shapes):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(x))
        sample_weight = sample_weight if weight is None else weight
    return x, y, sample_weight


def is_pair(data: Any, input_shapes: Sequence[Shape] | None) -> bool:
    """Whether data, or the elements of a dataset, contain labels besides the inputs.

    Args:
        data: as for `check_inputs`.
        input_shapes: as for `check_inputs`. For a network with several inputs, a list of arrays
            are its inputs.
    """
    if isinstance(data, tf.data.Dataset):
        element = data.element_spec
    else:
        element = data if _takes_pairs(input_shapes) else None
    return isinstance(element, (tuple, list)) and len(element) > 1


def _takes_pairs(input_shapes: Sequence[Shape] | None) -> bool:
    """Whether a list of arrays is (inputs, labels), which it is for a network with one input."""
    return input_shapes is not None and len(input_shapes) == 1


def never_ends(data: Any) -> bool:
    """Whether the data are infinite, so that an epoch needs `steps_per_epoch`."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return (
        isinstance(data, tf.data.Dataset)
        and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    )


def steps_per_epoch_of(
    data: Any, batch_size: int | None = None, validation_split: float = 0.0
) -> int | None:
    """Counts the batches of one epoch.

    Args:
        data: as for `check_inputs`.
        batch_size: images per batch of an array; `None` for Keras's 32. Defaults to `None`.
        validation_split: share of an array that is held out for validation. Defaults to `0.0`.

    Returns:
        The number of batches, or `None` if it is unknown or infinite.
    """
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return cardinality if cardinality > 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    arrays = keras.tree.flatten(data)
    if arrays and hasattr(arrays[0], "shape"):
        count = math.floor(arrays[0].shape[0] * (1 - validation_split))
        return math.ceil(count / (batch_size or 32))
    return None


def input_batches(
    data: Any, count: int, batch_size: int, input_shapes: Sequence[Shape] | None
) -> Iterator:
    """Yields batches of inputs from the start of data.

    Args:
        data: data that passed `check_inputs`.
        count: maximum number of examples in all batches.
        batch_size: examples per batch if `data` are arrays; other data have batches of their
            own.
        input_shapes: as for `check_inputs`.
    """
    batches: Iterator
    if isinstance(data, (tf.data.Dataset, types.GeneratorType)):
        batches = map(_inputs, data)
    elif isinstance(data, keras.utils.PyDataset):
        batches = (_inputs(data[index]) for index in range(data.num_batches or count))
    else:
        if _takes_pairs(input_shapes) and isinstance(data, (tuple, list)):
            data = data[0]
        length = len(keras.tree.flatten(data)[0])
        batches = (
            keras.tree.map_structure(
                lambda array, start=start: array[start : start + batch_size], data
            )
            for start in range(0, length, batch_size)
        )
    left = count
    for batch in batches:
        yield keras.tree.map_structure(lambda array, left=left: array[:left], batch)
        left -= len(keras.tree.flatten(batch)[0])
        if left <= 0:
            return


def _chain(first: Any, rest: Iterable) -> Iterator:
    # A generator function, because Keras accepts generators of tuples, but not every iterator.
    for element in itertools.chain([first], rest):
        yield element if isinstance(element, (tuple, list)) else (element,)


def _inputs(element: Any) -> Any:
    """The inputs of a dataset's element, which may be followed by labels and weights."""
    return element[0] if isinstance(element, (tuple, list)) else element


def _check_arrays(data: Any, input_shapes: Sequence[Shape] | None, name: str) -> None:
    arrays = keras.tree.flatten(data)
    if not all(hasattr(array, "shape") for array in arrays):
        raise ValueError(
            f"{name} must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a generator. "
            f"Received: {name} of type {type(data).__name__}"
        )
    if any(len(array.shape) and array.shape[0] == 0 for array in arrays):
        raise _empty(name, f"arrays of shapes {[tuple(array.shape) for array in arrays]}")
    _check_shapes(arrays, input_shapes, name)


def _check_element(element: Any, input_shapes: Sequence[Shape] | None, name: str) -> None:
    inputs = _inputs(element)
    if _takes_pairs(input_shapes):
        while isinstance(inputs, (tuple, list)):
            inputs = inputs[0]
        if isinstance(inputs, dict):
            raise ValueError(
                f"{name} must contain images or (images, labels). Received: a dict with the keys "
                f"{sorted(inputs)} (tfds.load yields pairs with as_supervised=True)"
            )
    arrays = keras.tree.flatten(inputs)
    _check_shapes([x if hasattr(x, "shape") else np.asarray(x) for x in arrays], input_shapes, name)


def _check_shapes(arrays: Sequence, input_shapes: Sequence[Shape] | None, name: str) -> None:
    if input_shapes is None:
        return
    shapes = [tuple(array.shape) for array in arrays]
    if len(shapes) == len(input_shapes) and all(map(_fits, shapes, input_shapes)):
        return
    expected = [f"(batch, {', '.join(map(str, shape))})" for shape in input_shapes]
    unbatched = shapes == list(input_shapes)
    hint = " The batch axis is missing: batch the dataset." if unbatched else ""
    raise ValueError(
        f"{name} must contain images of shape {', '.join(expected)}, the base's input shape. "
        f"Received: {', '.join(map(str, shapes))}.{hint}"
    )


def _fits(shape: Sequence[int | None], expected: Shape) -> bool:
    return len(shape) == len(expected) + 1 and all(
        got is None or length is None or got == length
        for got, length in zip(shape[1:], expected, strict=True)
    )


def _empty(name: str, received: str) -> ValueError:
    return ValueError(f"{name} must contain at least one batch of images. Received: {received}")
