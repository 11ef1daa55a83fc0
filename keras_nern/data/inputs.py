"""Checks of the data that `fit` and `evaluate` receive, before any training.

The reconstruction phase can take minutes before the first image is read, so one batch is checked
up front. Inputs are matched with those of the network by name if they come in a dict, and by their
order otherwise; labels are matched with outputs in the same way.
"""

import itertools
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_nern.utils.types import Shape

# Shapes without the batch axis by name, in the order of `keras.tree.flatten`; `None` if unknown.
Shapes: TypeAlias = Mapping[str, Shape] | None

FINITE_CHUNK = 2**24  # numbers checked at once

# Packages of further data loaders that Keras reads, such as torch's DataLoader.
LOADERS = ("tensorflow", "torch", "grain")


def check_inputs(
    data: Any, input_shapes: Shapes, name: str = "x", output_shapes: Shapes = None
) -> Any:
    """Checks that data yields batches that fit a network.

    Args:
        data: the argument `x` of `fit`: an array or a structure of arrays, a `tf.data.Dataset`,
            a `keras.utils.PyDataset` or a generator. For a network with one input, also a tuple
            that starts with an array.
        input_shapes: the shapes of the network's inputs by name, without the batch axis, such as
            `{"image": (height, width, channels)}`, with `None` for an axis of any length; `None`
            if they are unknown.
        name: name of the argument, for errors. Defaults to `"x"`.
        output_shapes: the same for the outputs, with which the labels of a dataset are compared.
            Defaults to `None`.

    Returns:
        `data`; for a generator, a new one that yields all of its batches.

    Raises:
        ValueError: if the data are empty, if inputs or labels have another name or shape, or if
            images of the first batch, or of an array, are NaN or infinite.
    """
    if isinstance(data, types.GeneratorType):
        try:
            first = next(data)
        except StopIteration:
            raise _empty(name, "a generator that yields nothing") from None
        _check_element(first, input_shapes, output_shapes, name)
        return _chain(first, data)
    if isinstance(data, tf.data.Dataset):
        element = data.element_spec
        cardinality = int(data.cardinality())
        shapes = [spec.shape for spec in keras.tree.flatten(element)]
        known = all(shape.rank is not None and None not in shape[1:] for shape in shapes)
        if cardinality == 0:
            raise _empty(name, "a tf.data.Dataset without elements")
        if cardinality != tf.data.UNKNOWN_CARDINALITY and known:
            # the shapes alone, before a pipeline is started for the values
            _check_element(element, input_shapes, output_shapes, name)
        element = next(iter(data.take(1)), None)
        if element is None:
            raise _empty(name, "a tf.data.Dataset without elements")
        _check_element(element, input_shapes, output_shapes, name)
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches == 0:  # None if it never ends
            raise _empty(name, "a PyDataset without batches")
        _check_element(data[0], input_shapes, output_shapes, name)
    elif _takes_pairs(input_shapes) and isinstance(data, (tuple, list)) and data:
        check_inputs(data[0], input_shapes, name)
    elif are_arrays(data):
        _check_arrays(data, input_shapes, name)
    return data


def check_targets(
    inputs: Any, labels: Any, weights: Any, name: str = "x", output_shapes: Shapes = None
) -> None:
    """Checks that labels and sample weights are numbers, and as many as the inputs.

    Args:
        inputs: an array or a structure of arrays.
        labels, weights: arrays or structures of arrays, or `None`.
        name: name of the argument that holds the inputs, for errors. Defaults to `"x"`.
        output_shapes: as for `check_inputs`. Defaults to `None`.

    Raises:
        ValueError: if labels or weights are not numbers, or are more or fewer than the inputs; if
            labels have other names or shapes than the outputs, or are no classes of them.
    """
    counts = {len(array) for array in keras.tree.flatten(inputs)}
    for what, given in (("labels", labels), ("sample weights", weights)):
        for array in [] if given is None else keras.tree.flatten(given):
            array = array if hasattr(array, "shape") else np.asarray(array)
            if not len(array.shape) or {array.shape[0]} != counts:
                raise ValueError(
                    f"{name} must have as many {what} as images. Received: "
                    f"{sorted(counts)[0]} images, {what} of shape {tuple(array.shape)}"
                )
            _check_numeric(array, what, name)
    if labels is not None:
        _check_labels(labels, output_shapes, name)


def _check_numeric(array: Any, what: str, name: str) -> None:
    dtype = getattr(array.dtype, "name", str(array.dtype))  # of TensorFlow or NumPy
    if dtype == "object" or "str" in dtype:
        raise ValueError(
            f"{name} must have {what} that are numbers. Received: {what} of type {dtype}"
        )


