import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from roundtrips import assert_config_round_trip, assert_saves_inside_a_model

from keras_nern import LocalPredictor
from keras_nern.predictor.local import LocalDense
from keras_nern.predictor.predictor import OUTPUT_LAYER

RUNS = [4, 11, 7]


def _predictor(run_lengths=RUNS, hidden_size=5, num_layers=3, **arguments):
    predictor = LocalPredictor(run_lengths, hidden_size, num_layers, **arguments)
    predictor.build()
    return predictor


def _places(predictor, count=7):
    lengths = np.reshape(predictor.run_lengths, (-1, 1))
    shape = (predictor.experts, count)
    return np.random.default_rng(0).integers(0, lengths, shape).astype("int32")


def _slow_block(predictor, expert, place, kernels):
    """The block at one place of a run, by the formula of the module."""
    length = max(predictor.run_lengths)
    angles = [math.pi * place * length ** (-(i + 1) / 8) for i in range(8)]
    x = np.array([*map(math.sin, angles), *map(math.cos, angles)])
    *hidden, last = [kernel[expert].astype("float64") for kernel in kernels]
    for kernel in hidden:
        x = np.sin(x @ kernel)
    return x @ last


def _slow(predictor, places, kernels=None):
    kernels = [layer.kernel.numpy() for layer in predictor.layers] if kernels is None else kernels
    return np.array(
        [
            [_slow_block(predictor, expert, place, kernels) for place in row]
            for expert, row in enumerate(places)
        ]
    )


@pytest.mark.parametrize("num_layers", [2, 5])
@pytest.mark.parametrize("run_lengths", [[1, 1, 1], RUNS])
def test_matches_the_formula(num_layers, run_lengths):
    predictor = _predictor(run_lengths, num_layers=num_layers, block_length=4)
    places = _places(predictor)
    predicted = predictor(places).numpy()
    assert predicted.shape == (3, 7, 4)
    np.testing.assert_allclose(predicted, _slow(predictor, places), atol=1e-5)


@pytest.mark.parametrize(("bits", "pruned"), [(None, False), (4, True)])
def test_a_part_of_the_experts_predicts_as_all_do(bits, pruned):
    predictor = _predictor([4, 11, 7, 2, 9], bits=bits, pruned=pruned)
    predictor.compress(0.3 if pruned else 0.0)
    places = _places(predictor)
    whole = predictor(places).numpy()
    for first, count in ((0, 2), (3, 1), (1, 4)):
        part = predictor(places[first : first + count], first=first)
        np.testing.assert_allclose(part, whole[first : first + count], atol=1e-6)


@pytest.mark.parametrize(("bits", "pruned"), [(4, False), (None, True), (7, True)])
def test_kernels_are_pruned_and_quantized(bits, pruned):
    """Masks hold the smallest weights of a layer; step sizes belong to single experts."""
    predictor = _predictor(bits=bits, pruned=pruned)
    for layer in predictor.layers:  # experts of different magnitude
        layer.kernel.assign(layer.kernel.numpy() * np.array([0.5, 1.0, 2.0])[:, None, None])
    predictor.compress(sparsity=0.4 if pruned else 0.0)
    kernels = []
    for layer in predictor.layers:
        kernel = layer.kernel.numpy()
        if pruned:
            mask = layer.mask.numpy()
            assert np.mean(mask == 0) == pytest.approx(0.4, abs=0.5 / mask.size)
            assert np.abs(kernel)[mask == 1].min() >= np.abs(kernel)[mask == 0].max()
            kernel = kernel * mask
        if bits:
            steps, top = layer.step_sizes.numpy(), 2 ** (bits - 1) - 1
            assert steps.shape == (3, 1, 1)
            for expert in range(3):
                alone = _best_step(kernel[expert], top, 4.25 if bits == 7 else 0)
                assert steps[expert, 0, 0] == pytest.approx(alone, rel=1e-3)  # float16
            kernel = np.clip(np.rint(kernel / steps), -top, top) * steps
            np.testing.assert_array_equal(layer.quantized().values(), kernel)
            assert layer.quantized().levels.dtype == "int8"
        np.testing.assert_array_equal(layer.effective_kernel, kernel)
        kernels.append(kernel)
    places = _places(predictor)
    np.testing.assert_allclose(predictor(places), _slow(predictor, places, kernels), atol=2e-5)


