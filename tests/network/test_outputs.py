import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.network.outputs import (
    ClassReader,
    logits_of,
    output_activation,
    verified_activation,
)
from keras_nern.network.recording import capture_calls

RNG = np.random.default_rng(0)
LINEAR = keras.activations.linear
SOFTMAX, SIGMOID = keras.activations.softmax, keras.activations.sigmoid
DENSE = keras.layers.Dense


def _headed(*head):
    layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    return keras.Sequential([*layers, *head])


def _functional_head(operation):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
    return keras.Model(inputs, operation(DENSE(2)(x)))


def _quantized(model):
    model.layers[-1].quantize("int8")
    return model


HEADS = {
    "logits": (lambda: _headed(DENSE(2)), LINEAR),
    "softmax": (lambda: _headed(DENSE(2, "softmax")), SOFTMAX),
    "layer": (lambda: _headed(DENSE(2), keras.layers.Softmax()), SOFTMAX),
    "activation": (lambda: _headed(DENSE(2), keras.layers.Activation("sigmoid")), SIGMOID),
    "operation": (lambda: _functional_head(keras.ops.softmax), SOFTMAX),
    "sigmoid operation": (lambda: _functional_head(keras.ops.sigmoid), SIGMOID),
    "reshaped": (
        lambda: _headed(
            DENSE(1, "sigmoid"),
            keras.layers.Reshape((1, 1)),
            keras.layers.Identity(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
        ),
        SIGMOID,
    ),
    "hard sigmoid": (lambda: _headed(DENSE(1, "hard_sigmoid")), SIGMOID),
    "hard sigmoid operation": (lambda: _functional_head(keras.ops.hard_sigmoid), SIGMOID),
    "function of ops": (lambda: _headed(DENSE(2, keras.ops.softmax)), SOFTMAX),
    "function of tf.nn": (lambda: _headed(DENSE(2, tf.nn.softmax)), SOFTMAX),
    "linear after it": (
        lambda: _headed(DENSE(2, "sigmoid"), keras.layers.Activation("linear")),
        SIGMOID,
    ),
    "another activation": (lambda: _headed(DENSE(2, "relu")), keras.activations.relu),
    "of float16, cast": (
        lambda: _headed(
            DENSE(2, "softmax", dtype="mixed_float16"),
            keras.layers.Activation("linear", dtype="float32"),
            keras.layers.Reshape((1, 2), dtype="float16"),
        ),
        SOFTMAX,
    ),
    "quantized": (lambda: _quantized(_headed(DENSE(2, "softmax"))), SOFTMAX),
    "nested": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), _headed(DENSE(1, "sigmoid"))]),
        SIGMOID,
    ),
}


@pytest.mark.parametrize(("make", "activation"), HEADS.values(), ids=HEADS)
def test_infers_the_activation_of_the_outputs(make, activation):
    model = make()
    with capture_calls(model) as calls:
        outputs = model(np.ones((1, 4, 4, 1), "float32"))
    found = output_activation(calls, outputs)
    assert (found or LINEAR) is activation


def test_logits_of_every_kind_of_output():
    softmax, sigmoid = keras.ops.softmax, keras.ops.sigmoid
    z = RNG.normal(size=(6, 4)).astype("float32")
    np.testing.assert_array_equal(logits_of(z, None), z)
    np.testing.assert_allclose(softmax(logits_of(softmax(z), SOFTMAX)), softmax(z), rtol=1e-5)
    one = z[:, :1]
    expected = np.concatenate([1 - sigmoid(one), sigmoid(one)], axis=1)
    for outputs, activation in ((one, None), (sigmoid(one), SIGMOID)):
        np.testing.assert_allclose(softmax(logits_of(outputs, activation)), expected, rtol=1e-5)
    per_pixel = keras.ops.reshape(sigmoid(z), (2, 3, 4, 1))
    pair = softmax(logits_of(per_pixel, SIGMOID))
    assert pair.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(pair[..., 1:], per_pixel, rtol=1e-5)
    several = logits_of(sigmoid(z), SIGMOID)
    assert several.shape == (6, 4, 2)
    np.testing.assert_allclose(softmax(several)[..., 1], sigmoid(z), rtol=1e-5)


CLASSES = {
    # the output layer, outputs, and their classes
    "logits": (lambda: DENSE(3), [[0.0, 2.0, 1.0], [0.5, -1.0, 0.0]], [1, 0]),
    "softmax": (lambda: DENSE(2, "softmax"), [[0.4, 0.6], [0.9, 0.1]], [1, 0]),
    "a sigmoid": (lambda: DENSE(1, "sigmoid"), [[0.6], [0.4]], [1, 0]),
    "a logit": (lambda: DENSE(1), [[0.4], [-0.1]], [1, 0]),
}


