"""What `fit` is given, looked at before any work is done.

A mistake in a dataset should not cost the minutes of the reconstruction phase that
comes before its first image is read, so one batch is examined up front.
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

# Packages with other things that Keras reads batches from: tf.distribute's datasets, DataLoader.
LOADERS = ("tensorflow", "torch", "grain")


def examine(data: Any, input_shapes: Sequence[Shape] | None, name: str = "x") -> Any:
    """Checks that data yields batches of what a network takes.

    Args:
        data: what `fit` takes as `x`: an array or a structure of them, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator, or where the network
            has one input a pair that starts with one.
        input_shapes: for each of the network's inputs its shape without the batch, such
            as `(height, width, channels)`, `None` where any length will do; `None` for a
            network that does not tell.
        name: the argument's name, for messages. Defaults to `"x"`.

    Returns:
        `data`, or for a generator an equivalent one that still yields everything.

    Raises:
        ValueError: where there is nothing in it, or its images have another shape.
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
        told = all(shape.rank is not None and None not in shape[1:] for shape in shapes)
        element = data.element_spec
        if cardinality == tf.data.UNKNOWN_CARDINALITY or not told:
            first = next(iter(data.take(1)), None)
            cardinality = 0 if first is None else cardinality
            element = element if first is None else first
        if cardinality == 0:
            raise _empty(name, "a tf.data.Dataset without elements")
        _check_element(element, input_shapes, name)
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches == 0:  # None where it never ends
            raise _empty(name, "a PyDataset without batches")
        _check_element(data[0], input_shapes, name)
    else:
        if _takes_pairs(input_shapes) and isinstance(data, (tuple, list)) and data:
            examine(data[0], input_shapes, name)
            return data
        if not are_arrays(data):
            return data
        arrays = keras.tree.flatten(data)
        if not all(hasattr(array, "shape") for array in arrays):
            raise ValueError(
                f"{name} must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a "
                f"generator. Received: {name} of type {type(data).__name__}"
            )
        if any(len(array.shape) and array.shape[0] == 0 for array in arrays):
            raise _empty(name, f"arrays of shapes {[tuple(a.shape) for a in arrays]}")
        _check_shapes(arrays, input_shapes, name)
    return data


def check_targets(inputs: Any, labels: Any, weights: Any, name: str = "x") -> None:
    """Checks that there are as many labels and weights as inputs, all of them numbers.

    Args:
        inputs: an array or a structure of them.
        labels, weights: the same, or `None`.
        name: of the argument that holds the inputs, for messages. Defaults to `"x"`.

    Raises:
        ValueError: where there are not.
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
            dtype = getattr(array.dtype, "name", str(array.dtype))  # TensorFlow's, or NumPy's
            if dtype == "object" or "str" in dtype:
                raise ValueError(f"{name} must have {what} that are numbers. Received: {dtype}")


def are_arrays(data: Any) -> bool:
    """Whether data is arrays, and not something that yields batches of them."""
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)):
        return False
    packages = {one.__module__.partition(".")[0] for one in type(data).__mro__}
    return hasattr(data, "shape") or packages.isdisjoint(LOADERS)


def unpacked(
    x: Any, y: Any, sample_weight: Any, input_shapes: Sequence[Shape] | None
) -> tuple[Any, Any, Any]:
    """Takes a pair of arrays apart, as `(images, labels)` is one argument of `fit`.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`.
        input_shapes: as for `examine`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if y is None and isinstance(x, (tuple, list)) and is_pair(x, input_shapes):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(x))
        sample_weight = sample_weight if weight is None else weight
    return x, y, sample_weight


def is_pair(data: Any, input_shapes: Sequence[Shape] | None = None) -> bool:
    """Whether the data, or the elements of a dataset, hold more than inputs.

    Args:
        data: as for `examine`.
        input_shapes: as for `examine`: arrays in a list are the inputs of a network that
            takes several. Defaults to `None`.
    """
    if isinstance(data, tf.data.Dataset):
        element = data.element_spec
    else:
        element = data if _takes_pairs(input_shapes) else None
    return isinstance(element, (tuple, list)) and len(element) > 1


def _takes_pairs(input_shapes: Sequence[Shape] | None) -> bool:
    """Whether a list of arrays is (inputs, labels): where the network has one input."""
    return input_shapes is not None and len(input_shapes) == 1


def never_ends(data: Any) -> bool:
    """Whether an epoch of the data needs `steps_per_epoch` to end."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return (
        isinstance(data, tf.data.Dataset)
        and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    )


def steps_in(data: Any, batch_size: int | None = None, validation_split: float = 0.0) -> int | None:
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
    arrays = keras.tree.flatten(data)
    if arrays and hasattr(arrays[0], "shape"):
        count = math.floor(arrays[0].shape[0] * (1 - validation_split))
        return math.ceil(count / (batch_size or 32))
    return None


def input_batches(
    data: Any, count: int, batch_size: int, input_shapes: Sequence[Shape] | None
) -> Iterator:
    """Yields the first inputs of what `fit` takes.

    Args:
        data: as for `examine`; it should have passed it.
        count: examples in all, fewer where there are fewer.
        batch_size: how many at once, where `data` holds arrays.
        input_shapes: as for `examine`.
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
    # A generator function: Keras takes generators, but not every iterator, and of tuples.
    for element in itertools.chain([first], rest):
        yield element if isinstance(element, (tuple, list)) else (element,)


def _inputs(element: Any) -> Any:
    """The inputs of a dataset's element: all of it, or what comes before the labels."""
    return element[0] if isinstance(element, (tuple, list)) else element


def _check_element(element: Any, input_shapes: Sequence[Shape] | None, name: str) -> None:
    inputs = _inputs(element)
    if _takes_pairs(input_shapes):
        while isinstance(inputs, (tuple, list)):
            inputs = inputs[0]
        if isinstance(inputs, dict):
            raise ValueError(
                f"{name} must give images or (images, labels). Received: a dict with the keys "
                f"{sorted(inputs)} (tfds.load gives pairs with as_supervised=True)"
            )
    arrays = keras.tree.flatten(inputs)
    _check_shapes([x if hasattr(x, "shape") else np.asarray(x) for x in arrays], input_shapes, name)


def _check_shapes(arrays: Sequence, input_shapes: Sequence[Shape] | None, name: str) -> None:
    if input_shapes is None:
        return
    shapes = [tuple(array.shape) for array in arrays]
    if len(shapes) == len(input_shapes) and all(map(_fits, shapes, input_shapes)):
        return
    wanted = [f"(batch, {', '.join(map(str, shape))})" for shape in input_shapes]
    batched = shapes == list(input_shapes)
    hint = " The batch dimension is missing: batch the dataset." if batched else ""
    raise ValueError(
        f"{name} must give images of shape {', '.join(wanted)}, as the base takes them. "
        f"Received: {', '.join(map(str, shapes))}.{hint}"
    )


def _fits(shape: Sequence[int | None], wanted: Shape) -> bool:
    return len(shape) == len(wanted) + 1 and all(
        got is None or length is None or got == length
        for got, length in zip(shape[1:], wanted, strict=True)
    )


def _empty(name: str, received: str) -> ValueError:
    return ValueError(f"{name} must give at least one batch of images. Received: {received}")