def _check_labels(labels: Any, output_shapes: Shapes, name: str) -> None:
    """Checks labels, or their specs, against the outputs `(batch, ..., classes)`.

    Labels are class numbers `(batch, ...)` or `(batch, ..., 1)`, or a number for each class.
    """
    if output_shapes is None:
        return
    for (output, shape), array in zip(
        output_shapes.items(), _by_name(labels, output_shapes, "labels", name), strict=True
    ):
        array = array if hasattr(array, "shape") else np.asarray(array)
        _check_numeric(array, "labels", name)
        *rest, classes = shape
        allowed = [tuple(rest), (*rest, 1), (*rest, classes)]
        if array.shape is None or getattr(array.shape, "rank", 0) is None:
            continue
        if not any(_fits(tuple(array.shape), one) for one in allowed):
            shapes = ", ".join(f"(batch, {', '.join(map(str, one))})" for one in allowed)
            raise ValueError(
                f"{name} must have labels of one of the shapes {shapes} for the output {output!r}. "
                f"Received: labels of shape {tuple(array.shape)}"
            )
        is_class = len(array.shape) == len(rest) + 1 or array.shape[-1] != classes
        if not is_class or isinstance(array, (tf.TypeSpec, keras.KerasTensor)):
            continue
        values = np.asarray(keras.ops.convert_to_numpy(array), "float64")
        count = max(2, classes)
        wrong = (values != np.rint(values)) | (values < 0) | (values >= count)
        if wrong.any():
            raise ValueError(
                f"{name} must have labels from 0 to {count - 1}, the classes of the output "
                f"{output!r}. Received: {np.unique(values[wrong])[:5].tolist()}"
            )


def are_arrays(data: Any) -> bool:
    """Whether data consists of arrays, rather than being a source of batches."""
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)):
        return False
    packages = {one.__module__.partition(".")[0] for one in type(data).__mro__}
    return hasattr(data, "shape") or packages.isdisjoint(LOADERS)


def unpack(x: Any, y: Any, sample_weight: Any, input_shapes: Shapes) -> tuple[Any, Any, Any]:
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


def is_pair(data: Any, input_shapes: Shapes) -> bool:
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


def _takes_pairs(input_shapes: Shapes) -> bool:
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


def input_batches(data: Any, count: int, batch_size: int, input_shapes: Shapes) -> Iterator:
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


def _by_name(values: Any, shapes: Mapping[str, Shape], what: str, name: str) -> list:
    """Values in the order of `shapes`: a dict by its keys, anything else by its order."""
    if isinstance(values, dict):
        if set(values) != set(shapes):
            raise ValueError(
                f"{name} must have {what} named {sorted(shapes)}. Received: {what} named "
                f"{sorted(values)} (tfds.load yields pairs with as_supervised=True)"
            )
        return [values[key] for key in shapes]
    flat = keras.tree.flatten(values)
    if len(flat) != len(shapes):
        raise ValueError(
            f"{name} must have {what} for {list(shapes)}. Received: {len(flat)} arrays of {what}"
        )
    return flat


def _check_arrays(data: Any, input_shapes: Shapes, name: str) -> None:
    arrays = keras.tree.flatten(data)
    if not all(hasattr(array, "shape") for array in arrays):
        raise ValueError(
            f"{name} must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a generator. "
            f"Received: {name} of type {type(data).__name__}"
        )
    if any(len(array.shape) and array.shape[0] == 0 for array in arrays):
        raise _empty(name, f"arrays of shapes {[tuple(array.shape) for array in arrays]}")
    _check_images(data, input_shapes, name)


def _check_element(element: Any, input_shapes: Shapes, output_shapes: Shapes, name: str) -> None:
    inputs = _inputs(element)
    if _takes_pairs(input_shapes):
        while isinstance(inputs, (tuple, list)):
            inputs = inputs[0]
    _check_images(inputs, input_shapes, name)
    if isinstance(element, (tuple, list)) and len(element) > 1 and element[1] is not None:
        _check_labels(element[1], output_shapes, name)


def _check_images(inputs: Any, input_shapes: Shapes, name: str) -> None:
    """Checks names, shapes and values of inputs, or of their specs."""
    if input_shapes is None:
        arrays = keras.tree.flatten(inputs)
    elif isinstance(inputs, dict):
        arrays = _by_name(inputs, input_shapes, "inputs", name)
    else:
        arrays = keras.tree.flatten(inputs)
    arrays = [array if hasattr(array, "shape") else np.asarray(array) for array in arrays]
    _check_shapes(arrays, input_shapes, name)
    for array in arrays:
        _check_finite(array, name)


def _check_finite(array: Any, name: str) -> None:
    if isinstance(array, tf.TypeSpec) or not keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(array.dtype)
    ):
        return
    rows = max(1, FINITE_CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        values = np.asarray(keras.ops.convert_to_numpy(array[start : start + rows]), "float32")
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{name} must have images of finite numbers. Received: NaN or infinity in image "
                f"{start + int(bad[0])}"
            )


def _check_shapes(arrays: Sequence, input_shapes: Shapes, name: str) -> None:
    if input_shapes is None:
        return
    shapes = [tuple(array.shape) for array in arrays]
    if len(shapes) == len(input_shapes) and all(map(_fits, shapes, input_shapes.values())):
        return
    expected = [f"(batch, {', '.join(map(str, shape))})" for shape in input_shapes.values()]
    unbatched = shapes == list(input_shapes.values())
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
