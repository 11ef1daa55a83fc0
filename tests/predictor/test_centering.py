import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.predictor.centering import apply_centered_gradients, centre


def _predictor(blocks=3, hidden_size=6):
    predictor = keras_nern.KernelPredictor(hidden_size, num_layers=blocks)
    predictor.build((None, 3))
    return predictor


COORDINATES = np.random.default_rng(0).integers(0, 9, (40, 3)).astype("int32")


def test_a_step_is_that_of_the_centred_form():
    """Against two layers written as W^T (x - m) + c, with c and W stepped by hand."""
    predictor = _predictor()
    for layer in predictor.layers:
        layer.bias.assign(np.linspace(-1, 1, layer.units))
    x = predictor.encoding(COORDINATES).numpy()
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in predictor.layers]
    target = np.random.default_rng(1).normal(size=(40, 9)).astype("float32")

    means, inputs = [], x
    for kernel, bias in weights:
        means.append(inputs.mean(axis=0))
        inputs = np.maximum(inputs @ kernel + bias, 0)
    centred = [
        tf.Variable(bias + mean @ kernel)
        for (kernel, bias), mean in zip(weights, means, strict=True)
    ]
    kernels = [tf.Variable(kernel) for kernel, _ in weights]
    with tf.GradientTape() as tape:
        y = x
        for i, (kernel, offset, mean) in enumerate(zip(kernels, centred, means, strict=True)):
            y = (y - mean) @ kernel + offset
            y = tf.nn.relu(y) if i < 2 else y
        loss = tf.reduce_mean((y - target) ** 2)
    expected = []
    slopes = tape.gradient(loss, [*kernels, *centred])
    for i, mean in enumerate(means):
        kernel = kernels[i] - 0.5 * slopes[i]
        expected += [kernel, centred[i] - 0.5 * slopes[3 + i] - mean @ kernel.numpy()]

    with tf.GradientTape() as tape:
        predicted, seen = predictor.predict_with_means(COORDINATES)
        loss = tf.reduce_mean((predicted - target) ** 2)
    variables = predictor.trainable_variables
    optimizer = keras.optimizers.SGD(0.5)
    apply_centered_gradients(optimizer, tape.gradient(loss, variables), variables, predictor, seen)
    for a, b in zip(expected, variables, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)


def test_no_gradient_goes_through_the_means():
    predictor = _predictor()
    with tf.GradientTape() as tape:
        _, means = predictor.predict_with_means(COORDINATES)
        total = tf.add_n([tf.reduce_sum(mean) for mean in means])
    assert all(
        g is None or not np.any(g) for g in tape.gradient(total, predictor.trainable_variables)
    )


def test_a_new_representation_starts_centred(base):
    nern = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    x = nern.predictor.encoding(nern.coordinates())
    for layer in nern.predictor.hidden:
        before = keras.ops.matmul(x, layer.kernel) + layer.bias
        np.testing.assert_allclose(keras.ops.mean(before, axis=0), np.zeros(8), atol=1e-5)
        x = layer(x)


def test_of_many_coordinates_some_are_enough(base, monkeypatch):
    monkeypatch.setattr("keras_nern.model.SAMPLE", 20)  # of 52
    nern = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    some = nern._some_coordinates().numpy()
    assert len(np.unique(some, axis=0)) == 20
    assert {tuple(row) for row in some} <= {tuple(row) for row in nern.coordinates()}
    assert len(set(some[:, 2] % 2)) == len(set(some[:, 1] % 2)) == 2  # odd and even ones
    other = _predictor(5, hidden_size=8)
    other.set_weights(nern.predictor.get_weights())
    centre(other, some)
    for a, b in zip(nern.predictor.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_is_the_default_optimizers_and_can_be_chosen(base, images, tmp_path):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    assert nern.gradient_centering
    nern.compile("adam")
    assert not nern.gradient_centering
    nern.compile("adam", gradient_centering=True, reconstruction_steps=3)
    nern.fit(images, verbose=0)
    nern.save(tmp_path / "nern.keras")
    assert keras.models.load_model(tmp_path / "nern.keras").gradient_centering


@pytest.mark.parametrize("gradient_centering", [False, True])
def test_the_mean_of_a_layers_outputs_follows_its_bias_alone(base, gradient_centering):
    """With the bias frozen, a centred step leaves the mean where it is."""
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(keras.optimizers.SGD(0.5), gradient_centering=gradient_centering)
    layer = nern.predictor.hidden[0]
    x = nern.predictor.encoding(nern.coordinates())
    before, kernel = keras.ops.mean(x @ layer.kernel + layer.bias, axis=0), layer.kernel.numpy()
    nern._refresh_targets()
    with tf.GradientTape() as tape:
        terms, _ = nern._reconstruction_terms()
        loss = terms["reconstruction_loss"]
    slope = tape.gradient(loss, layer.bias)
    nern.fit(steps_per_epoch=1, verbose=0)
    assert np.abs(layer.kernel - kernel).max() > 1e-5
    after = keras.ops.mean(x @ layer.kernel + layer.bias, axis=0)
    moved = np.abs(after - (before - 0.5 * slope)).max()
    assert (moved < 1e-5) == gradient_centering
