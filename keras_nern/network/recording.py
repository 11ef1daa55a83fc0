"""Records the inputs and outputs of a network's layers while it runs.

Every Keras model can be recorded: functional, nested or subclassed. Inside the `with` block of
`capture_calls`, the `call` method of each layer is replaced by a function that calls it and records
its inputs and output. Tensors are matched by identity, so the network's graph is not needed: the
batch normalization that follows a convolution is the one whose input *is* the convolution's output.
If Keras casts an input to a layer's precision, the recorded input is the tensor before the cast.

Only the thread that entered the block is recorded. Other threads may call and record the same
layers at the same time.
"""

import collections
import contextlib
import functools
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nern.network.kernels import walk_layers
from keras_nern.utils.types import Tensor


class Call(typing.NamedTuple):
    """One call of a layer or operation.

    Attributes:
        operation: the layer or operation.
        inputs: flat list of its arguments.
        output: what it returned.
        in_loop: whether it ran in the body of a loop or of a branch. Its tensors are not defined
            outside of that body.
    """

    operation: keras.Operation
    inputs: list
    output: Tensor
    in_loop: bool = False


@contextlib.contextmanager
def capture_calls(model: keras.Model) -> Iterator[list[Call]]:
    """Records the calls of all layers and operations in a model.

    Args:
        model: a built `keras.Model`.

    Yields:
        A list of `Call`. A call is appended when it returns, so inner layers precede outer ones.

    Example:

    >>> with capture_calls(model) as calls:
    ...     outputs = model(images)
    >>> maps = [call.output for call in calls if isinstance(call.operation, keras.layers.ReLU)]
    """
    calls: list[Call] = []
    graph = _graph()
    sources: dict[int, tuple] = {}  # id of a cast copy -> (copy, source); keeps the copy alive

    def record(operation: keras.Operation, call: Callable, *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        flat = keras.tree.flatten((args, kwargs))
        inputs = [sources.get(id(given), (given, given))[1] for given in flat]
        calls.append(Call(operation, inputs, output, _is_in_loop(output, graph)))
        return output

    def note_cast(convert: Callable, given: Any, *args: Any, **kwargs: Any) -> Any:
        converted = convert(given, *args, **kwargs)
        if converted is not given and keras.ops.is_tensor(given):
            sources[id(converted)] = (converted, given)
        return converted

    operations = all_operations(model)
    layers = [one for one in operations if isinstance(one, keras.layers.Layer)]
    policies = {id(layer.dtype_policy): layer.dtype_policy for layer in layers}
    with contextlib.ExitStack() as stack:
        for operation in operations:
            stack.enter_context(_wrapped(operation, "call", functools.partial(record, operation)))
        for layer in layers:  # a quantized layer runs `quantized_call` instead of `call`
            recorder = functools.partial(record, layer)
            stack.enter_context(_wrapped(layer, "quantized_call", recorder))
        for policy in policies.values():
            stack.enter_context(_wrapped(policy, "convert_input", note_cast))
        yield calls


def _is_in_loop(output: Any, graph: tf.Graph | None) -> bool:
    """Whether an output was computed in the body of a loop or of a branch.

    TensorFlow builds these bodies as separate graphs. The exception is `tf.vectorized_map`, which
    traces its function with the index 0 in the name scope `loop_body` (tried on TensorFlow 2.21).
    """
    names = [str(getattr(one, "name", "")) for one in keras.tree.flatten(output)]
    return _graph() is not graph or any(n.count("loop_body") > n.count("pfor") for n in names)


def _graph() -> tf.Graph | None:
    """The graph that is being built; `None` in eager execution."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class _Wrapping:
    """A method of an object and the functions that wrap it, per thread."""

    def __init__(self, owner: Any, name: str) -> None:
        self.method = getattr(owner, name)
        self.own = vars(owner).get(name)  # an attribute of the instance, not of its class
        self.wrappers: dict[int, list[Callable]] = collections.defaultdict(list)

    def function(self) -> Callable:
        """The function that replaces the method."""

        # keeps the method's signature, which Keras shows in errors
        @functools.wraps(self.method)
        def call(*args: Any, **kwargs: Any) -> Any:
            function = self.method
            for wrapper in self.wrappers.get(threading.get_ident(), ()):
                function = functools.partial(wrapper, function)
            return function(*args, **kwargs)

        return call


_WRAPPINGS: dict[tuple[int, str], _Wrapping] = {}  # by object id and method
_LOCK = threading.Lock()  # guards _WRAPPINGS, held only while it is changed


@contextlib.contextmanager
def _wrapped(owner: Any, name: str, wrapper: Callable) -> Iterator[None]:
    """Calls `wrapper(method, *args, **kwargs)` for this thread's calls of `owner.name`.

    The method is replaced by an attribute of the instance, written to `__dict__` so that Keras
    does not track it. Keras has no public hook around a layer's call or its casts. It looks up
    `layer.call`, `layer.quantized_call` and `layer.dtype_policy.convert_input` on the instance at
    every call. Tried on Keras 3.15.
    """
    key, thread = (id(owner), name), threading.get_ident()
    with _LOCK:
        if key not in _WRAPPINGS:
            _WRAPPINGS[key] = _Wrapping(owner, name)
            vars(owner)[name] = _WRAPPINGS[key].function()
        wrapping = _WRAPPINGS[key]
        wrapping.wrappers[thread].append(wrapper)
    try:
        yield
    finally:
        with _LOCK:
            wrapping.wrappers[thread].pop()
            if not wrapping.wrappers[thread]:
                del wrapping.wrappers[thread]
            if not wrapping.wrappers:  # no thread is left
                del _WRAPPINGS[key]
                if wrapping.own is None:
                    del vars(owner)[name]
                else:
                    vars(owner)[name] = wrapping.own


def all_operations(model: keras.Model) -> list[keras.Operation]:
    """Lists all layers of a model and the operations between them (`x + y`, ...).

    The operations in a subclassed model's own code are not Keras objects and are not listed.
    """
    layers = [layer for _, layer in walk_layers(model)]
    found = {id(layer): layer for layer in layers}
    for one in (model, *layers):
        for operation in getattr(one, "operations", ()):
            found.setdefault(id(operation), operation)
    return list(found.values())


def normalizations(calls: Sequence[Call]) -> dict[int, Call]:
    """Finds the batch normalization that follows each output.

    Args:
        calls: calls from `capture_calls`.

    Returns:
        A dict from the id of an output to the first `Call` of a `BatchNormalization` with that
        input.
    """
    found: dict[int, Call] = {}
    for call in calls:
        if isinstance(call.operation, keras.layers.BatchNormalization):
            found.setdefault(id(call.inputs[0]), call)
    return found


def enclosing(call: Call, calls: Sequence[Call]) -> Call | None:
    """Finds the innermost call outside of a loop that contains a call in the loop.

    Args:
        call: the call in the loop, one of `calls`.
        calls: calls from `capture_calls`.

    Returns:
        A `Call` with one output tensor, or `None` if there is none.
    """
    position = next(i for i, one in enumerate(calls) if one is call)
    for one in calls[position + 1 :]:  # a call returns after the calls within it
        if not one.in_loop and hasattr(one.output, "shape") and _contains(one.operation, call):
            return one
    return None


def _contains(operation: keras.Operation, call: Call) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return False
    return any(layer is call.operation for _, layer in walk_layers(operation))


class _Reached(Exception):
    """Stops a network at the layer whose input a probe reads."""


def first_normalization(
    model: keras.Model, images: Tensor
) -> tuple[keras.layers.Layer, Callable[[Tensor], Tensor]]:
    """Finds the first batch normalization of a network.

    Args:
        model: a built `keras.Model`.
        images: a batch of inputs of the model.

    Returns:
        `(layer, probe)`: the layer, and a function from images to the layer's input, which runs
        the network up to this layer.

    Raises:
        ValueError: if the network has no batch normalization.
    """
    with capture_calls(model) as calls, keras.StatelessScope():
        model(images, training=False)
    found = [call for call in calls if isinstance(call.operation, keras.layers.BatchNormalization)]
    if not found:
        raise ValueError(
            "Expected a base with a BatchNormalization layer. Received: "
            f"{model.name!r} with layers {[type(layer).__name__ for layer in model.layers]}"
        )
    layer = found[0].operation

    def probe(images: Tensor) -> Tensor:
        reached = []

        def stop(call: Callable, inputs: Tensor, *args: Any, **kwargs: Any) -> None:
            reached.append(inputs)
            raise _Reached

        scope = keras.StatelessScope()  # discards what layers assign
        with contextlib.suppress(_Reached), _wrapped(layer, "call", stop), scope:
            model(images, training=False)
        return reached[0]

    return layer, probe
