"""What a network's layers are given and give, while it runs.

Any Keras model can be listened to: functional, nested or subclassed. While recording, each
layer's `call` is stood in for by one that notes inputs and output, so a map in
the midst of the network is found without its graph: the batch normalisation that follows a
convolution is the one whose input *is* the convolution's output.
"""

import contextlib
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_nern.hints import Tensor
from keras_nern.kernels import walk_layers


class Call(typing.NamedTuple):
    """One call of a layer or operation: what it was given, flat, and what it gave."""

    operation: keras.Operation
    inputs: list
    output: Tensor


@contextlib.contextmanager
def recorded_calls(model: keras.Model) -> Iterator[list[Call]]:
    """Notes the calls of all layers and operations in a model.

    Args:
        model: a built `keras.Model`.

    Yields:
        A list to which each `Call` is added when it is done, the innermost first.

    Example:

    >>> with recorded_calls(model) as calls:
    ...     outputs = model(images)
    >>> maps = [call.output for call in calls if isinstance(call.operation, keras.layers.ReLU)]
    """
    calls, wrapped = [], []

    def listen(operation: keras.Operation) -> None:
        call = operation.call

        def listening(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            calls.append(Call(operation, keras.tree.flatten((args, kwargs)), output))
            return output

        operation.__dict__["call"] = listening  # an attribute that Keras need not track
        wrapped.append(operation)

    try:
        for operation in all_operations(model):
            listen(operation)
        yield calls
    finally:
        for operation in wrapped:
            del operation.__dict__["call"]


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
        calls: what `recorded_calls` noted.

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
    with recorded_calls(model) as calls:
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


def output_activation(calls: Sequence[Call], output: Tensor) -> Callable | None:
    """What turned logits into an output: softmax, sigmoid, another activation, or None.

    Args:
        calls: what `recorded_calls` noted of the network that gave the output.
        output: the tensor itself.
    """
    # keras.layers.Softmax, and the operations behind keras.ops.softmax and sigmoid
    by_class = {"Softmax": keras.activations.softmax, "Sigmoid": keras.activations.sigmoid}
    for call in reversed(calls):  # the last come last
        if call.output is not output:
            continue
        if isinstance(call.operation, _PASSING):
            output = call.inputs[0]
            continue
        known = by_class.get(type(call.operation).__name__)
        known = known or getattr(call.operation, "activation", None)
        if known is keras.activations.hard_sigmoid:  # a probability as well
            return keras.activations.sigmoid
        if known is not None:
            return known
    return None
