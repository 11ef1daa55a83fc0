"""Checks of the data that `fit` and `evaluate` receive, before any training.

The reconstruction phase can take minutes before the first image is read, so one batch is checked
up front. Inputs in a dict are matched with the network's inputs by name, other inputs by their
order; labels are matched with outputs in the same way.
"""

import itertools
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_nern.network.signature import Signature, by_name
from keras_nern.utils.types import Shape

# Shapes of the logits without the batch axis by output name, see `OriginalNetwork.label_shapes`;
# `None` if unknown.
LabelShapes: TypeAlias = Mapping[str, Shape] | None

# Runs the network on the first example of inputs and returns `LabelShapes`.
TryOut: TypeAlias = Callable[[Any], LabelShapes]

FINITE_CHUNK = 2**24  # numbers checked at once

# Packages of other data loaders that Keras accepts, such as torch's DataLoader.
LOADERS = ("tensorflow", "torch", "grain")


def check_inputs(
    data: Any,
    signature: Signature,
    name: str = "x",
    label_shapes: LabelShapes = None,
    try_out: TryOut | None = None,
    labels: Any = None,
    weights: Any = None,
) -> Any:
    """Checks that data yields batches that fit a network.

    Args:
        data: the argument `x` of `fit`: an array or a structure of arrays, a `tf.data.Dataset`,
            a `keras.utils.PyDataset` or a generator. For a network with one input, also a tuple
            that starts with an array.
        signature: the network's `Signature`.
        name: name of the argument, for errors. Defaults to `"x"`.
        label_shapes: shapes of the network's logits by output name, to check labels. Defaults to
            `None`.
        try_out: function that runs the network on the first example, for a network that does not
            know its inputs, and returns `label_shapes`. Defaults to `None`.
        labels, weights: as for `check_targets`, if `data` are arrays. Default to `None`.

    Returns:
        `data`; for a generator, a new one that yields all of its batches.

    Raises:
        ValueError: if the data are empty, if inputs or labels have another name or shape, if
            labels are not classes of the outputs, or if images are NaN or infinite. Of data that
            come in batches, the first batch is checked.
    """

    def check(element: Any) -> None:
        _check_element(element, signature, label_shapes, name, try_out)

    if isinstance(data, types.GeneratorType):
        try:
            first = next(data)
        except StopIteration:
            raise _empty(name, "a generator that yields nothing") from None
        check(first)
        return _chain(first, data)
    if isinstance(data, tf.data.Dataset):
        element = data.element_spec
        cardinality = int(data.cardinality())
        shapes = [spec.shape for spec in keras.tree.flatten(element)]
        known = all(shape.rank is not None and None not in shape[1:] for shape in shapes)
        if cardinality == 0:
            raise _empty(name, "a tf.data.Dataset without elements")
        if cardinality != tf.data.UNKNOWN_CARDINALITY and known:
            check(element)  # the shapes
            if signature.inputs is not None and not is_pair(data, signature):
                # Reading images would advance the random generators of the pipeline.
                return data
        element = next(iter(data.take(1)), None)
        if element is None:
            raise _empty(name, "a tf.data.Dataset without elements")
        check(element)
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches == 0:  # None if it never ends
            raise _empty(name, "a PyDataset without batches")
        check(data[0])
    elif are_arrays(data):
        label_name = "y" if name == "x" and labels is not None else name
        weight_name = "sample_weight" if name == "x" and weights is not None else name
        inputs, labels, weights = unpack(data, labels, weights, signature)
        found = _check_arrays(inputs, signature, name, try_out)
        check_targets(inputs, labels, None, label_name, label_shapes or found)
        check_targets(inputs, None, weights, weight_name)
    return data


