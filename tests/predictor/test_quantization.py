import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.predictor.quantization import choose_step_sizes, fake_quantize, quantize

KERNEL = np.random.default_rng(0).normal(0, 0.1, (50, 6)).astype("float32")


@pytest.mark.parametrize(("bits", "top"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_levels_fill_their_bits(bits, top):
    step_sizes = np.full(6, 1e-4, "float16")  # so small that everything is clipped
    levels = quantize(np.sign(KERNEL), bits, step_sizes).levels
    assert set(np.unique(levels)) == {-top, top}


def test_by_hand():
    kernel = np.array([[0.75, 1.0], [-0.3, 0.24], [5.0, 0.26]])
    quantized = quantize(kernel, 3, np.float16([0.25, 0.5]))
    np.testing.assert_array_equal(quantized.levels, [[3, 2], [-1, 0], [3, 1]])
    np.testing.assert_array_equal(quantized.values(), [[0.75, 1], [-0.25, 0], [0.75, 0.5]])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_steps_are_no_worse_than_the_largest_weight_sets(bits):
    top = 2 ** (bits - 1) - 1
    plain = (np.abs(KERNEL).max(axis=0) / top).astype("float16")
    chosen = choose_step_sizes(KERNEL, bits)

    def errors(step_sizes):
        return ((quantize(KERNEL, bits, step_sizes).values() - KERNEL) ** 2).sum(axis=0)

    assert (errors(chosen) <= errors(plain) * (1 + 1e-6)).all()
    if bits < 8:  # with few levels, clipping the largest pays
        assert errors(chosen).sum() < 0.9 * errors(plain).sum()


def test_unclipped_weights_are_off_by_half_a_step():
    step_sizes = (np.abs(KERNEL).max(axis=0) / 127 * 1.01).astype("float16")
    error = np.abs(quantize(KERNEL, 8, step_sizes).values() - KERNEL)
    assert (error <= 0.5001 * step_sizes.astype("float32")).all()
    assert error.max() > 0.4 * step_sizes.max()


def test_a_unit_of_zeros_has_a_step():
    kernel = np.zeros((4, 2), "float32")
    quantized = quantize(kernel, 4)
    assert (quantized.step_sizes > 0).all()
    np.testing.assert_array_equal(quantized.values(), kernel)


def test_straight_through_has_the_values_of_quantize_and_its_gradient_is_the_identity():
    step_sizes = choose_step_sizes(KERNEL, 3)
    weights = keras.ops.convert_to_tensor(KERNEL)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        values = fake_quantize(weights, step_sizes.astype("float32"), 3)
        loss = tf.reduce_sum(values * np.arange(6, dtype="float32"))
    np.testing.assert_array_equal(values, quantize(KERNEL, 3, step_sizes).values())
    np.testing.assert_array_equal(tape.gradient(loss, weights), np.tile(np.arange(6), (50, 1)))


@pytest.mark.parametrize("bits", [1, 9, 4.0, 4.5, None, "4"])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be an integer from 2 to 8. Received: bits="):
        quantize(KERNEL, bits)
