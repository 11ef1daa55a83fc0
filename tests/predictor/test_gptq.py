import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.predictor import gptq


def rounded(number, row):
    return np.rint(row)


def test_the_second_of_two_like_inputs_makes_up_for_the_first():
    # x1 = x2 = x: the output is (w1 + w2) x = 0.6 x; 0 and 0 miss it by 0.6, 0 and 1 by 0.4
    covariance = np.ones((2, 2)) + 1e-9 * np.eye(2)
    kernel = np.array([[0.3], [0.3]])
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), [[0], [1]])
    # with x2 = -x the output is (w1 - w2) x = 0, which both at 0 have
    covariance[0, 1] = covariance[1, 0] = -1
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), [[0], [0]])


def test_inputs_that_vary_most_come_first_and_independent_ones_are_rounded_plainly():
    seen = []

    def note(number, row):
        seen.append(number)
        return np.rint(row)

    kernel = np.random.default_rng(0).normal(size=(5, 3)) * 4
    found = gptq.gptq_quantize(kernel, np.diag([1.0, 5.0, 3.0, 4.0, 2.0]), note)
    assert seen == [1, 3, 2, 4, 0]
    np.testing.assert_array_equal(found, np.rint(kernel))


def test_each_step_is_the_best_that_the_rows_to_come_can_do():
    # the oracle solves for them: given the rows done, min over the others of tr(D^T H D)
    generator = np.random.default_rng(1)
    samples = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6))
    covariance = gptq.damped(samples.T @ samples / 50, 0.01)
    kernel = generator.normal(size=(6, 2)) * 3
    order = np.argsort(-np.diag(covariance))
    done, expected = [], np.zeros_like(kernel)
    for number in order:
        left = [i for i in order if i not in done]
        errors = (expected - kernel)[done]  # of the rows that are rounded
        cross = covariance[np.ix_(left, done)]
        moved = kernel[left] - np.linalg.solve(covariance[np.ix_(left, left)], cross @ errors)
        expected[number] = np.rint(moved[left.index(number)])
        done.append(number)
    np.testing.assert_array_equal(gptq.gptq_quantize(kernel, covariance, rounded), expected)


def test_a_covariance_that_is_not_definite_gets_a_share_of_its_mean_diagonal():
    np.testing.assert_allclose(gptq.damped([[2.0, 3.0], [3.0, 4.0]], 0.01), [[2.03, 3], [3, 4.03]])
    np.testing.assert_array_equal(gptq.damped(np.zeros((2, 2)), 0.01), np.eye(2))


@pytest.fixture(scope="module")
def predictor():
    """A predictor whose output is not much of noise: 7 frequencies, trained a little."""
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


def _plainly(predictor, copy, sparsity=0.0):
    """Pruned and rounded with a look at the means of the inputs alone: bias correction."""
    x = y = predictor.encoding(_coordinates())
    for layer, other in zip(predictor.layers, copy.layers, strict=True):
        other.kernel.assign(layer.kernel)
        other.compress(sparsity)
        before = keras.ops.mean(keras.ops.matmul(x, layer.kernel), axis=0)
        after = keras.ops.mean(keras.ops.matmul(y, other.effective_kernel), axis=0)
        other.bias.assign(layer.bias + before - after)
        x, y = layer(x), other(y)


@pytest.mark.parametrize(("bits", "sparsity"), [(3, 0.0), (5, 0.0), (None, 0.4), (4, 0.3)])
def test_far_less_error_than_rounding_and_correcting_biases(predictor, bits, sparsity):
    coordinates = _coordinates()
    exact = predictor(coordinates).numpy()

    def error(copy):
        return np.mean((copy(coordinates).numpy() - exact) ** 2)

    copy, other = (_copy(predictor, bits, sparsity > 0) for _ in range(2))
    _plainly(predictor, other, sparsity)
    gptq.compress_into(copy, predictor, coordinates, sparsity)
    assert error(copy) < 0.6 * error(other)
    for layer in copy.layers:  # what is kept is what it computes with
        np.testing.assert_array_equal(layer.kernel, layer.effective_kernel)


