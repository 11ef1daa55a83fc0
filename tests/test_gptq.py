import keras
import numpy as np
import pytest

import keras_nern
from keras_nern import gptq


def rounded(number, row):
    return np.rint(row)


def test_the_second_of_two_like_inputs_makes_up_for_the_first():
    # x1 = x2 = x: the output is (w1 + w2) x = 0.6 x; 0 and 0 miss it by 0.6, 0 and 1 by 0.4
    covariance = np.ones((2, 2)) + 1e-9 * np.eye(2)
    kernel = np.array([[0.3], [0.3]])
    np.testing.assert_array_equal(gptq.with_feedback(kernel, covariance, rounded), [[0], [1]])
    # with x2 = -x the output is (w1 - w2) x = 0, which both at 0 have
    covariance[0, 1] = covariance[1, 0] = -1
    np.testing.assert_array_equal(gptq.with_feedback(kernel, covariance, rounded), [[0], [0]])


def test_inputs_that_vary_most_come_first_and_independent_ones_are_rounded_plainly():
    seen = []

    def note(number, row):
        seen.append(number)
        return np.rint(row)

    kernel = np.random.default_rng(0).normal(size=(5, 3)) * 4
    found = gptq.with_feedback(kernel, np.diag([1.0, 5.0, 3.0, 4.0, 2.0]), note)
    assert seen == [1, 3, 2, 4, 0]
    np.testing.assert_array_equal(found, np.rint(kernel))


def test_each_step_is_the_best_that_the_rows_to_come_can_do():
    # the oracle solves for them: given the rows done, min over the others of tr(D^T H D)
    generator = np.random.default_rng(1)
    samples = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6))
    covariance = gptq.damped(samples.T @ samples / 50)
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
    np.testing.assert_array_equal(gptq.with_feedback(kernel, covariance, rounded), expected)


def test_a_covariance_that_is_not_definite_gets_a_hundredth_of_its_mean_diagonal():
    np.testing.assert_allclose(gptq.damped([[3.0, 3.0], [3.0, 3.0]]), [[3.03, 3], [3, 3.03]])
    np.testing.assert_array_equal(gptq.damped(np.zeros((2, 2))), np.eye(2))


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
    """Pruned and rounded without a look at the inputs, biases included."""
    for layer, other in zip(predictor.layers, copy.layers, strict=True):
        other.kernel.assign(layer.kernel)
        other.bias.assign(layer.bias)
        other.compress(sparsity)


@pytest.mark.parametrize(("bits", "sparsity"), [(3, 0.0), (5, 0.0), (None, 0.4), (4, 0.3)])
def test_less_than_half_the_error_of_plain_rounding(predictor, bits, sparsity):
    coordinates = _coordinates()
    exact = predictor(coordinates).numpy()

    def error(copy):
        return np.mean((copy(coordinates).numpy() - exact) ** 2)

    copy, other = (_copy(predictor, bits, sparsity > 0) for _ in range(2))
    _plainly(predictor, other, sparsity)
    gptq.compress_into(copy, predictor, coordinates, sparsity)
    assert error(copy) < 0.5 * error(other)
    for layer in copy.layers:  # what is kept is what it computes with
        np.testing.assert_array_equal(layer.kernel, layer.kernel_in_use)


def test_inputs_without_any_variation(predictor):
    copy = _copy(predictor, 4)
    one = np.array([[1, 2, 3]], "int32")
    gptq.compress_into(copy, predictor, one)
    np.testing.assert_allclose(copy(one), predictor(one), atol=1e-5)
