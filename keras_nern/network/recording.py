"""What a network's layers are given and give, while it runs.

Any Keras model can be listened to: functional, nested or subclassed. While recording, each
layer's `call` is stood in for by one that notes inputs and output, so a map in
the midst of the network is found without its graph: the batch normalisation that follows a
convolution is the one whose input *is* the convolution's output. A layer of another precision
is given a copy that Keras casts; what is noted is the tensor that was cast.
"""

import contextlib
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_nern.network.kernels import walk_layers
from keras_nern.utils.types import Tensor


class Call(typing.NamedTuple):
    """One call of a layer or operation: what it was given, flat, and what it gave."""

    operation: keras.Operation
    inputs: list
    output: Tensor


@contextlib.contextmanager
def capture_calls(model: keras.Model) -> Iterator[list[Call]]:
    """Notes the calls of all layers and operations in a model.

    Args:
        model: a built `keras.Model`.

    Yields:
        A list to which each `Call` is added when it is done, the innermost first.

    Example:

    >>> with capture_calls(model) as calls:
    ...     outputs = model(images)
    >>> maps = [call.output for call in calls if isinstance(call.operation, keras.layers.ReLU)]
    """
    calls, wrapped = [], []

    def listen(operation: keras.Operation, name: str, sources: dict[int, tuple]) -> None:
        call = getattr(operation, name)

        def listening(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            inputs = [_source(one, sources) for one in keras.tree.flatten((args, kwargs))]
            calls.append(Call(operation, inputs, output))
            return output

        operation.__dict__[name] = listening  # an attribute that Keras need not track
        wrapped.append((operation, name))

    with _noted_casts() as sources:
        try:
            for operation in all_operations(model):
                listen(operation, "call", sources)
                if hasattr(operation, "quantized_call"):  # in place of call, once quantised
                    listen(operation, "quantized_call", sources)
            yield calls
        finally:
            for operation, name in wrapped:
                del operation.__dict__[name]


# Casts are noted for all layers of the process, so for one recording at a time.
_NOTING = threading.RLock()


@contextlib.contextmanager
def _noted_casts() -> Iterator[dict[int, tuple]]:
    """Notes what Keras casts to a layer's precision: from the copy's id to copy and source."""
    sources: dict[int, tuple] = {}
    convert = keras.DTypePolicy.convert_input

    def noting(self: keras.DTypePolicy, x: Any, *args: Any, **kwargs: Any) -> Any:
        converted = convert(self, x, *args, **kwargs)
        if converted is not x and keras.ops.is_tensor(x):
            sources[id(converted)] = (converted, x)
        return converted

    with _NOTING:
        keras.DTypePolicy.convert_input = noting
        try:
            yield sources
        finally:
            keras.DTypePolicy.convert_input = convert


def _source(given: Any, sources: dict[int, tuple]) -> Any:
    return sources.get(id(given), (given, given))[1]  # copies are kept, so that ids are theirs


def all_operations(model: keras.Model) -> list[keras.Operation]:
    """All layers of a model, to any depth, and the operations between them (`x + y`, ...).

    Those of a subclassed model's own code are no objects of Keras, and are not among them.
    """
    layers = [layer for _, layer in walk_layers(model)]
    found = {id(layer): layer for layer in layers}
    for one in (model, *layers):
        for operation in getattr(one, "operations", ()):
            found.setdefault(id(operation), operation)
    return list(found.values())


def normalisations(calls: Sequence[Call]) -> dict[int, Call]:
    """The first batch normalisation of each convolution's output.

    Args:
        calls: what `capture_calls` noted.

    Returns:
        A dict from the id of an output to the `Call` of the `BatchNormalization` that was
        given it.
    """
    found: dict[int, Call] = {}
    for call in calls:
        if isinstance(call.operation, keras.layers.BatchNormalization):
            found.setdefault(id(call.inputs[0]), call)
    return found


class _Reached(Exception):
    """Ends a run at the layer that was waited for."""


def first_normalisation(
    model: keras.Model, images: Tensor
) -> tuple[keras.layers.Layer, Callable[[Tensor], Tensor]]:
    """The batch normalisation that comes first in a network.

    Args:
        model: a built `keras.Model`.
        images: a batch that it takes.

    Returns:
        `(layer, probe)`: the layer, and a function from images to what the layer is given,
        which runs the network no further.

    Raises:
        ValueError: where the network has none.
    """
    with capture_calls(model) as calls:
        model(images, training=False)
    found = [call for call in calls if isinstance(call.operation, keras.layers.BatchNormalization)]
    if not found:
        raise ValueError(
            "Expected a base with a BatchNormalization layer. Received: "
            f"{model.name!r} with layers {[type(layer).__name__ for layer in model.layers]}"
        )
    layer = found[0].operation

    def probe(images: Tensor) -> Tensor:
        given = []

        def stop(inputs: Tensor, *args: Any, **kwargs: Any) -> None:
            given.append(inputs)
            raise _Reached

        layer.__dict__["call"] = stop
        try:
            model(images, training=False)
        except _Reached:
            pass
        finally:
            del layer.__dict__["call"]
        return given[0]

    return layer, probe


# Layers that give the numbers they are given, in another shape or the same.
_PASSING = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity)

# By the names of the functions in keras.activations, keras.ops and tf.nn, and of the operations
# behind keras.layers.Softmax and keras.ops.
_PROBABILITIES = {
    "softmax": keras.activations.softmax,
    "softmax_v2": keras.activations.softmax,
    "Softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
    "Sigmoid": keras.activations.sigmoid,
    "hard_sigmoid": keras.activations.sigmoid,  # a probability as well
    "HardSigmoid": keras.activations.sigmoid,
}


def output_activation(calls: Sequence[Call], output: Tensor) -> Callable | None:
    """What turned logits into an output: softmax, sigmoid, another activation, or None.

    Args:
        calls: what `capture_calls` noted of the network that gave the output.
        output: the tensor itself.
    """
    for call in reversed(calls):  # the last come last
        if call.output is not output:
            continue
        activation = getattr(call.operation, "activation", None)
        linear = activation is keras.activations.linear
        if isinstance(call.operation, _PASSING) or (
            linear and isinstance(call.operation, keras.layers.Activation)
        ):
            output = call.inputs[0]
            continue
        for named in (type(call.operation).__name__, getattr(activation, "__name__", "")):
            if named in _PROBABILITIES:
                return _PROBABILITIES[named]
        if activation is not None:
            return activation
    return None
