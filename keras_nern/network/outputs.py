"""Meaning of a classifier's outputs: logits or probabilities, and the classes they stand for."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_nern.network.recording import Call, capture_calls
from keras_nern.utils.types import Tensor

# Values of the argument `output_activation`; "auto" infers it from the layers.
OUTPUT_ACTIVATIONS = ("auto", "linear", "sigmoid", "softmax")

SMALLEST_PROBABILITY = 1e-12  # smaller ones are raised to it before the logarithm

# Layers whose output has the values of their input, possibly in another shape.
_PASSING = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity)

# By name: functions of keras.activations, keras.ops and tf.nn, and the operation classes of
# keras.layers.Softmax and keras.ops, which Keras does not export. Tried on Keras 3.15.
_PROBABILITIES = {
    "softmax": keras.activations.softmax,
    "softmax_v2": keras.activations.softmax,
    "Softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
    "Sigmoid": keras.activations.sigmoid,
    "hard_sigmoid": keras.activations.sigmoid,  # its values are probabilities as well
    "HardSigmoid": keras.activations.sigmoid,
}


def output_activation(calls: Sequence[Call], output: Tensor) -> Callable | None:
    """Infers the activation that turned logits into an output.

    Args:
        calls: calls from `recording.capture_calls` of the network.
        output: the output tensor of the network.

    Returns:
        `keras.activations.softmax` or `sigmoid` if the output is a probability, another
        activation function of the last layer, or `None` if there is none.
    """
    for call in reversed(calls):
        if call.output is not output:
            continue
        activation = getattr(call.operation, "activation", None)
        linear = activation is keras.activations.linear
        if isinstance(call.operation, _PASSING) or (
            linear and isinstance(call.operation, keras.layers.Activation)
        ):
            output = call.inputs[0]
            continue
        for name in (type(call.operation).__name__, getattr(activation, "__name__", "")):
            if name in _PROBABILITIES:
                return _PROBABILITIES[name]
        if activation is not None:
            return activation
    return None


def logits_of(outputs: Tensor, activation: Callable | None) -> Tensor:
    """Converts a classifier's outputs to logits.

    Args:
        outputs: tensor `(batch, ..., classes)`, or `(batch, ..., 1)` for two classes.
        activation: activation of the outputs. `keras.activations.softmax` and `sigmoid` are
            inverted; outputs of any other activation are taken as logits.

    Returns:
        float32 tensor `(batch, ..., classes)` of at least two classes, whose softmax is the
        classifier's distribution. Several sigmoid outputs are independent of each other and give
        `(batch, ..., classes, 2)`.
    """
    outputs = ops.cast(outputs, "float32")
    if activation is keras.activations.softmax and outputs.shape[-1] > 1:
        return _log(outputs)
    if activation is keras.activations.sigmoid:
        pair = ops.stack([_log(1.0 - outputs), _log(outputs)], axis=-1)  # (batch, ..., classes, 2)
        return pair[..., 0, :] if outputs.shape[-1] == 1 else pair
    if outputs.shape[-1] == 1:
        return ops.concatenate([ops.zeros_like(outputs), outputs], axis=-1)
    return outputs


def _log(probability: Tensor) -> Tensor:
    return ops.log(ops.maximum(probability, SMALLEST_PROBABILITY))


class ClassReader:
    """Reads the predicted classes from a classifier's outputs.

    Args:
        model: a built `keras.Model` with one output `(batch, classes)`, or `(batch, 1)` for two
            classes.
        inputs: a batch of inputs of the model.

    Attributes:
        num_classes: number of classes, at least 2.

    Raises:
        ValueError: if the model has other outputs.

    Example:

    >>> reader = ClassReader(base, images[:1])
    >>> classes = reader(base.predict(images, verbose=0))  # int array (n,)
    """

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        with capture_calls(model) as calls:
            outputs = model(inputs, training=False)
        if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
            shapes = [tuple(one.shape) for one in keras.tree.flatten(outputs)]
            raise ValueError(
                f"Expected a classifier with one output (batch, classes). Received: {model.name!r} "
                f"with outputs of shapes {shapes}"
            )
        self._activation = output_activation(calls, outputs)
        self.num_classes = max(2, outputs.shape[1])

    def __call__(self, outputs: Tensor) -> np.ndarray:
        """The classes of outputs `(n, classes)`: int array `(n,)`."""
        if outputs.shape[1] == 1:  # several outputs have the order of their logits
            outputs = logits_of(outputs, self._activation)
        return ops.convert_to_numpy(ops.argmax(outputs, axis=1))
