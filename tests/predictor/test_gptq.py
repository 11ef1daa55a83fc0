import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.predictor import gptq


def rounded(index, row):
    return np.rint(row)


def test_the_second_of_two_equal_inputs_compensates_for_the_first():
    # With x1 = x2 = x the output is (w1 + w2) x = 0.6 x; (0, 0) is off by 0.6, (0, 1) by 0.4.
    covariance = np.ones((2, 2)) + 1e-9 * np.eye(2)
    kernel = np.array([[0.3], [0.3]])
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), [[0], [1]])
    # With x2 = -x the output is (w1 - w2) x = 0, which (0, 0) has.
    covariance[0, 1] = covariance[1, 0] = -1
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), [[0], [0]])


def test_inputs_of_large_variance_come_first_and_independent_ones_are_only_rounded():
    seen = []

    def record(index, row):
        seen.append(index)
        return np.rint(row)

    kernel = np.random.default_rng(0).normal(size=(5, 3)) * 4
    found = gptq.gptq_quantize(kernel, np.diag([1.0, 5.0, 3.0, 4.0, 2.0]), record)
    assert seen == [1, 3, 2, 4, 0]
    np.testing.assert_array_equal(found, np.rint(kernel))


def test_each_update_of_the_remaining_rows_is_optimal():
    # The oracle solves for the remaining rows: min tr(D^T H D), given the rounded rows.
    generator = np.random.default_rng(1)
    samples = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6))
    covariance = gptq.damped(samples.T @ samples / 50, 0.01)
    kernel = generator.normal(size=(6, 2)) * 3
    order = np.argsort(-np.diag(covariance))
    done, expected = [], np.zeros_like(kernel)
    for index in order:
        left = [i for i in order if i not in done]
        errors = (expected - kernel)[done]
        cross = covariance[np.ix_(left, done)]
        moved = kernel[left] - np.linalg.solve(covariance[np.ix_(left, left)], cross @ errors)
        expected[index] = np.rint(moved[left.index(index)])
        done.append(index)
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), expected)


def test_damping_adds_a_fraction_of_the_mean_diagonal():
    np.testing.assert_allclose(gptq.damped([[2.0, 3.0], [3.0, 4.0]], 0.01), [[2.03, 3], [3, 4.03]])
    np.testing.assert_array_equal(gptq.damped(np.zeros((2, 2)), 0.01), np.eye(2))


@pytest.fixture(scope="module")
def predictor():
    """A briefly trained predictor with 7 frequencies, whose output is smooth."""
    keras.utils.set_random_seed(0)
    encoding = keras_nern.PositionalEncoding(7)
    predictor = keras_nern.KernelPredictor(24, 3, encoding=encoding)
    coordinates = _coordinates()
    predictor.build((None, 3))
    model = keras.Sequential([keras.Input((3,), dtype="int32"), predictor])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    targets = np.sin(coordinates @ np.random.default_rng(2).normal(size=(3, 9)) / 3)
    model.fit(coordinates, targets, epochs=20, batch_size=64, verbose=0)
    return predictor


