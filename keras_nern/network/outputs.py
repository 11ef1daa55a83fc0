"""Interpretation of a classifier's outputs as logits, probabilities and predicted classes."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_nern.network.kernels import CONVOLUTIONS
from keras_nern.network.recording import Call, capture_calls
from keras_nern.utils.types import Tensor

# Values of the argument `output_activation`; "auto" infers it from the layers and the outputs.
OUTPUT_ACTIVATIONS = ("auto", "linear", "sigmoid", "softmax")

# Largest difference from 1 of the sum of probabilities, and in 16 bits.
SUM_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 3e-2

SMALLEST_PROBABILITY = 1e-12  # replaces smaller probabilities before the logarithm

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
    while True:
        # Inner calls precede outer calls, so the first match is the layer that computed the output.
        call = next((one for one in calls if one.output is output), None)
        if call is None:
            return None
        operation = call.operation
        activation = getattr(operation, "activation", None) if _is_of_keras(operation) else None
        linear = activation is keras.activations.linear
        if isinstance(operation, _PASSING) or (
            linear and isinstance(operation, keras.layers.Activation)
        ):
            if output is call.inputs[0]:
                return None
            output = call.inputs[0]
            continue
        for name in (type(operation).__name__, getattr(activation, "__name__", "")):
            if name in _PROBABILITIES:
                _check_axis(operation, output)
                return _PROBABILITIES[name]
        return activation


def verified_activation(calls: Sequence[Call], output: Tensor) -> Callable | None:
    """Infers the activation of an output from the layers and from the output's values.

    A custom layer may apply a softmax in its `call`, where `output_activation` does not find it.
    Its attribute `activation` may be applied to something other than its output. The values decide
    in these cases: nonnegative outputs that sum to 1 over the classes are a softmax, and an
    attribute that is a sigmoid is accepted if all outputs lie in [0, 1].

    Args:
        calls: calls from `recording.capture_calls` of the network, in eager execution.
        output: an output of the network for random inputs.

    Returns:
        An activation function or `None`, as `output_activation`.

    Raises:
        ValueError: if the output does not have a floating-point dtype, or if its softmax is not
            over the last axis.
    """
    dtype = keras.backend.standardize_dtype(output.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "base must return logits or probabilities, floating-point numbers. "
            f"Received: outputs of dtype {dtype}"
        )
    softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
    activation = output_activation(calls, output)
    values = np.asarray(ops.convert_to_numpy(ops.cast(output, "float32")), "float64")
    if not np.isfinite(values).all() or values.ndim < 2:
        return activation
    in_range = ((values >= 0) & (values <= 1 + SUM_TOLERANCE)).all()
    named = [getattr(c.operation, "activation", None) for c in calls if c.output is output]
    if sigmoid in (activation, *named) and in_range:
        return sigmoid
    if activation in (softmax, sigmoid) and not in_range:
        return None
    tolerance = ROUNDED_TOLERANCE if dtype in ("float16", "bfloat16") else SUM_TOLERANCE
    summed = [
        axis
        for axis in range(1, values.ndim)
        if in_range and np.abs(values.sum(axis=axis) - 1).max() < tolerance
    ]
    if values.ndim - 1 in summed and (values.shape[-1] > 1 or activation is softmax):
        return softmax
    if activation is softmax or any(values.shape[axis] > 1 for axis in summed):
        raise ValueError(
            "base must have its classes on the last axis of its outputs, or output_activation "
            f"must be given. Received: outputs of shape {tuple(output.shape)}, which are a softmax "
            + (f"over axis {summed[0]}" if summed else "but do not sum to 1 over the last axis")
        )
    return activation


def _is_of_keras(operation: keras.Operation) -> bool:
    """Whether an operation's `activation` is known to be applied to its output."""
    with_activation = (keras.layers.Dense, keras.layers.Activation, *CONVOLUTIONS)
    return isinstance(operation, with_activation) or type(operation).__module__.startswith("keras.")


def _check_axis(operation: keras.Operation, output: Tensor) -> None:
    axis = getattr(operation, "axis", -1)
    if axis not in (None, -1, len(output.shape) - 1):
        raise ValueError(
            "base must have its classes on the last axis of its outputs. Received: the softmax "
            f"{operation.name!r} over axis {axis} of {len(output.shape)}"
        )


def logits_of(outputs: Tensor, activation: Callable | None) -> Tensor:
    """Converts a classifier's outputs to logits.

    Args:
        outputs: tensor `(batch, ..., classes)`, or `(batch, ..., 1)` for two classes.
        activation: activation of the outputs. `keras.activations.softmax` and `sigmoid` are
            inverted; outputs of any other activation are taken as logits.

    Returns:
        float32 tensor `(batch, ..., classes)` of at least two classes, whose softmax is the
        classifier's distribution. For several sigmoid outputs, which are independent of each
        other, the shape is `(batch, ..., classes, 2)`.
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
        ValueError: if the model does not have one output of such a shape.

    Example:

    >>> reader = ClassReader(base, images[:1])
    >>> classes = reader(base.predict(images, verbose=0))  # int array (n,)
    """

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        with capture_calls(model) as calls, keras.StatelessScope():
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
        if outputs.shape[1] == 1:  # several outputs have the same argmax as their logits
            outputs = logits_of(outputs, self._activation)
        return ops.convert_to_numpy(ops.argmax(outputs, axis=1))
