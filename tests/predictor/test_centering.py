import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.predictor.centering import apply_centered_gradients, center_biases

COORDINATES = np.random.default_rng(0).integers(0, 9, (40, 3)).astype("int32")


@pytest.fixture
def predictor():
    predictor = keras_nern.KernelPredictor(6, num_layers=3)
    predictor.build((None, 3))
    return predictor


def test_a_step_matches_one_of_the_centered_form(predictor):
    """The oracle computes with W^T (x - m) + c and applies its gradients of W and c."""
    for layer in predictor.layers:
        layer.bias.assign(np.linspace(-1, 1, layer.units))
    x = predictor.encoding(COORDINATES).numpy()
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in predictor.layers]
    target = np.random.default_rng(1).normal(size=(40, 9)).astype("float32")

    means, inputs = [], x
    for kernel, bias in weights:
        means.append(inputs.mean(axis=0))
        inputs = np.maximum(inputs @ kernel + bias, 0)
    centered = [
        tf.Variable(bias + mean @ kernel)
        for (kernel, bias), mean in zip(weights, means, strict=True)
    ]
    kernels = [tf.Variable(kernel) for kernel, _ in weights]
    with tf.GradientTape() as tape:
        y = x
        for i, (kernel, offset, mean) in enumerate(zip(kernels, centered, means, strict=True)):
            y = (y - mean) @ kernel + offset
            y = tf.nn.relu(y) if i < 2 else y
        loss = tf.reduce_mean((y - target) ** 2)
    expected = []
    gradients = tape.gradient(loss, [*kernels, *centered])
    for i, mean in enumerate(means):
        kernel = kernels[i] - 0.5 * gradients[i]
        expected += [kernel, centered[i] - 0.5 * gradients[3 + i] - mean @ kernel.numpy()]

    with tf.GradientTape() as tape:
        predicted, seen = predictor.predict_with_means(COORDINATES)
        loss = tf.reduce_mean((predicted - target) ** 2)
    variables = predictor.trainable_variables
    optimizer = keras.optimizers.SGD(0.5)
    apply_centered_gradients(optimizer, tape.gradient(loss, variables), variables, predictor, seen)
    for a, b in zip(expected, variables, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)


def test_no_gradient_flows_through_the_means(predictor):
    with tf.GradientTape() as tape:
        _, means = predictor.predict_with_means(COORDINATES)
        total = tf.add_n([tf.reduce_sum(mean) for mean in means])
    gradients = tape.gradient(total, predictor.trainable_variables)
    assert all(gradient is None or not np.any(gradient) for gradient in gradients)


def test_center_biases_makes_the_mean_before_each_relu_zero(predictor):
    center_biases(predictor, COORDINATES)
    x = predictor.encoding(COORDINATES)
    for layer in predictor.hidden:
        outputs = keras.ops.matmul(x, layer.kernel) + layer.bias
        np.testing.assert_allclose(keras.ops.mean(outputs, axis=0), np.zeros(6), atol=1e-5)
        x = layer(x)


def test_a_new_model_is_centered_on_a_sample_of_its_coordinates(base, monkeypatch):
    monkeypatch.setattr("keras_nern.representation.SAMPLE_SIZE", 20)  # of 52
    nern = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    sample = nern._representation.sample_inputs().numpy()
    assert len(np.unique(sample, axis=0)) == 20
    assert {tuple(row) for row in sample} <= {tuple(row) for row in nern.coordinates()}
    assert len(set(sample[:, 2] % 2)) == len(set(sample[:, 1] % 2)) == 2  # even and odd ones
    other = keras_nern.KernelPredictor(8)
    other.build((None, 3))
    other.set_weights(nern.predictor.get_weights())
    center_biases(other, sample)
    for a, b in zip(nern.predictor.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_is_enabled_for_the_default_optimizer_and_saved(base, tmp_path):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    assert nern.gradient_centering
    nern.compile("adam")
    assert not nern.gradient_centering
    nern.compile("adam", gradient_centering=True)
    nern.save(tmp_path / "nern.keras")
    assert keras.models.load_model(tmp_path / "nern.keras").gradient_centering


def test_fit_moves_a_layers_mean_output_by_the_gradient_of_its_bias_alone(base):
    changes = {}
    for centering in (False, True):
        keras.utils.set_random_seed(1)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.compile(keras.optimizers.SGD(0.5), gradient_centering=centering)
        layer = nern.predictor.hidden[0]
        mean = keras.ops.mean(nern.predictor.encoding(nern.coordinates()), axis=0).numpy()
        before = layer.kernel.numpy(), layer.bias.numpy()
        nern.fit(steps_per_epoch=1, verbose=0)
        bias_change = layer.bias.numpy() - before[1]
        changes[centering] = bias_change, mean @ (layer.kernel.numpy() - before[0]) + bias_change
    gradient_step = changes[False][0]
    np.testing.assert_allclose(changes[True][1], gradient_step, atol=1e-5)
    assert np.abs(changes[False][1] - gradient_step).max() > 1e-5
