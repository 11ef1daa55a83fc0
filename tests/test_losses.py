import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern import losses

RNG = np.random.default_rng(0)


def test_reconstruction_matches_the_formula():
    original, predicted = RNG.normal(size=(2, 7, 9)).astype("float32")
    mask = (RNG.random((7, 9)) < 0.5).astype("float32")
    squares = [
        (original[i, j] - predicted[i, j]) ** 2 for i in range(7) for j in range(9) if mask[i, j]
    ]
    expected = math.sqrt(sum(squares) / len(squares))
    got = losses.reconstruction_loss(original, predicted, mask)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_reconstruction_gradient_is_zero_at_a_perfect_fit():
    weights = tf.ones((2, 9))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = losses.reconstruction_loss(tf.ones((2, 9)), weights, tf.ones((2, 9)))
    np.testing.assert_array_equal(tape.gradient(loss, weights), np.zeros((2, 9)))


def test_relative_error_by_hand():
    original = np.array([[3.0, 4.0]])
    mask = np.ones((1, 2))
    assert float(losses.relative_error(original, 0 * original, mask)) == 1
    # (0, 1) has the error (3, 3): 18 / 25; without the masked second entry: 9 / 9
    assert float(losses.relative_error(original, [[0.0, 1.0]], mask)) == pytest.approx(18 / 25)
    half = np.array([[1.0, 0.0]])
    assert float(losses.relative_error(original, [[0.0, 1.0]], half)) == pytest.approx(1)


def _softmax(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_distillation_matches_the_formula(temperature):
    teacher, student = RNG.normal(size=(2, 5, 3))
    total = 0.0
    for z, z_hat in zip(teacher, student, strict=True):
        p, q = _softmax(z / temperature), _softmax(z_hat / temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    got = losses.logits_distillation_loss(teacher, student, temperature)
    assert float(got) == pytest.approx(total / 5 * temperature**2, rel=1e-4)


def test_logits_distillation_is_finite_for_extreme_logits():
    got = losses.logits_distillation_loss([[1e4, -1e4]], [[1e4, -1e4]])
    assert float(got) == 0


def test_feature_maps_match_the_formula():
    teacher = [RNG.normal(size=(4, 3, 3, 2)), RNG.normal(size=(4, 5))]
    student = [RNG.normal(size=(4, 3, 3, 2)), RNG.normal(size=(4, 5))]
    total = 0.0
    for a, a_hat in zip(teacher, student, strict=True):
        for image in range(4):
            u, v = a[image].ravel(), a_hat[image].ravel()
            total += np.sum((u / np.sqrt(u @ u) - v / np.sqrt(v @ v)) ** 2) / 4
    got = losses.feature_map_distillation_loss(teacher, student)
    assert float(got) == pytest.approx(total, rel=1e-5)


def test_feature_map_loss_ignores_scale_and_is_finite_for_zeros():
    maps = [RNG.normal(size=(2, 3, 3, 1)).astype("float32")]
    scaled = [7 * maps[0]]
    assert float(losses.feature_map_distillation_loss(maps, scaled)) == pytest.approx(0, abs=1e-6)
    # a dead map is at distance |u|^2 = 1 from any other
    assert float(losses.feature_map_distillation_loss(maps, [0 * maps[0]])) == pytest.approx(1)
    zeros = tf.zeros((1, 4))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        loss = losses.feature_map_distillation_loss([tf.ones((1, 4))], [zeros])
    assert np.isfinite(tape.gradient(loss, zeros)).all()


def test_feature_map_loss_of_no_maps_is_zero():
    assert float(losses.feature_map_distillation_loss([], [])) == 0


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_computes_in_float32(low):
    outputs = keras.ops.cast(RNG.normal(size=(3, 4)), low)
    assert losses.logits_distillation_loss(outputs, outputs).dtype == "float32"
    assert losses.feature_map_distillation_loss([outputs], [outputs]).dtype == "float32"


def test_layer_outputs_sum_over_layers_with_moments():
    kernel = np.ones((1, 1, 1, 1), "float32")
    moments, scale = np.ones((1, 1, 1), "float32"), np.ones(1, "float32")
    one = losses.layer_output_loss([kernel], [0 * kernel], [moments], [scale])
    assert float(one) == 1
    two = losses.layer_output_loss(
        [kernel] * 3, [0 * kernel] * 3, [moments, None, moments], [scale] * 3
    )
    assert float(two) == 2