def check_targets(
    inputs: Any, labels: Any, weights: Any, name: str = "x", label_shapes: LabelShapes = None
) -> None:
    """Checks that labels and sample weights are numbers, and as many as the inputs.

    Args:
        inputs: an array or a structure of arrays.
        labels, weights: arrays or structures of arrays, or `None`.
        name: name of the argument that holds them, for errors. Defaults to `"x"`.
        label_shapes: as for `check_inputs`. Defaults to `None`.

    Raises:
        ValueError: if labels or weights are not numbers or are not as many as the inputs, or if
            labels do not have the names, shapes or classes of the outputs.
    """
    counts = {array.shape[0] for array in keras.tree.flatten(inputs)}
    for what, given in (("labels", labels), ("sample weights", weights)):
        if given is None:
            continue
        arrays = [_as_array(array) for array in keras.tree.flatten(given)]
        if not arrays:
            raise ValueError(f"{name} must have {what}. Received: {given!r}")
        for array in arrays:
            if not len(array.shape) or {array.shape[0]} != counts:
                raise ValueError(
                    f"{name} must have as many {what} as images. Received: "
                    f"{sorted(counts)[0]} images, {what} of shape {tuple(array.shape)}"
                )
            _check_numeric(array, what, name)
            _check_finite(array, what, name)
    if labels is not None:
        _check_labels(labels, label_shapes, name)


def are_arrays(data: Any) -> bool:
    """Whether data consists of arrays, rather than being a source of batches."""
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)):
        return False
    packages = {one.__module__.partition(".")[0] for one in type(data).__mro__}
    return hasattr(data, "shape") or packages.isdisjoint(LOADERS)


def unpack(x: Any, y: Any, sample_weight: Any, signature: Signature) -> tuple[Any, Any, Any]:
    """Splits a pair of arrays, `fit((images, labels))`, into the arguments of Keras's `fit`.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`, or `x` a tuple of `(x, y)` or
            `(x, y, sample_weight)`.
        signature: as for `check_inputs`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if y is None and is_pair(x, signature) and not isinstance(x, tf.data.Dataset):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(x))
        sample_weight = sample_weight if weight is None else weight
    elif signature.has_one_input:
        while isinstance(x, (tuple, list)) and len(x) == 1:
            x = x[0]
    return x, y, sample_weight


def unpack_validation(validation_data: Any) -> tuple[Any, Any, Any]:
    """Splits `validation_data` into `(x, y, sample_weight)`, as Keras does."""
    try:
        return keras.utils.unpack_x_y_sample_weight(validation_data)
    except ValueError as error:
        raise ValueError(
            "validation_data must be x, (x, y) or (x, y, sample_weight). Received: "
            f"{len(validation_data)} elements"
        ) from error


def is_pair(data: Any, signature: Signature) -> bool:
    """Whether data, or the elements of a dataset, contain labels besides the inputs.

    Args:
        data: as for `check_inputs`.
        signature: as for `check_inputs`. For a network with several inputs, a list of arrays
            contains inputs only, and a pair starts with a dict, list or tuple of inputs.
    """
    if isinstance(data, tf.data.Dataset):
        return isinstance(data.element_spec, (tuple, list)) and len(data.element_spec) > 1
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        return False
    return signature.has_one_input or isinstance(data[0], (dict, tuple, list))


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


def input_batches(data: Any, count: int, batch_size: int, signature: Signature) -> Iterator:
    """Yields batches of inputs from the start of data, as the network takes them.

    Args:
        data: data that passed `check_inputs`.
        count: maximum number of examples in all batches.
        batch_size: examples per batch of arrays; ignored for data that come in batches.
        signature: as for `check_inputs`.
    """
    batches: Iterator
    if isinstance(data, keras.utils.PyDataset):
        batches = (_inputs(data[index]) for index in range(data.num_batches or count))
    elif are_arrays(data):
        data, _, _ = unpack(data, None, None, signature)
        length = keras.tree.flatten(data)[0].shape[0]
        batches = (
            keras.tree.map_structure(
                lambda array, start=start: array[start : start + batch_size], data
            )
            for start in range(0, length, batch_size)
        )
    else:
        batches = map(_inputs, data)
    left = count
    for batch in batches:
        some = keras.tree.map_structure(lambda array, left=left: array[:left], batch)
        yield signature.arguments(some)
        left -= keras.tree.flatten(batch)[0].shape[0]
        if left <= 0:
            return


def first_batches(data: Iterator, count: int) -> tuple[Iterator, Iterator]:
    """Reads batches from a generator until they hold `count` examples.

    Args:
        data: a generator that passed `check_inputs`.
        count: number of examples.

    Returns:
        A generator of these batches, and one of the same batches and all later ones.
    """
    read: list = []
    left = count
    for batch in data:
        read.append(batch)
        left -= keras.tree.flatten(_inputs(batch))[0].shape[0]
        if left <= 0:
            break
    return (batch for batch in read), (batch for batch in itertools.chain(read, data))


def _chain(first: Any, rest: Iterable) -> Iterator:
    # A generator function, because Keras accepts generators of tuples, but not every iterator.
    for element in itertools.chain([first], rest):
        yield element if isinstance(element, (tuple, list)) else (element,)


def _inputs(element: Any) -> Any:
    """The inputs of a dataset's element, which may be followed by labels and weights."""
    return element[0] if isinstance(element, (tuple, list)) else element


