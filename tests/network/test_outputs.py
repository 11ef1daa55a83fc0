import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.network.outputs import ClassReader, logits_of, output_activation
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
