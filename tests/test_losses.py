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


def test_weights_multiply_the_losses_of_images():
    teacher, student = RNG.normal(size=(2, 3, 4, 5))  # outputs (batch, positions, classes)
    weights = np.array([0.0, 1.0, 2.5])
    for loss in (
        losses.logits_distillation_loss,
        lambda a, b, **kwargs: losses.feature_map_distillation_loss([a], [b], **kwargs),
    ):
        each = [float(loss(teacher[i : i + 1], student[i : i + 1])) for i in range(3)]
        got = float(loss(teacher, student, sample_weight=weights))
        assert got == pytest.approx(np.mean(weights * each), rel=1e-5)


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


def _definite(groups, size):
    rows = RNG.normal(size=(groups, 3 * size, size))
    return (np.swapaxes(rows, 1, 2) @ rows).astype("float32")


# shape of the kernel, and groups
CURVED = {
    "2-D": ((3, 2, 4, 5), 1),
    "in groups": ((3, 2, 4, 6), 3),
    "depthwise": ((3, 3, 4, 2), 4),
    "1-D": ((3, 4, 2), 1),
    "Dense": ((4, 3), 1),
}


@pytest.mark.parametrize(("shape", "groups"), CURVED.values(), ids=CURVED)
def test_curvature_matches_the_formula(shape, groups):
    """Sums over pairs of weights, each at its index of the kernel."""
    depthwise = len(shape) == 4 and shape[2] == groups
    channels = 1 if depthwise else shape[-2]
    patch = math.prod(shape[:-2]) * channels
    filters = shape[-1] if depthwise else shape[-1] // groups
    inputs, outputs = _definite(groups, patch), _definite(groups, filters)
    error = RNG.normal(size=shape).astype("float32")

    def index(group, row, filter_):
        place = np.unravel_index(row // channels, shape[:-2]) if shape[:-2] else ()
        if depthwise:
            return (*place, group, filter_)
        return (*place, row % channels, group * filters + filter_)

    expected, gradient = 0.0, np.zeros(shape)
    for group in range(groups):
        for r, s in np.ndindex(patch, patch):
            for f, g in np.ndindex(filters, filters):
                one, other = index(group, r, f), index(group, s, g)
                entry = float(inputs[group, r, s]) * float(outputs[group, f, g])
                expected += 0.5 * entry * error[one] * error[other]
                gradient[one] += entry * error[other]
    error = tf.constant(error)
    with tf.GradientTape() as tape:
        tape.watch(error)
        got = losses.curvature_cost(error, inputs, outputs, None)
    assert got.dtype == "float32"
    assert float(got) == pytest.approx(expected, rel=1e-4)
    found = tape.gradient(got, error)
    np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-3 * np.abs(gradient).max())


@pytest.mark.parametrize("groups", [1, 2])
def test_curvature_of_channels_and_positions_is_that_of_their_product(groups):
    inputs, outputs, positions = _definite(groups, 3), _definite(groups, 4), _definite(groups, 6)
    error = tf.constant(RNG.normal(size=(2, 3, 3, 4 * groups)).astype("float32"))
    both = np.stack([np.kron(p, a) for p, a in zip(positions, inputs, strict=True)])
    results = []
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(error)
        results.append(losses.curvature_cost(error, inputs, outputs, None, positions))
        results.append(losses.curvature_cost(error, both, outputs))
    np.testing.assert_allclose(*results, rtol=1e-4)
    found, expected = (tape.gradient(one, error) for one in results)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_curvature_of_a_diagonal_and_of_nothing():
    error, diagonal = (RNG.normal(size=(3, 3, 2, 4)).astype("float32") for _ in range(2))
    error = tf.constant(error)
    with tf.GradientTape() as tape:
        tape.watch(error)
        got = losses.curvature_cost(error, None, None, diagonal**2)
    expected = 0.5 * np.sum(diagonal**2 * np.square(error))
    assert float(got) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(tape.gradient(got, error), diagonal**2 * error, rtol=1e-5)
    assert float(losses.curvature_cost(error, None, None, None)) == 0


def test_curvature_sums_over_kernels():
    kernel, ones = np.ones((2, 2, 1, 1), "float32"), np.ones((1, 4, 4), "float32")
    factors = [
        (ones, np.full((1, 1, 1), 3.0, "float32"), None),
        (None, None, None),
        (None, None, np.full((2, 2, 1, 1), 5.0, "float32")),
    ]
    got = losses.curvature_loss([kernel] * 3, [-kernel] * 3, factors)
    assert float(got) == pytest.approx(0.5 * 3 * 8**2 + 0.5 * 5 * 4 * 2**2)
    assert float(losses.curvature_loss([kernel] * 3, [kernel] * 3, factors)) == 0
    assert float(losses.curvature_loss([], [], [])) == 0
