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
        ({}, "Expected bits, a sparsity or both"),
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
        ValueError, match=r"must be a representation that is not compressed.*bits=4, pruned=False"
    ):
        keras_nern.compress(small, bits=3)
    with pytest.raises(ValueError, match=r"nern must be a NeRNModel\. Received"):
        keras_nern.compress(nern.base, bits=3)


# A residual.


@pytest.fixture
def integers(images):
    """A representation without a predictor of 2,448 weights, with their curvature."""
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    nern = keras_nern.NeRNModel(base, size=0)
    nern.gather_curvature(images, verbose=0)
    return nern


def file_bytes(nern, path):
    nern.export(path, kept_precision="bfloat16")
    return path.stat().st_size


def test_a_file_has_at_most_the_bytes_that_are_asked_for(integers, tmp_path):
    path = tmp_path / "file.nern"
    finest = keras_nern.compress(integers, max_bytes="1 MB", verbose=0)
    coarsest = keras_nern.compress(integers, max_drop=100, **drop_data(integers), verbose=0)
    largest, smallest = file_bytes(finest, path), file_bytes(coarsest, path)
    errors = []
    for budget in np.linspace(smallest, largest, 4)[1:]:
        small = keras_nern.compress(integers, max_bytes=budget, verbose=0)
        assert budget - 25 < file_bytes(small, path) <= budget
        errors.append(small.relative_error())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    assert keras_nern.load(path) is not None


def drop_data(nern):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 8, 8, 1)).astype("float32")
    labels = np.argmax(nern.base.predict(x, verbose=0), axis=-1)
    return {"validation_data": (x, labels)}


def test_the_coarsest_integers_within_a_drop_are_taken(integers, tmp_path):
    data = drop_data(integers)
    sizes = []
    for limit in (0, 10, 40):
        small = keras_nern.compress(integers, max_drop=limit, **data, verbose=0)
        x, y = data["validation_data"]
        found = small.evaluate(x, y, verbose=0, return_dict=True)
        assert found["base_accuracy"] == 1
        assert 100 * (1 - found["accuracy"]) <= limit + 1e-4
        sizes.append(file_bytes(small, tmp_path / "file.nern"))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_integers_correct_a_predictor(nern, images, tmp_path):
    small = keras_nern.compress(nern, max_bytes="100 kB", data=images, verbose=0)
    assert small.relative_error() < 0.01 * nern.relative_error()
    np.testing.assert_array_equal(small.predictor.get_weights()[0], nern.predictor.get_weights()[0])
    table = small.summary_table()
    assert table.residual_bits == pytest.approx(sum(small.residual_layer.layer_bits()))
    assert table.representation_bytes == pytest.approx(
        nern.summary_table().representation_bytes + table.residual_bits / 8
    )
    assert "residual bits" in str(table)
    assert "residual bits" not in str(nern.summary_table())


def disturbed(nern):
    """Compresses, then changes the integers at random."""
    small = keras_nern.compress(nern, max_bytes=3_800, verbose=0)
    generator = np.random.default_rng(4)
    values = [q + generator.integers(-2, 3, q.shape) for q in small.residual_layer.integers()]
    small.residual_layer.assign(values, small.residual_layer.exponents())
    return small


def test_a_fit_trains_the_integers_for_the_losses_and_their_bits(integers, images):
    small = disturbed(integers)
    before = small.evaluate(images, verbose=0, return_dict=True)
    bits = float(small.residual_layer.bits())
    exponents = small.residual_layer.exponents()
    small.distillation_learning_rate = 3e-2
    small.fit(images, epochs=100, batch_size=12, verbose=0)
    after = small.evaluate(images, verbose=0, return_dict=True)
    assert after["loss"] < 0.7 * before["loss"]
    for found, expected in zip(small.residual_layer.exponents(), exponents, strict=True):
        np.testing.assert_array_equal(found, expected)
    small.residual_layer.rate_weight.assign(1.0)
    small.fit(images, epochs=100, batch_size=12, verbose=0)
    assert float(small.residual_layer.bits()) < 0.95 * bits


def test_floats_settle_where_the_loss_is_least_and_do_not_oscillate(integers, images):
    small = keras_nern.compress(integers, max_bytes=3_800, verbose=0)
    small.compile(logits_weight=0.0, feature_map_weight=0.0, distillation_learning_rate=2e-2)
    residual = small.residual_layer
    residual.rate_weight.assign(0.0)
    assert all((one.numpy() > 0).all() for one in residual.curvature)
    before = residual.integers()
    for levels in residual.levels:
        levels.assign(levels + 0.3)
    small.fit(images, epochs=80, batch_size=12, verbose=0)
    for levels, expected in zip(residual.levels, before, strict=True):
        np.testing.assert_allclose(levels, expected, atol=0.05)


def test_the_logs_of_a_residual_hold_its_errors_and_its_rate(integers, images):
    small = keras_nern.compress(integers, max_bytes=3_800, verbose=0)
    small.distillation_learning_rate = 0.0
    rate, error = float(small.residual_layer.rate_loss()), small.relative_error()
    logs = small.fit(images, epochs=1, batch_size=12, verbose=0).history
    assert logs["rate_loss"] == pytest.approx([rate])
    assert logs["relative_error"] == pytest.approx([error])
    expected = small.evaluate(images, verbose=0, return_dict=True)
    for name in ("logits_loss", "feature_map_loss", "reconstruction_loss"):
        assert logs[name] == pytest.approx([expected[name]], rel=1e-3, abs=1e-8)
    total = 1e-2 * logs["logits_loss"][0] + 2e-2 * logs["feature_map_loss"][0] + rate
    assert logs["loss"] == pytest.approx([total])