@pytest.mark.parametrize(("make", "outputs", "classes"), CLASSES.values(), ids=CLASSES)
def test_reads_classes_from_outputs(make, outputs, classes):
    reader = ClassReader(_headed(make()), np.zeros((1, 4, 4, 1)))
    assert reader(np.array(outputs)).tolist() == classes
    assert reader.num_classes == max(2, len(outputs[0]))


def test_raises_for_outputs_of_another_shape():
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"one output \(batch, classes\).*\[\(1, 2, 2, 2\)\]"):
        ClassReader(model, np.zeros((1, 4, 4, 1)))


class Head(keras.layers.Layer):
    """A head that applies a function in its call, with an attribute `activation` of its own."""

    def __init__(self, function, activation=None):
        super().__init__()
        self.function, self.activation = function, activation

    def call(self, x):
        return self.function(x)


class Scaled(keras.layers.Dense):
    """A Dense layer that does more than its activation."""

    def call(self, x):
        return 5.0 * super().call(x) - 1.0


def _verified(model):
    images = RNG.uniform(size=(3, 4, 4, 1)).astype("float32")
    with capture_calls(model) as calls:
        outputs = model(images)
    return verified_activation(calls, outputs)


def _square(x, axis):
    """A softmax over one of the axes of `(batch, 4, 2)`."""
    return keras.ops.softmax(keras.ops.reshape(x, (-1, 4, 2)), axis=axis)


VERIFIED = {
    "logits of a head": (lambda: _headed(Head(lambda x: 3 * x, keras.activations.relu)), LINEAR),
    "a softmax in a call": (lambda: _headed(Head(keras.ops.softmax)), SOFTMAX),
    "a softmax in a call beside an attribute": (
        lambda: _headed(Head(keras.ops.softmax, keras.activations.relu)),
        SOFTMAX,
    ),
    "probabilities divided by their sum": (
        lambda: _headed(Head(lambda x: x**2 / keras.ops.sum(x**2, axis=-1, keepdims=True))),
        SOFTMAX,
    ),
    "the mean of two softmaxes": (
        lambda: _functional_head(
            lambda x: keras.layers.Average()([keras.ops.softmax(x), keras.ops.softmax(2 * x)])
        ),
        SOFTMAX,
    ),
    "a softmax in float16": (lambda: _headed(Head(keras.ops.softmax), _cast("float16")), SOFTMAX),
    "a sigmoid of a head": (lambda: _headed(Head(keras.ops.sigmoid, SIGMOID)), SIGMOID),
    "logits beside a sigmoid": (lambda: _headed(Head(lambda x: 9 * x, SIGMOID)), LINEAR),
    "logits of a Dense layer with a softmax": (lambda: _headed(Scaled(3, "softmax")), LINEAR),
    "logits of a Dense layer with a sigmoid": (lambda: _headed(Scaled(3, "sigmoid")), LINEAR),
    "a softmax of pixels": (
        lambda: keras.Sequential(
            [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3, activation="softmax")]
        ),
        SOFTMAX,
    ),
}


def _cast(dtype):
    return keras.layers.Activation("linear", dtype=dtype)


@pytest.mark.parametrize(("make", "activation"), VERIFIED.values(), ids=VERIFIED)
def test_values_decide_on_the_activation(make, activation):
    found = _verified(make())
    assert found is activation or (activation is LINEAR and found not in (SOFTMAX, SIGMOID))


REFUSED = {
    "classes": (
        lambda: _headed(Head(lambda x: keras.ops.argmax(x, axis=-1))),
        "logits or probabilities, floating-point numbers. Received: outputs of dtype int",
    ),
    "decisions": (lambda: _headed(Head(lambda x: x > 0)), "Received: outputs of dtype bool"),
    "a layer over another axis": (
        lambda: _headed(keras.layers.Reshape((4, 2)), keras.layers.Softmax(axis=1)),
        "classes on the last axis of its outputs. Received: the softmax 'softmax.*' over axis 1",
    ),
    "a softmax over another axis in a call": (
        lambda: _headed(Head(lambda x: _square(x, 1))),
        r"outputs of shape \(3, 4, 2\), which are a softmax over axis 1",
    ),
    "a flattened softmax": (
        lambda: _headed(
            keras.layers.Reshape((4, 2)), keras.layers.Softmax(), keras.layers.Flatten()
        ),
        "are a softmax but do not sum to 1 over the last axis",
    ),
    "a softmax of a recurrent layer": (
        lambda: _headed(keras.layers.Reshape((4, 2)), keras.layers.LSTM(3, activation="softmax")),
        "or output_activation must be given. .*do not sum to 1",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_raises_for_outputs_that_cannot_be_read(make, message):
    with pytest.raises(ValueError, match=message):
        _verified(make())


class Counting(keras.layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


def test_reading_classes_changes_no_variable():
    layer = Counting()
    model = _headed(layer, DENSE(2))
    before = float(layer.count)
    ClassReader(model, np.zeros((1, 4, 4, 1)))
    assert float(layer.count) == before
