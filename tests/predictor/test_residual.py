import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.predictor.residual import Residual, exponents_of, step_sizes_of

SHAPES = [(1, 3, 2), (2, 2, 1)]


@pytest.fixture
def residual():
    residual = Residual(SHAPES)
    residual.build()
    return residual


def test_a_residual_is_step_sizes_times_integers(residual):
    integers = [np.arange(6).reshape(1, 3, 2) - 2, np.array([[[7], [-7]], [[0], [127]]])]
    exponents = [np.array([[[-8, 0]]]), np.array([[[4]], [[-4]]])]
    residual.assign(integers, exponents)
    np.testing.assert_array_equal(residual.values(0), [[[-2 / 4, -1], [0 / 4, 1], [2 / 4, 3]]])
    np.testing.assert_array_equal(residual.values(1), [[[14], [-14]], [[0], [63.5]]])
    for found, expected in zip(residual.integers(), integers, strict=True):
        assert found.dtype == "int8"
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(residual.exponents(), exponents, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_floats_are_rounded_and_their_gradient_is_that_of_the_identity(residual):
    residual.step_sizes[0].assign([[[0.5, 2.0]]])
    residual.levels[0].assign([[[0.4, 0.6], [-1.4, -1.6], [200.0, -200.0]]])
    with tf.GradientTape() as tape:
        values = residual.values(0)
        loss = keras.ops.sum(values * np.arange(6).reshape(1, 3, 2))
    np.testing.assert_array_equal(values, [[[0, 2], [-0.5, -4], [63.5, -254]]])
    gradient = tape.gradient(loss, residual.levels[0].value)
    np.testing.assert_array_equal(gradient, [[[0, 2], [1, 6], [2, 10]]])


def test_a_vector_changes_by_a_fiftieth_of_its_variable():
    residual = Residual(SHAPES, [3, 2])
    residual.build()
    residual.vectors[1].assign([1.0, -2.0])
    np.testing.assert_array_equal(residual.changes()[0], [0, 0, 0])
    np.testing.assert_allclose(residual.changes()[1], [0.02, -0.04])


@pytest.mark.parametrize("mean", [0.05, 0.5, 3.0])
def test_the_bits_are_those_of_a_geometric_distribution_with_signs(mean):
    q = np.arange(0, 2000)
    p = (mean / (1 + mean)) ** q / (1 + mean)  # of |q|
    entropy = -np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p))) + (1 - p[0])
    residual = Residual([(1, 1000, 1)])
    residual.build()
    values = np.zeros(1000)
    values[: round(1000 * mean / math.ceil(mean))] = math.ceil(mean)  # integers of that mean
    residual.assign([values.reshape(1, 1000, 1)], [np.zeros((1, 1, 1))])
    assert float(residual.bits()) == pytest.approx(1000 * entropy, rel=1e-4)


def test_the_loss_of_the_bits_pulls_integers_towards_zero(residual):
    integers = [np.array([[[3, -2], [0, 1], [5, 0]]]), np.zeros((2, 2, 1))]
    residual.assign(integers, [np.zeros((1, 1, 2)), np.zeros((2, 1, 1))])
    residual.rate_weight.assign(0.25)
    with tf.GradientTape() as tape:
        loss = residual.rate_loss()
    assert float(loss) == pytest.approx(0.25 * float(residual.bits()))
    gradient = tape.gradient(loss, residual.levels[0].value).numpy()
    np.testing.assert_array_equal(np.sign(gradient), [[[1, -1], [0, 1], [1, 0]]])


def test_the_rounding_loss_pulls_floats_to_their_integers(residual):
    curvature = np.arange(1.0, 7).reshape(1, 3, 2)
    residual.curvature[0].assign(curvature)
    residual.step_sizes[0].assign([[[0.5, 2.0]]])
    levels = np.array([[[0.4, 0.6], [-1.4, -1.6], [128.0, 3.0]]])
    residual.levels[0].assign(levels)
    distances = levels - [[[0, 1], [-1, -2], [127, 3]]]
    costs = curvature * np.array([0.25, 4.0]) * distances
    with tf.GradientTape() as tape:
        loss = residual.rounding_loss()
    assert float(loss) == pytest.approx(0.5 * np.sum(costs * distances), rel=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, residual.levels[0].value), costs, rtol=1e-5)


def test_the_bits_of_a_layer_are_the_entropy_of_integers_and_step_sizes(residual):
    integers = [np.array([[[1, 1], [1, -1], [-1, -1]]]), np.array([[[0], [0]], [[0], [4]]])]
    residual.assign(integers, [np.array([[[0, 1]]]), np.array([[[0]], [[0]]])])
    quarter = -(3 * math.log2(3 / 4) + math.log2(1 / 4))
    assert residual.layer_bits() == pytest.approx([6 + 2, quarter])


def test_step_sizes_are_quarters_of_an_octave():
    exponents = exponents_of(np.array([1.0, 1.05, 1.15, 2.0, 1e-9, 1e9]))
    np.testing.assert_array_equal(exponents, [0, 0, 1, 4, -56, 60])
    np.testing.assert_array_equal(exponents_of(np.array([1.0, 1.05, 0.0]), np.ceil), [0, 1, -56])
    steps = step_sizes_of(np.array([0, 1, 4, -8]))
    np.testing.assert_array_equal(steps, [1, np.float16(2**0.25), 2, 0.25])


def test_a_residual_is_built_from_its_config(residual):
    copy = Residual.from_config(residual.get_config())
    copy.build()
    assert [tuple(one.shape) for one in copy.weights] == [
        tuple(one.shape) for one in residual.weights
    ]
    assert len(copy.trainable_weights) == 2