def test_a_layer_is_refitted_to_inputs_that_are_compressed(predictor, monkeypatch):
    # only the first layer is rounded: of the second the ridge is left, here by normal equations
    coordinates = _coordinates()
    copy = _copy(predictor, 3)
    x = y = predictor.encoding(coordinates).numpy()
    first = np.round(predictor.layers[0].kernel.numpy(), 1)  # stands in for a rounded one
    monkeypatch.setattr(
        gptq,
        "gptq_quantize",
        lambda kernel, *_: first if len(kernel) == 42 else kernel.astype("float32"),
    )
    gptq.compress_into(copy, predictor, coordinates)
    x, y = predictor.layers[0](x).numpy(), copy.layers[0](y).numpy()
    kernel = predictor.layers[1].kernel.numpy()
    shares = gptq._layers_alike(predictor, coordinates)
    mean, own_mean = shares @ x, shares @ y
    x, y = x - mean, y - own_mean
    own = np.einsum("n,ni,nj->ij", shares, x, x)  # of the inputs as they were
    ridge = gptq.RIDGE * np.trace(own) / len(own)
    needed = np.linalg.solve(own + ridge * np.eye(len(own)), own @ kernel)
    covariance = np.einsum("n,ni,nj->ij", shares, y, y)
    ridge = 0.01 * np.trace(covariance) / len(covariance)
    across = np.einsum("n,ni,nj->ij", shares, y, x)
    expected = np.linalg.solve(
        covariance + ridge * np.eye(len(covariance)), across @ kernel + ridge * needed
    )
    assert np.abs(expected - kernel).max() > 0.01
    np.testing.assert_allclose(copy.layers[1].kernel, expected, atol=1e-4)


def test_statistics_against_numpy_over_chunks(monkeypatch):
    monkeypatch.setattr(gptq, "CHUNK", 7)
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 20, 4)).astype("float32") + 5
    counts = generator.integers(1, 5, 20)  # as if rows were there so many times
    mean, own_mean, own, covariance, across = gptq._statistics(
        keras.ops.array(x), keras.ops.array(y), counts / counts.sum()
    )
    np.testing.assert_allclose(mean, x.repeat(counts, 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(own_mean, y.repeat(counts, 0).mean(axis=0), rtol=1e-6)
    expected = np.cov(y.T, x.T, bias=True, fweights=counts)
    np.testing.assert_allclose(covariance, expected[:4, :4], atol=1e-5)
    np.testing.assert_allclose(own, expected[4:, 4:], atol=1e-5)
    np.testing.assert_allclose(across, expected[:4, 4:], atol=1e-5)


def test_many_like_inputs_have_their_mean():
    x = keras.ops.full((65_536, 2), 0.997)
    mean, _, covariance, *_ = gptq._statistics(x, x, np.full(65_536, 1 / 65_536))
    np.testing.assert_allclose(mean, np.float32(0.997), rtol=1e-7)
    np.testing.assert_allclose(covariance, 0, atol=1e-12)


def test_layers_of_large_weights_and_of_small_ones_count_alike(predictor):
    coordinates = _coordinates()
    kernels = predictor(coordinates).numpy()
    shares = gptq._layers_alike(predictor, coordinates)
    assert shares.sum() == pytest.approx(1)
    relative = [
        (shares[of] @ (kernels[of] ** 2).sum(axis=1))
        for of in (coordinates[:, 0] == layer for layer in range(3))
    ]
    np.testing.assert_allclose(relative, relative[0], rtol=1e-5)


def test_a_pruned_predictor_keeps_its_masks(predictor):
    pruned, copy = _copy(predictor, None, True), _copy(predictor, 4, True)
    gptq.compress_into(pruned, predictor, _coordinates(), 0.5)
    gptq.compress_into(copy, pruned, _coordinates())
    for layer, other in zip(pruned.layers, copy.layers, strict=True):
        np.testing.assert_array_equal(other.mask, layer.mask)
        assert not other.quantized().levels[layer.mask.numpy() == 0].any()


def test_weights_of_frequencies_that_hardly_vary_become_0():
    keras.utils.set_random_seed(0)
    predictor = keras_nern.KernelPredictor(8, 2)
    copy = keras_nern.KernelPredictor(8, 2, bits=6)
    predictor.build((None, 3))
    copy.build((None, 3))
    gptq.compress_into(copy, predictor, _coordinates())
    levels = copy.quantized()[0].levels.reshape(3, 2, 40, 8)
    assert not levels[:, 1, 20:].any()  # cosines of at most pi * 11 * 0.76^20, 0.14
    assert np.mean(levels[:, :, :6] == 0) < 0.2
    assert np.abs(predictor.layers[0].kernel).min() > 0


def test_refuses_weights_that_are_not_finite(predictor):
    broken = _copy(predictor, None, True)
    broken.set_weights([np.full(w.shape, np.nan, "float32") for w in broken.get_weights()])
    with pytest.raises(ValueError, match=r"must have finite weights .* Received: '.*kernel'"):
        gptq.compress_into(_copy(predictor, 4, True), broken, _coordinates())


def test_inputs_without_any_variation(predictor):
    copy = _copy(predictor, 4)
    one = np.array([[1, 2, 3]], "int32")
    gptq.compress_into(copy, predictor, one)
    np.testing.assert_allclose(copy(one), predictor(one), atol=1e-5)
