"""Settings of `compile`, as attributes and between fits, and what cannot be changed."""

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.model import ARGUMENTS
from keras_nern.training.settings import NAMES


def test_every_setting_is_an_attribute_that_is_saved(nern):
    changed = {
        "reconstruction_steps": 3,
        "reconstruction_learning_rate": 0.5,
        "distillation_learning_rate": 0.25,
        "kernel_sampling": keras_nern.UniformSampling(7),
        "distillation_sampling": keras_nern.MagnitudeSampling(5, 0.5),
        "reconstruction_weight": 2.0,
        "logits_weight": 3.0,
        "feature_map_weight": 4.0,
        "layer_output_weight": 5.0,
        "temperature": 6.0,
        "gradient_centering": False,
    }
    assert set(changed) == set(NAMES)
    for name, value in changed.items():
        assert getattr(nern, name) != value
        setattr(nern, name, value)
        assert getattr(nern, name) == value
    config = nern.get_compile_config()
    nern.compile()
    nern.compile_from_config(config)
    for name, value in changed.items():
        found = getattr(nern, name)
        if name.endswith("sampling"):
            found, value = found.get_config(), value.get_config()
        assert found == value
    nern.gradient_centering = "auto"
    assert nern.gradient_centering is True  # of the default optimizer


@pytest.mark.traced
def test_settings_changed_between_fits_count(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8, num_layers=2)
    nern.compile(keras.optimizers.SGD(0.0), reconstruction_steps=1)
    nern.fit(images, batch_size=12, verbose=0)
    before = nern.evaluate(images, batch_size=12, verbose=0, return_dict=True)
    nern.logits_weight, nern.temperature = 100.0, 4.0
    history = nern.fit(images, batch_size=12, verbose=0).history
    after = nern.evaluate(images, batch_size=12, verbose=0, return_dict=True)
    assert after["logits_loss"] != pytest.approx(before["logits_loss"], rel=1e-2)
    weighted = (
        after["reconstruction_loss"] + 100 * after["logits_loss"] + 2e-2 * after["feature_map_loss"]
    )
    assert after["loss"] == pytest.approx(weighted, rel=1e-5)
    assert history["loss"][0] == pytest.approx(weighted, rel=1e-4)


def test_a_setting_that_is_refused_changes_nothing(nern):
    config = nern.get_compile_config()
    for name, value in (("temperature", 0), ("logits_weight", -1), ("kernel_sampling", "most")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(nern, name, value)
    assert nern.get_compile_config() == config


def test_a_compile_that_is_refused_changes_nothing(nern, images):
    optimizer, config = nern.optimizer, nern.get_compile_config()
    for arguments, error in (
        ({"metrics": "accuracy"}, ValueError),
        ({"weighted_metrics": 3}, ValueError),
        ({"learning_rate": 0.1}, TypeError),
        ({"steps_per_execution": 0}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(arguments))):
            nern.compile("sgd", logits_weight=7.0, **arguments)
    assert nern.optimizer is optimizer
    assert nern.get_compile_config() == config
    nern.fit(images, verbose=0)


def test_arguments_of_the_constructor_cannot_be_changed(nern):
    before, variables = nern.get_config(), list(nern.variables)
    for name in ("base", *ARGUMENTS):
        for value in (getattr(nern, name), 5, nern.base.layers, None):
            with pytest.raises(AttributeError, match=f"^{name} is an argument of the constructor"):
                setattr(nern, name, value)
    assert nern.get_config() == before
    assert list(map(id, nern.variables)) == list(map(id, variables))


def test_settings_of_compile_have_names(nern):
    with pytest.raises(ValueError, match=r"NeRNModel has its own losses.*loss='mse'"):
        nern.compile("adam", "mse")
    with pytest.raises(TypeError, match="positional"):
        nern.compile("adam", None, None, 100)


def test_quantize_points_to_compress(nern):
    before = nern.get_weights()
    with pytest.raises(NotImplementedError, match=r"keras_nern.compress\(nern, bits=8\)"):
        nern.quantize("int8")
    for a, b in zip(before, nern.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_hdf5_points_to_keras(nern, tmp_path, suffix):
    with pytest.raises(ValueError, match=r"filepath must end in \.keras.*Received: filepath="):
        nern.save(tmp_path / f"nern{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
def test_fits_if_keras_computes_in_float64(images, optimizer):
    keras.config.set_floatx("float64")
    try:
        base = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3),
            ]
        )
        nern = keras_nern.NeRNModel(base, hidden_size=8, num_layers=2)
        nern.compile(optimizer, reconstruction_steps=3)
        before = nern.relative_error()
        nern.fit(images, verbose=0, validation_data=(images.astype("float64"), np.zeros(12)))
        assert nern.relative_error() != before
        assert nern.predict(images, verbose=0).dtype == "float64"
        rebuilt = nern.reconstruct()
        np.testing.assert_allclose(rebuilt(images), nern(images), rtol=1e-5)
    finally:
        keras.config.set_floatx("float32")