def test_a_residual_can_be_trained_on_the_curvature(integers, images):
    small = disturbed(integers)
    small.compile(curvature_steps=100)
    small.gather_curvature(images, verbose=0)
    history = small.fit(images, epochs=0, verbose=0)
    loss = history.curvature["loss"]
    assert loss[-1] < 0.7 * loss[0]
    assert set(history.curvature) >= {"loss", "curvature_loss", "relative_error"}


def test_a_fit_trains_the_vectors_of_the_rebuilt_classifier(integers, images, tmp_path):
    small = disturbed(integers)
    before = {weight.path: weight.numpy() for weight in small.base.weights}
    untrained = small(images)
    small.fit(images, epochs=40, batch_size=12, verbose=0)
    rebuilt = small.reconstruct()
    for path, weight in zip(before, rebuilt.weights, strict=True):
        changed = not np.array_equal(weight, before[path])
        kernel = path.split("/")[-2] in small.predict_kernels()
        assert changed == (path.endswith("/bias") or kernel), path
    for weight in small.base.weights:
        np.testing.assert_array_equal(weight, before[weight.path])
    outputs = rebuilt(images)
    assert np.abs(outputs - untrained).max() > 1e-2
    np.testing.assert_allclose(small(images), outputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(small.predict(images, verbose=0), outputs, rtol=1e-4, atol=1e-4)
    expected = keras.ops.argmax(outputs, axis=-1)
    found = small.evaluate(images, expected, verbose=0, return_dict=True)
    assert found["accuracy"] == 1
    small.export(tmp_path / "small.nern")
    for a, b in zip(keras_nern.load(tmp_path / "small.nern").weights, rebuilt.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(loaded(images), outputs, rtol=1e-4, atol=1e-4)


def test_vectors_of_frozen_layers_are_kept(base, images):
    base.get_layer("conv_bn").trainable = False
    integers = keras_nern.NeRNModel(base, size=0)
    integers.gather_curvature(images, verbose=0)
    small = disturbed(integers)
    small.fit(images, epochs=2, batch_size=12, verbose=0)
    rebuilt = small.reconstruct()
    for name, changed in (("conv_bn", False), ("stem_bn", True)):
        pair = (model.get_layer(name).gamma for model in (rebuilt, base))
        assert np.array_equal(*pair) != changed


def test_a_base_that_is_frozen_after_a_fit_keeps_what_was_trained(integers, images, tmp_path):
    small = disturbed(integers)
    small.fit(images, epochs=2, batch_size=12, verbose=0)
    outputs = small(images)
    small.base.trainable = False
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for model in (small, loaded, loaded.reconstruct()):
        np.testing.assert_allclose(model(images), outputs, rtol=1e-4, atol=1e-4)
    small.export(tmp_path / "small.nern")
    rebuilt = keras_nern.load(tmp_path / "small.nern")
    np.testing.assert_allclose(rebuilt(images), outputs, rtol=1e-4, atol=1e-4)


def test_a_residual_is_saved_and_loaded(integers, tmp_path):
    small = keras_nern.compress(integers, max_bytes=3_800, verbose=0)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert (loaded.experts, loaded.residual) == (0, True)
    for name, kernel in small.predict_kernels().items():
        np.testing.assert_array_equal(loaded.predict_kernels()[name], kernel)
    assert float(loaded.residual_layer.rate_loss()) == float(small.residual_layer.rate_loss()) > 0


def test_no_predictor_predicts_zeros(base):
    nern = keras_nern.NeRNModel(base, size=0)
    assert nern.experts == 0
    assert nern.relative_error() == 1
    assert nern.summary_table().representation_bytes == 0
    for given in ({"size": 0.0}, {"experts": 0}):
        assert keras_nern.NeRNModel(base, **given).experts == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "hidden_size": 8}, r"stands for none. Received: size=0, hidden_size=8"),
        ({"experts": 0, "encoding": keras_nern.PositionalEncoding()}, "experts=0, encoding=<"),
    ],
)
def test_raises_for_arguments_of_a_predictor_without_one(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.NeRNModel(base, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Expected bits, a sparsity or both, or one of max_bytes and max_drop"),
        ({"bits": 8, "max_bytes": 1000}, "Expected bits, a sparsity or both"),
        ({"max_bytes": "10 miles"}, "Received: .*10 miles"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_bytes": 100}, r"max_bytes must be at least \d[\d,]+, .*max_bytes=100"),
        ({"max_drop": 1}, "max_drop needs validation_data with labels. Received: None"),
        ({"max_drop": 1, "validation_data": np.zeros((2, 8, 8, 1), "float32")}, "no labels"),
        (
            {"max_drop": 1, "validation_data": (one for one in ())},
            "validation_data must be data that can be read several times",
        ),
        ({"bits": 8}, "a NeRNModel without a predictor"),
    ],
)
def test_raises_for_a_residual_that_cannot_be(integers, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.compress(integers, **arguments, verbose=0)


def test_raises_for_a_residual_without_curvature(base):
    nern = keras_nern.NeRNModel(base, size=0)
    with pytest.raises(ValueError, match=r"A residual needs data, or nern.gather_curvature"):
        keras_nern.compress(nern, max_bytes=5_000, verbose=0)


def test_raises_for_a_fit_of_nothing(integers, images):
    with pytest.raises(ValueError, match="with a predictor or a residual to train"):
        integers.fit(images, verbose=0)
    small = keras_nern.compress(integers, max_bytes=3_800, verbose=0)
    with pytest.raises(ValueError, match="A residual is trained on images"):
        small.fit(steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match="reconstruction_steps must be 0 with a residual"):
        small.compile(reconstruction_steps=5)
    with pytest.raises(ValueError, match="must be a representation that is not compressed"):
        keras_nern.compress(small, bits=8)