def _best_step(kernel, top, loading):
    """The step with the least squared error among 29 that place the top at 100 to 30 percent.

    The top is at least at `loading` root mean squares.
    """
    largest, rms = np.abs(kernel).max(), np.sqrt(np.mean(kernel**2))
    steps = np.float16(
        [max(largest * share, loading * rms) / top for share in np.linspace(1, 0.3, 29)]
    )
    errors = []
    for step in steps.astype("float64"):
        rounded = np.clip(np.rint(kernel / step), -top, top) * step
        errors.append(np.sum((kernel - rounded) ** 2))
    return float(steps[np.argmin(errors)])


def test_experts_share_no_gradient():
    predictor = _predictor()
    places = _places(predictor)

    with tf.GradientTape() as tape:
        value = keras.ops.sum(predictor(places)[1])
    for gradient in tape.gradient(value, predictor.trainable_variables):
        assert not np.any(gradient[0])
        assert np.any(gradient[1])
        assert not np.any(gradient[2])


def test_kernels_start_with_glorots_distribution_and_differ_between_experts():
    layer = LocalDense(experts=4, units=30)
    layer.build((4, None, 70))
    kernel, limit = layer.kernel.numpy(), math.sqrt(6 / 100)
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), limit / math.sqrt(3), rtol=0.05)
    assert np.abs(kernel[0] - kernel[1]).mean() > 0.3 * limit


def test_counts_parameters():
    predictor = _predictor([1879] * 16, hidden_size=31, num_layers=9)
    count = 16 * (16 * 31 + 7 * 31 * 31 + 31 * 9)
    assert predictor.count_params() == predictor.num_parameters == count
    assert predictor.num_bytes == 4 * count
    quantized = _predictor([1879] * 16, 31, 9, bits=5, pruned=True)
    assert quantized.num_parameters == count
    assert quantized.num_bytes == count * 5 / 8 + 2 * 16 * 9


def test_stays_in_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        predictor = _predictor()
        assert predictor(np.zeros((3, 2), "int32")).dtype == "float32"
        assert {weight.dtype for weight in predictor.weights} == {"float32"}
        assert all(layer.compute_dtype == "float32" for layer in predictor.layers)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_from_config_restores_every_argument():
    predictor = LocalPredictor(
        run_lengths=[12, np.int64(7), 3],
        hidden_size=4,
        num_layers=5,
        block_length=25,
        bits=3,
        pruned=True,
        name="mine",
    )
    copy = assert_config_round_trip(predictor)
    assert (copy.experts, copy.hidden_size, copy.run_lengths) == (3, 4, [12, 7, 3])
    assert (copy.num_layers, copy.block_length) == (5, 25)
    assert (copy.bits, copy.pruned, copy.name) == (3, True, "mine")
    assert [type(one) for one in predictor.get_config()["run_lengths"]] == [int, int, int]
    assert copy.output_layer.name == OUTPUT_LAYER
    layer = assert_config_round_trip(LocalDense(3, 4, sine=True, bits=4, pruned=True))
    assert (layer.experts, layer.units, layer.sine) == (3, 4, True)
    assert (layer.bits, layer.pruned) == (4, True)


@pytest.mark.parametrize(("bits", "pruned"), [(None, False), (3, True)])
def test_saves(bits, pruned, tmp_path):
    predictor = _predictor(bits=bits, pruned=pruned)
    predictor.compress(0.2 if pruned else 0.0)
    assert_saves_inside_a_model(predictor, _places(predictor), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run_lengths": [3]}, "the number of run_lengths must be .* at least 2. .*lengths=1"),
        ({"run_lengths": "auto"}, "run_lengths must be a list of integers. .*run_lengths='auto'"),
        ({"run_lengths": 3}, "run_lengths must be a list of integers. .*run_lengths=3"),
        ({"run_lengths": [3, 0]}, r"run_lengths\[1\] must be .* at least 1. .*lengths\[1\]=0"),
        ({"run_lengths": [2.5, 3]}, r"run_lengths\[0\] must be .* at least 1. .*\[0\]=2.5"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1. .*hidden_size=0"),
        ({"num_layers": 1}, "num_layers must be .* at least 2.*num_layers=1"),
        ({"block_length": 2.5}, "block_length must be .* at least 1.*block_length=2.5"),
        ({"bits": 9}, "bits must be an integer from 2 to 8. Received: bits=9"),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalPredictor(**{"run_lengths": [3, 3], "hidden_size": 4, **arguments})