def _as_array(value: Any) -> Any:
    """Converts a value without a shape to an array; returns tensors and specs unchanged."""
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)


def _check_arrays(
    inputs: Any, signature: Signature, name: str, try_out: TryOut | None
) -> LabelShapes:
    arrays = keras.tree.flatten(inputs)
    if not all(hasattr(array, "shape") for array in arrays):
        raise ValueError(
            f"{name} must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a generator. "
            f"Received: {name} of type {type(inputs).__name__}"
        )
    if not arrays or any(len(array.shape) and array.shape[0] == 0 for array in arrays):
        raise _empty(name, f"arrays of shapes {[tuple(array.shape) for array in arrays]}")
    found = _check_images(inputs, signature, name, try_out)
    if len({array.shape[0] for array in arrays}) > 1:
        raise ValueError(
            f"{name} must have as many examples in each input. Received: arrays of shapes "
            f"{[tuple(array.shape) for array in arrays]}"
        )
    return found


def _check_element(
    element: Any,
    signature: Signature,
    label_shapes: LabelShapes,
    name: str,
    try_out: TryOut | None,
) -> None:
    inputs = _inputs(element)
    if signature.has_one_input:
        while isinstance(inputs, (tuple, list)) and len(inputs) == 1:
            inputs = inputs[0]
    found = _check_images(inputs, signature, name, try_out)
    if isinstance(element, (tuple, list)) and len(element) > 1 and element[1] is not None:
        _check_labels(element[1], label_shapes or found, name)


def _check_images(
    inputs: Any, signature: Signature, name: str, try_out: TryOut | None
) -> LabelShapes:
    """Checks names, shapes and values of inputs, or of their specs.

    Returns the label shapes from `try_out` if it was called, and `None` otherwise.
    """
    known = signature.inputs is not None
    flat = signature.ordered(inputs, name) if known else keras.tree.flatten(inputs)
    arrays = [_as_array(array) for array in flat]
    _check_shapes(arrays, signature, name)
    are_numbers = True
    for array in arrays:
        if _is_text(array):
            are_numbers = False
        else:
            _check_numeric(array, "images", name)
            _check_finite(array, "images", name)
    if try_out is None or isinstance(arrays[0], tf.TypeSpec) or (known and are_numbers):
        return None
    try:
        return try_out(inputs)
    except Exception as error:  # custom layers may raise any error
        text = re.sub(r"\x1b\[\d+m", "", str(error)).partition("\n\nArguments received")[0]
        raise ValueError(
            f"{name} must have inputs that the base accepts. Received: inputs of shapes "
            f"{[tuple(array.shape) for array in arrays]} ({type(error).__name__}: {text})"
        ) from error


def _check_shapes(arrays: Sequence, signature: Signature, name: str) -> None:
    if signature.inputs is None:
        return
    shapes = [tuple(array.shape) for array in arrays if _rank(array) is not None]
    expected_shapes = list(signature.inputs.values())
    if len(shapes) < len(arrays) or all(map(_fits, shapes, expected_shapes)):
        return
    expected = [f"(batch, {', '.join(map(str, shape))})" for shape in expected_shapes]
    hint = " The batch axis is missing: batch the dataset." if shapes == expected_shapes else ""
    raise ValueError(
        f"{name} must contain images of shape {', '.join(expected)}, the base's input shape. "
        f"Received: {', '.join(map(str, shapes))}.{hint}"
    )