def _coordinates():
    grid = np.meshgrid(range(3), range(12), range(12), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype("int32")


def _copy(predictor, bits, pruned=False):
    encoding = keras_nern.PositionalEncoding(7)
    copy = keras_nern.KernelPredictor(24, 3, encoding=encoding, bits=bits, pruned=pruned)
    copy.build((None, 3))
    return copy


def _round_and_correct_biases(predictor, copy, sparsity=0.0):
    """The baseline: prunes and rounds each weight alone, then restores mean outputs."""
    x = y = predictor.encoding(_coordinates())
    for layer, other in zip(predictor.layers, copy.layers, strict=True):
        other.kernel.assign(layer.kernel)
        other.compress(sparsity)
        before = keras.ops.mean(keras.ops.matmul(x, layer.kernel), axis=0)
        after = keras.ops.mean(keras.ops.matmul(y, other.effective_kernel), axis=0)
        other.bias.assign(layer.bias + before - after)
        x, y = layer(x), other(y)


@pytest.mark.parametrize(("bits", "sparsity"), [(3, 0.0), (5, 0.0), (None, 0.4), (4, 0.3)])
def test_has_far_less_error_than_rounding_with_bias_correction(predictor, bits, sparsity):
    coordinates = _coordinates()
    exact = predictor(coordinates).numpy()

    def error(copy):
        return np.mean((copy(coordinates).numpy() - exact) ** 2)

    copy, other = (_copy(predictor, bits, sparsity > 0) for _ in range(2))
    _round_and_correct_biases(predictor, other, sparsity)
    gptq.compress_into(copy, predictor, coordinates, coordinates[:, 0], sparsity)
    assert error(copy) < 0.6 * error(other)
    for layer in copy.layers:  # the stored kernels need no more rounding
        np.testing.assert_array_equal(layer.kernel, layer.effective_kernel)


def test_refits_a_layer_to_compressed_inputs(predictor, monkeypatch):
    # Only the first layer is rounded, so that the second one is the ridge solution, here from the
    # normal equations.
    coordinates = _coordinates()
    copy = _copy(predictor, 3)
    x = y = predictor.encoding(coordinates).numpy()
    first_rounded = np.round(predictor.layers[0].kernel.numpy(), 1)
    monkeypatch.setattr(
        gptq,
        "gptq_quantize",
        lambda kernel, *_: first_rounded if len(kernel) == 42 else kernel.astype("float32"),
    )
    gptq.compress_into(copy, predictor, coordinates, coordinates[:, 0])
    x, y = predictor.layers[0](x).numpy(), copy.layers[0](y).numpy()
    kernel = predictor.layers[1].kernel.numpy()
    (weights,) = gptq._input_weights(predictor, coordinates, coordinates[:, 0])
    x, y = x - weights @ x, y - weights @ y
    xx = np.einsum("n,ni,nj->ij", weights, x, x)
    yy = np.einsum("n,ni,nj->ij", weights, y, y)
    yx = np.einsum("n,ni,nj->ij", weights, y, x)
    ridge = gptq.RIDGE * np.trace(xx) / len(xx)
    prior = np.linalg.solve(xx + ridge * np.eye(len(xx)), xx @ kernel)
    ridge = 0.01 * np.trace(yy) / len(yy)
    expected = np.linalg.solve(yy + ridge * np.eye(len(yy)), yx @ kernel + ridge * prior)
    assert np.abs(expected - kernel).max() > 0.01
    np.testing.assert_allclose(copy.layers[1].kernel, expected, atol=1e-4)


def test_statistics_match_numpy_over_chunks(monkeypatch):
    monkeypatch.setattr(gptq, "CHUNK", 7)
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 20, 4)).astype("float32") + 5
    counts = generator.integers(1, 5, 20)  # weights in proportion to how often a row is repeated
    shares = counts / counts.sum()
    x_mean, y_mean, xx, yy, yx = gptq._statistics(x, y, shares, mean_free=True)
    np.testing.assert_allclose(x_mean, x.repeat(counts, 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(y_mean, y.repeat(counts, 0).mean(axis=0), rtol=1e-6)
    expected = np.cov(y.T, x.T, bias=True, fweights=counts)
    np.testing.assert_allclose(yy, expected[:4, :4], atol=1e-5)
    np.testing.assert_allclose(xx, expected[4:, 4:], atol=1e-5)
    np.testing.assert_allclose(yx, expected[:4, 4:], atol=1e-5)
    x_mean, y_mean, xx, yy, yx = gptq._statistics(x, y, shares, mean_free=False)
    assert not x_mean.any()
    assert not y_mean.any()
    np.testing.assert_allclose(xx, np.einsum("n,ni,nj->ij", shares, x, x), rtol=1e-6)
    np.testing.assert_allclose(yy, np.einsum("n,ni,nj->ij", shares, y, y), rtol=1e-6)
    np.testing.assert_allclose(yx, np.einsum("n,ni,nj->ij", shares, y, x), rtol=1e-6)


def test_statistics_of_many_equal_inputs_are_exact():
    x = np.full((65_536, 2), 0.997, "float32")
    x_mean, _, xx, *_ = gptq._statistics(x, x, np.full(65_536, 1 / 65_536), mean_free=True)
    np.testing.assert_allclose(x_mean, np.float32(0.997), rtol=1e-7)
    np.testing.assert_allclose(xx, 0, atol=1e-12)


def test_layers_of_large_and_small_weights_count_equally(predictor):
    coordinates = _coordinates()
    energies = (predictor(coordinates).numpy() ** 2).sum(axis=1)
    (weights,) = gptq._input_weights(predictor, coordinates, coordinates[:, 0])
    assert weights.sum() == pytest.approx(1)
    by_layer = np.bincount(coordinates[:, 0], weights * energies)
    np.testing.assert_allclose(by_layer, by_layer[0], rtol=1e-5)


def test_keeps_the_masks_of_a_pruned_predictor(predictor):
    coordinates = _coordinates()
    pruned, copy = _copy(predictor, None, True), _copy(predictor, 4, True)
    gptq.compress_into(pruned, predictor, coordinates, coordinates[:, 0], 0.5)
    gptq.compress_into(copy, pruned, coordinates, coordinates[:, 0])
    for layer, other in zip(pruned.layers, copy.layers, strict=True):
        np.testing.assert_array_equal(other.mask, layer.mask)
        assert not other.quantized().levels[layer.mask.numpy() == 0].any()


def test_weights_of_nearly_constant_features_become_0():
    keras.utils.set_random_seed(0)
    predictor = keras_nern.KernelPredictor(8, 2)
    copy = keras_nern.KernelPredictor(8, 2, bits=6)
    predictor.build((None, 3))
    copy.build((None, 3))
    gptq.compress_into(copy, predictor, _coordinates(), _coordinates()[:, 0])
    levels = copy.quantized()[0].levels.reshape(3, 2, 40, 8)
    assert not levels[:, 1, 20:].any()  # cosines of at most pi * 11 * 0.76^20, 0.14
    assert np.mean(levels[:, :, :6] == 0) < 0.2
    assert np.abs(predictor.layers[0].kernel).min() > 0


def test_raises_for_weights_that_are_not_finite(predictor):
    broken = _copy(predictor, None, True)
    broken.set_weights([np.full(w.shape, np.nan, "float32") for w in broken.get_weights()])
    with pytest.raises(ValueError, match=r"must have finite weights .* Received: '.*kernel'"):
        gptq.compress_into(_copy(predictor, 4, True), broken, _coordinates(), _coordinates()[:, 0])


def test_a_single_coordinate_keeps_its_output(predictor):
    copy = _copy(predictor, 4)
    one = np.array([[1, 2, 3]], "int32")
    gptq.compress_into(copy, predictor, one, one[:, 0])
    np.testing.assert_allclose(copy(one), predictor(one), atol=1e-5)


# Local predictors.


@pytest.fixture(scope="module")
def local():
    """Three experts of runs of 30 places that cross layers, briefly trained to smooth targets."""
    keras.utils.set_random_seed(0)
    predictor = keras_nern.LocalPredictor([30] * 3, 12, num_layers=3)
    predictor.build()
    phases = np.random.default_rng(2).uniform(0, 6, (3, 1, 9))
    targets = np.sin(np.arange(30)[:, None] / 4 + phases)  # (experts, places, 9)
    optimizer = keras.optimizers.Adam(1e-2)
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((predictor(_places()) - targets) ** 2)
        variables = predictor.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
    return predictor


def _places(experts=3):
    return np.tile(np.arange(30, dtype="int32"), (experts, 1))


# The layer of each place; no layer is shared by experts.
RUN_LAYERS = np.repeat([[0, 1], [2, 3], [4, 5]], [20, 10], axis=1)


def _local_copy(predictor, bits=None, pruned=False, experts=3):
    copy = keras_nern.LocalPredictor([30] * experts, 12, 3, bits=bits, pruned=pruned)
    copy.build()
    return copy


@pytest.mark.parametrize("bits", [None, 4])
def test_each_expert_is_compressed_as_it_would_be_alone(local, bits):
    """Alone: in a predictor of two copies of the expert."""
    together = _local_copy(local, bits, pruned=True)
    pruned = _local_copy(local, pruned=True)
    gptq.compress_into(pruned, local, _places(), RUN_LAYERS, 0.3)
    gptq.compress_into(together, pruned, _places(), RUN_LAYERS)
    for expert in range(3):
        source, alone = (_local_copy(local, b, True, experts=2) for b in (None, bits))
        for layer, other in zip(pruned.layers, source.layers, strict=True):
            for variable, value in ((other.kernel, layer.kernel), (other.mask, layer.mask)):
                variable.assign(np.stack([value[expert]] * 2))
        layers = np.stack([RUN_LAYERS[expert], RUN_LAYERS[expert] + 2])
        gptq.compress_into(alone, source, _places(2), layers)
        for layer, other in zip(together.layers, alone.layers, strict=True):
            np.testing.assert_array_equal(other.mask[0], layer.mask[expert])
            np.testing.assert_allclose(other.kernel[0], layer.kernel[expert], atol=1e-5)
            np.testing.assert_array_equal(other.kernel[0], other.kernel[1])


@pytest.mark.parametrize(("bits", "sparsity"), [(3, 0.0), (5, 0.0), (None, 0.4), (4, 0.3)])
def test_every_expert_has_far_less_error_than_rounding(local, bits, sparsity):
    exact = local(_places()).numpy()

    def errors(copy):
        return np.mean((copy(_places()).numpy() - exact) ** 2, axis=(1, 2))

    copy, rounded = (_local_copy(local, bits, sparsity > 0) for _ in range(2))
    for layer, other in zip(local.layers, rounded.layers, strict=True):
        other.kernel.assign(layer.kernel)
    rounded.compress(sparsity)
    gptq.compress_into(copy, local, _places(), RUN_LAYERS, sparsity)
    assert (errors(copy) < 0.6 * errors(rounded)).all()
    for layer in copy.layers:
        np.testing.assert_array_equal(layer.kernel, layer.effective_kernel)


def test_layers_of_an_expert_count_equally(local):
    energies = (local(_places()).numpy() ** 2).sum(axis=-1)  # (experts, places)
    weights = gptq._input_weights(local, _places(), RUN_LAYERS)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for expert in range(3):
        by_layer = np.bincount(RUN_LAYERS[expert], weights[expert] * energies[expert])
        np.testing.assert_allclose(by_layer[2 * expert], by_layer[2 * expert + 1], rtol=1e-5)
