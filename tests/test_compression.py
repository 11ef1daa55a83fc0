import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.predictor.gptq import _input_weights


@pytest.fixture
def nern(base):
    keras.utils.set_random_seed(1)
    nern = keras_nern.NeRNModel(base, 16, permutation="cross_filter", normalize="layer")
    nern.compile(reconstruction_steps=60)
    nern.fit(steps_per_epoch=60, verbose=0)
    return nern


@pytest.fixture
def local(base):
    """A representation by three local predictors."""
    keras.utils.set_random_seed(1)
    nern = keras_nern.NeRNModel(base, 12, 4, permutation="cross_filter", experts=3)
    nern.compile(reconstruction_steps=60, curvature_steps=4, run_eagerly=True)
    nern.fit(steps_per_epoch=60, verbose=0)
    return nern


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("nern", {"bits": 8}),
        ("nern", {"sparsity": 0.3}),
        ("nern", {"bits": 4, "sparsity": 0.2}),
        ("local", {"bits": 6}),
        ("local", {"bits": 4, "sparsity": 0.2}),
    ],
)
def test_a_compressed_representation_saves_loads_and_rebuilds(
    request, images, kind, arguments, tmp_path
):
    nern = request.getfixturevalue(kind)
    small = keras_nern.compress(nern, **arguments)
    assert (small.experts, small.hidden_size) == (nern.experts, nern.hidden_size)
    for kernel in small.predictor.layers:
        used = kernel.effective_kernel.numpy()
        if "sparsity" in arguments:
            assert np.mean(used == 0) >= arguments["sparsity"] - 0.01
    small.fit(images, epochs=1, batch_size=8, verbose=0)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for name, value in small.predict_kernels().items():
        np.testing.assert_allclose(loaded.predict_kernels()[name], value, atol=1e-6)
    np.testing.assert_allclose(small.reconstruct()(images), small(images), rtol=1e-4, atol=1e-4)
    assert (loaded.bits, loaded.pruned) == (small.bits, small.pruned)


def test_the_error_decreases_with_the_number_of_bits(nern):
    errors = [keras_nern.compress(nern, bits).relative_error() for bits in (3, 5, 8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(nern.relative_error(), rel=0.02)


def test_the_error_of_local_predictors_decreases_with_the_number_of_bits(local):
    small = [keras_nern.compress(local, bits) for bits in (3, 4, 8)]
    errors = [one.relative_error() for one in small]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(local.relative_error(), rel=0.05)
    # 16 x 12 + 2 x 12 x 12 + 12 x 9 weights and 4 step sizes of each expert
    for bits, one in zip((3, 4, 8), small, strict=True):
        assert one.summary_table().predictor_bytes == 3 * (588 * bits / 8 + 2 * 4)
        assert one.summary_table().predictor_parameters == 3 * 588
    before = small[0].relative_error()
    small[0].compile(reconstruction_learning_rate=2e-2, run_eagerly=True)
    small[0].fit(steps_per_epoch=60, verbose=0)
    assert small[0].relative_error() < before


def test_the_mean_output_does_not_change(nern):
    coordinates = nern.coordinates()
    before = nern.predictor(coordinates).numpy()
    small = keras_nern.compress(nern, bits=2)
    after = small.predictor(coordinates).numpy()
    assert np.abs(after - before).max() > 0.01
    (shares,) = _input_weights(nern.predictor, coordinates, coordinates[:, 0])
    np.testing.assert_allclose(shares @ after, shares @ before, atol=1e-4)


def test_training_reduces_the_error_of_compression(nern):
    small = keras_nern.compress(nern, bits=3, sparsity=0.1)
    before = small.relative_error()
    masks = [layer.mask.numpy() for layer in small.predictor.layers]
    steps = [layer.step_sizes.numpy() for layer in small.predictor.layers]
    small.compile(reconstruction_learning_rate=2e-3)
    small.fit(steps_per_epoch=60, verbose=0)
    assert small.relative_error() < before
    for layer, mask, step in zip(small.predictor.layers, masks, steps, strict=True):
        np.testing.assert_array_equal(layer.mask, mask)
        np.testing.assert_array_equal(layer.step_sizes, step)
        assert not (layer.quantized().levels * (1 - mask)).any()


def test_a_compressed_model_skips_reconstruction_and_shares_no_state(nern, images):
    kernels = nern.predict_kernels()
    small = keras_nern.compress(nern, bits=4)
    history = small.fit(images, batch_size=8, verbose=0)
    assert history.reconstruction == {}
    assert list(history.history["loss"])
    assert small.optimizer is not nern.optimizer
    for name, value in nern.predict_kernels().items():
        np.testing.assert_array_equal(value, kernels[name])


def test_bytes_are_counted_by_bits(nern):
    table = nern.summary_table()
    small = keras_nern.compress(nern, bits=4).summary_table()
    weights = 240 * 16 + 3 * 16 * 16 + 16 * 9
    units = 4 * 16 + 9
    assert table.predictor_bytes == 4 * (weights + units)
    assert small.predictor_parameters == table.predictor_parameters == weights + units
    assert small.predictor_bytes == weights / 2 + 2 * units + 4 * units
    assert small.representation_bytes < table.representation_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Expected bits, a sparsity, or both"),
        ({"bits": 1}, "bits must be an integer from 2 to 8. Received: bits=1"),
        ({"sparsity": 1.0}, r"sparsity must be a number in \[0, 1\). Received: sparsity=1.0"),
    ],
)
def test_raises_for_invalid_arguments(nern, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.compress(nern, **arguments)


def test_raises_for_a_compressed_model_and_for_other_models(nern):
    small = keras_nern.compress(nern, bits=4)
    with pytest.raises(
        ValueError, match=r"must have a predictor that is not compressed.*bits=4, pruned=False"
    ):
        keras_nern.compress(small, bits=3)
    with pytest.raises(ValueError, match=r"nern must be a NeRNModel\. Received"):
        keras_nern.compress(nern.base, bits=3)