def _check_labels(labels: Any, label_shapes: LabelShapes, name: str) -> None:
    """Checks labels, or their specs, against the logits `(batch, ..., classes)`.

    Labels are class numbers `(batch, ...)` or `(batch, ..., 1)`, or a number for each class.
    """
    if label_shapes is None:
        for array in map(_as_array, keras.tree.flatten(labels)):
            _check_numeric(array, "labels", name)
        return
    values = by_name(labels, label_shapes, "labels", name)
    for array, (output, shape) in zip(map(_as_array, values), label_shapes.items(), strict=True):
        _check_numeric(array, "labels", name)
        *rest, classes = shape
        allowed = [tuple(rest), (*rest, 1), (*rest, classes)]
        if _rank(array) is None:
            continue
        if not any(_fits(tuple(array.shape), one) for one in allowed):
            shapes = ", ".join(f"(batch, {', '.join(map(str, one))})" for one in allowed)
            raise ValueError(
                f"{name} must have labels of one of the shapes {shapes} for the output {output!r}. "
                f"Received: labels of shape {tuple(array.shape)}"
            )
        is_class = len(array.shape) == len(rest) + 1 or array.shape[-1] != classes
        is_spec = isinstance(array, (tf.TypeSpec, keras.KerasTensor))
        if classes is None or is_spec or not is_class:
            continue
        found = np.asarray(keras.ops.convert_to_numpy(array), "float64")
        # with two classes, a label may be the probability of the second
        whole = found == np.rint(found) if classes > 2 else np.isfinite(found)
        wrong = ~whole | (found < 0) | (found > classes - 1)
        if wrong.any():
            raise ValueError(
                f"{name} must have labels from 0 to {classes - 1}, the classes of the output "
                f"{output!r}. Received: {np.unique(found[wrong])[:5].tolist()}"
            )


def _rank(array: Any) -> int | None:
    """Number of axes; `None` for a spec of unknown rank."""
    rank = getattr(array.shape, "rank", "known")
    return None if rank is None else len(array.shape)


def _fits(shape: Sequence[int | None], expected: Shape) -> bool:
    return len(shape) == len(expected) + 1 and all(
        got is None or length is None or got == length
        for got, length in zip(shape[1:], expected, strict=True)
    )


def _dtype_name(array: Any) -> str:
    return getattr(array.dtype, "name", str(array.dtype))  # of TensorFlow or NumPy


def _is_text(array: Any) -> bool:
    is_object = _dtype_name(array) == "object" and math.prod(array.shape) > 0
    return "str" in _dtype_name(array) or (is_object and isinstance(array.flat[0], (str, bytes)))


def _check_numeric(array: Any, what: str, name: str) -> None:
    dtype = _dtype_name(array)
    is_dense = not hasattr(array, "tocoo") and not isinstance(
        array,
        (tf.RaggedTensor, tf.RaggedTensorSpec, tf.SparseTensor, tf.SparseTensorSpec),
    )
    if is_dense and not _is_text(array) and "object" not in dtype and "complex" not in dtype:
        return
    raise ValueError(
        f"{name} must have {what} that are real numbers in dense arrays. Received: {what} of type "
        f"{dtype} in a {type(array).__name__}"
    )


def _check_finite(array: Any, what: str, name: str) -> None:
    if isinstance(array, tf.TypeSpec) or "float" not in _dtype_name(array):
        return
    rows = max(1, FINITE_CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        with np.errstate(over="ignore"):  # float32 turns large float64 values into infinity
            values = np.asarray(keras.ops.convert_to_numpy(array[start : start + rows]), "float32")
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{name} must have {what} of finite numbers. Received: NaN or infinity in "
                f"{what[:-1]} {start + int(bad[0])}"
            )


def _empty(name: str, received: str) -> ValueError:
    return ValueError(f"{name} must contain at least one batch of images. Received: {received}")
