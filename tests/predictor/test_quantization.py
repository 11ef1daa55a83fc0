import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.predictor.quantization import choose_step_sizes, fake_quantize, quantize

KERNEL = np.random.default_rng(0).normal(0, 0.1, (50, 6)).astype("float32")


@pytest.mark.parametrize(("bits", "top"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_largest_levels_of_each_number_of_bits(bits, top):
    step_sizes = np.full(6, 1e-4, "float16")  # so small that every weight is clipped
    levels = quantize(np.sign(KERNEL), bits, step_sizes).levels
    assert set(np.unique(levels)) == {-top, top}


def test_by_hand():
    kernel = np.array([[0.75, 1.0], [-0.3, 0.24], [5.0, 0.26]])
    quantized = quantize(kernel, 3, np.float16([0.25, 0.5]))
    np.testing.assert_array_equal(quantized.levels, [[3, 2], [-1, 0], [3, 1]])
    np.testing.assert_array_equal(quantized.values(), [[0.75, 1], [-0.25, 0], [0.75, 0.5]])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_chosen_step_sizes_have_the_least_error_of_all_candidates(bits):
    top = 2 ** (bits - 1) - 1
    kernel = KERNEL.astype("float64")

    def error(unit, step_size):
        size = float(step_size)
        levels = np.clip(np.rint(kernel[:, unit] / size), -top, top)
        return np.sum((kernel[:, unit] - size * levels) ** 2)

    chosen = choose_step_sizes(KERNEL, bits)
    total = unclipped = 0
    for unit in range(6):
        candidates = np.linspace(1.0, 0.3, 29) * np.abs(kernel[:, unit]).max() / top
        errors = [error(unit, size) for size in candidates.astype("float16")]
        assert error(unit, chosen[unit]) == pytest.approx(min(errors), rel=1e-9)
        total, unclipped = total + min(errors), unclipped + errors[0]
    if bits < 8:  # with few levels, clipping the largest weights reduces the error
        assert total < 0.9 * unclipped


def test_weights_that_are_not_clipped_are_off_by_half_a_step():
    step_sizes = (np.abs(KERNEL).max(axis=0) / 127 * 1.01).astype("float16")
    error = np.abs(quantize(KERNEL, 8, step_sizes).values() - KERNEL)
    assert (error <= 0.5001 * step_sizes.astype("float32")).all()
    assert error.max() > 0.4 * step_sizes.max()


def test_a_unit_of_zeros_has_a_positive_step_size():
    kernel = np.zeros((4, 2), "float32")
    quantized = quantize(kernel, 4)
    assert (quantized.step_sizes > 0).all()
    np.testing.assert_array_equal(quantized.values(), kernel)


def test_fake_quantize_has_the_values_of_quantize_and_the_gradient_of_the_identity():
    step_sizes = choose_step_sizes(KERNEL, 3)
    weights = keras.ops.convert_to_tensor(KERNEL)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        values = fake_quantize(weights, step_sizes.astype("float32"), 3)
        loss = tf.reduce_sum(values * np.arange(6, dtype="float32"))
    np.testing.assert_array_equal(values, quantize(KERNEL, 3, step_sizes).values())
    np.testing.assert_array_equal(tape.gradient(loss, weights), np.tile(np.arange(6), (50, 1)))


@pytest.mark.parametrize("bits", [1, 9, 4.0, 4.5, None, "4"])
def test_raises_for_other_bits(bits):
    with pytest.raises(ValueError, match=r"bits must be an integer from 2 to 8. Received: bits="):
        quantize(KERNEL, bits)
