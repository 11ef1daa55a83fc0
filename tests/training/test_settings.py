"""Settings of `compile`, as attributes and between fits, and what cannot be changed."""

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.model import ARGUMENTS
from keras_nern.training.settings import NAMES, PHASES, Settings


def test_every_setting_is_an_attribute_that_is_saved(nern):
    changed = {
        "reconstruction_steps": 3,
        "curvature_steps": 4,
        "reconstruction_learning_rate": 0.5,
        "curvature_learning_rate": 0.125,
        "distillation_learning_rate": 0.25,
        "kernel_sampling": keras_nern.UniformSampling(7),
        "distillation_sampling": keras_nern.MagnitudeSampling(5, 0.5),
        "reconstruction_weight": 2.0,
        "logits_weight": 3.0,
        "feature_map_weight": 4.0,
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


def _resolved(num_slots, experts, is_default_optimizer=True, **given):
    arguments = {f"{name}_weight": 1.0 for name in ("reconstruction", "logits", "feature_map")}
    auto = [f"{name}_learning_rate" for name in PHASES]
    auto += ["reconstruction_steps", "curvature_steps", "kernel_sampling", "gradient_centering"]
    arguments |= dict.fromkeys(auto, "auto")
    arguments |= {"distillation_sampling": "all", "temperature": 1.0, **given}
    return Settings.resolve(num_slots, experts, is_default_optimizer, **arguments)


@pytest.mark.parametrize(
    ("num_slots", "experts", "batch_size", "steps"),
    [
        (52, 1, 4096, 800),  # all kernels in every step
        (4096, 1, 4096, 800),
        (30_063, 1, 4096, 5872),  # 800 x 30,063 / 4,096 = 5,871.7
        (54, 3, 3 * 2730, 300),
        (30_064, 16, 16 * 512, 1101),  # 300 x 30,064 / 8,192 = 1,100.98
        # 2^18 kernels per step at most: 2^18 / 1,000 = 262.1 for each expert
        (3_000_000, 1000, 262_000, 3436),  # 300 x 3,000,000 / 262,000 = 3,435.1
    ],
)
def test_default_batches_and_steps_follow_the_number_of_kernels(
    num_slots, experts, batch_size, steps
):
    settings = _resolved(num_slots, experts)
    assert type(settings.kernel_sampling) is keras_nern.UniformSampling
    assert settings.kernel_sampling.batch_size == batch_size
    assert settings.reconstruction_steps == steps


@pytest.mark.parametrize(("experts", "epochs"), [(1, 800), (5, 300)])
def test_default_steps_follow_the_batch_of_a_given_sampling(experts, epochs):
    class Own:
        def sample(self, count, seed, cumulative=None):
            return None

    for sampling, steps_per_epoch in (
        ("all", 1),
        (Own(), 1),
        ("magnitude", 100_000 / 4096),
        (keras_nern.UniformSampling(1000), 100),
        (keras_nern.UniformSampling(10**6), 1),
    ):
        settings = _resolved(100_000, experts, kernel_sampling=sampling)
        assert settings.reconstruction_steps == np.ceil(epochs * steps_per_epoch)
    assert _resolved(100_000, experts, reconstruction_steps=7).reconstruction_steps == 7


def test_default_rates_and_centering():
    def found(*arguments, **given):
        settings = _resolved(100, *arguments, **given)
        rates = [settings.peak_rate(phase) for phase in PHASES]
        return (*rates, settings.gradient_centering)

    assert found(1) == (1e-2, 1e-3, 2.5e-4, True)
    assert found(3) == (4e-2, 3e-3, 1e-3, False)
    assert found(1, False) == (1e-2, 1e-3, 2.5e-4, False)
    assert found(1, False, gradient_centering=True)[3] is True
    given = {f"{phase}_learning_rate": rate for rate, phase in enumerate(PHASES)}
    assert found(3, **given)[:3] == (0, 1, 2)


def test_default_steps_of_the_curvature_phase():
    assert _resolved(100, 1).curvature_steps == 0
    assert _resolved(100, 3).curvature_steps == 300
    assert _resolved(100, 1, curvature_steps=7).steps("curvature") == 7


def test_local_predictors_have_no_biases_to_center(base):
    nern = keras_nern.NeRNModel(base, experts=3, hidden_size=4)
    message = r'must be False or "auto" for local predictors.*Received: gradient_centering=True'
    with pytest.raises(ValueError, match=message):
        nern.compile(gradient_centering=True)
    nern.compile(gradient_centering=False)


@pytest.mark.parametrize("experts", [1, 3])
def test_defaults_of_a_model(base, experts):
    nern = keras_nern.NeRNModel(base, experts=experts, hidden_size=4)
    assert nern.reconstruction_steps == (800 if experts == 1 else 300)
    assert nern.kernel_sampling.batch_size == (4096 if experts == 1 else 3 * 2730)
    nern.kernel_sampling = "auto"
    nern.reconstruction_steps = "auto"  # by the sampling
    nern.reconstruction_learning_rate = "auto"
    assert nern.reconstruction_learning_rate == (1e-2 if experts == 1 else 4e-2)
    nern.kernel_sampling = keras_nern.UniformSampling(13)
    nern.reconstruction_steps = "auto"
    # 52 kernels, and 57 slots of 3 runs of 15, 18 and 19
    assert nern.reconstruction_steps == (3200 if experts == 1 else np.ceil(300 * 57 / 13))


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


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ""])
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
        nern.compile(optimizer, reconstruction_steps=3, curvature_steps=2)
        before = nern.relative_error()
        held_out = (images.astype("float64"), np.zeros(12))
        history = nern.fit(images, verbose=0, validation_data=held_out)
        assert history.curvature["curvature_loss"][0] > 0
        assert nern.relative_error() != before
        assert nern.predict(images, verbose=0).dtype == "float64"
        rebuilt = nern.reconstruct()
        np.testing.assert_allclose(rebuilt(images), nern(images), rtol=1e-5)
    finally:
        keras.config.set_floatx("float32")
