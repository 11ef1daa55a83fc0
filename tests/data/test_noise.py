import keras
import numpy as np
import pytest
from peaks import grows_by_at_most

import keras_nern
from keras_nern import NoiseDataset
from keras_nern.data import noise as noise_module
from keras_nern.data.noise import colored_noise


def test_the_seed_determines_the_images_of_every_epoch(base):
    first, second = NoiseDataset(base, steps=3, seed=5), NoiseDataset(base, steps=3, seed=5)
    assert len(first) == 3
    batches = [first[index] for index in range(3)]
    for index, batch in enumerate(batches):
        assert batch.shape == (64, 8, 8, 1)
        assert batch.dtype == "float32"
        np.testing.assert_array_equal(batch, second[index])
    assert np.abs(batches[0] - batches[1]).min() > 0
    first.on_epoch_end()
    assert np.abs(batches[0] - first[0]).min() > 0
    assert np.abs(batches[0] - NoiseDataset(base, seed=6)[0]).min() > 0


def test_uniform_and_gaussian_noise_have_the_given_statistics():
    base = keras.Sequential(
        [keras.Input((16, 16, 2)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    )
    uniform = NoiseDataset(base, "uniform", limits=(-2.0, 6.0), batch_size=200)[0]
    assert uniform.min() > -2
    assert uniform.max() < 6
    np.testing.assert_allclose(uniform.mean(axis=(0, 1, 2)), 2.0, atol=0.1)
    np.testing.assert_allclose(uniform.var(axis=(0, 1, 2)), 64 / 12, rtol=0.05)
    gaussian = NoiseDataset(base, "gaussian", mean=(1.0, 5.0), stddev=(0.5, 2.0), batch_size=200)
    np.testing.assert_allclose(gaussian[0].mean(axis=(0, 1, 2)), (1, 5), atol=0.05)
    np.testing.assert_allclose(gaussian[0].std(axis=(0, 1, 2)), (0.5, 2), rtol=0.05)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("size", [(32, 32), (16, 15)])
def test_colored_noise_has_the_given_spectrum_and_variance_one(exponent, size):
    noise = colored_noise(np.random.default_rng(0), (2000, *size, 1), exponent)
    assert noise.shape == (2000, *size, 1)
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.var() == pytest.approx(1, rel=0.05)
    # at twice the frequency, the power is 2^(-2 e) times as large, along both axes
    power = np.mean(np.abs(np.fft.fft2(noise[..., 0])) ** 2, axis=0)
    for at_two, at_four in ((power[2, 0], power[4, 0]), (power[0, 2], power[0, 4])):
        assert at_four / at_two == pytest.approx(2 ** (-2 * exponent), rel=0.15)


def test_recovers_known_noise_from_the_first_batch_normalization():
    rng = np.random.default_rng(1)
    mean = np.array([3.0, -1.0, 0.5])
    root = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-0.5, 0.5, 0.7]])
    images = mean + colored_noise(rng, (3000, 16, 16, 3), 1.0) @ root.T
    base = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Rescaling(0.5, offset=-0.25),
            keras.layers.Conv2D(24, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    outputs = base.layers[1](base.layers[0](images)).numpy()
    base.layers[2].moving_mean.assign(outputs.mean(axis=(0, 1, 2)))
    base.layers[2].moving_variance.assign(outputs.var(axis=(0, 1, 2)))
    noise = NoiseDataset(base, batch_size=1000)
    assert noise.exponent == 1.0
    np.testing.assert_allclose(noise.mean, mean, atol=0.15)
    covariance, found = root @ root.T, noise.mixing @ noise.mixing.T
    np.testing.assert_allclose(found, covariance, atol=0.12 * covariance.max())
    of_noise = base.layers[1](base.layers[0](noise[0])).numpy()
    np.testing.assert_allclose(of_noise.std(axis=(0, 1, 2)), outputs.std(axis=(0, 1, 2)), rtol=0.1)


def test_ignores_a_filter_without_variance(base):
    stem, bn = base.get_layer("stem"), base.get_layer("stem_bn")
    kernel = stem.kernel.numpy()
    kernel[..., 0] = 0
    stem.kernel.assign(kernel)
    bn.moving_variance.assign([0.0, 1.0, 1.0, 1.0])
    noise = NoiseDataset(base)
    assert np.isfinite(noise[0]).all()
    assert noise[0].std() > 0


def test_distills_from_noise_and_validates_on_images(base, images, labels):
    nern = keras_nern.NeRNModel(base, hidden_size=32)
    nern.compile(reconstruction_steps=20, logits_weight=1.0, feature_map_weight=0.1)
    before = nern.evaluate(images, verbose=0, return_dict=True)["feature_map_loss"]
    noise = NoiseDataset(base, steps=100)
    validation = {"validation_data": (images, labels)}
    history = nern.fit(noise, epochs=2, verbose=0, **validation).history
    assert len(history["loss"]) == len(history["val_agreement"]) == 2
    assert int(nern.phase_iterations) == 200
    assert history["val_feature_map_loss"][-1] < 0.5 * before


def test_a_base_for_any_image_size_needs_image_size():
    base = keras.Sequential(
        [
            keras.Input((None, None, 2)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    assert NoiseDataset(base, image_size=(9, 7))[0].shape == (64, 9, 7, 2)
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\).*=None"):
        NoiseDataset(base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pink"}, "kind must be one of .* Received: kind='pink'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1. Received: batch_size=0"),
        ({"steps": 0}, "steps must be an integer of at least 1. Received: steps=0"),
        ({"steps": 2.5}, "steps must be an integer of at least 1. Received: steps=2.5"),
        ({"limits": (1, 0)}, r"limits must be \(lowest, highest\) .* Received: limits=\(1, 0\)"),
        ({"stddev": -1.0}, "stddev must not be negative. Received: stddev=-1.0"),
    ],
)
def test_raises_for_invalid_arguments(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseDataset(base, **arguments)


def test_raises_for_a_base_without_batch_normalization():
    base = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    )
    with pytest.raises(ValueError, match="Expected a base with a BatchNormalization layer"):
        NoiseDataset(base)


def test_raises_for_channels_first():
    base = keras.Sequential(
        [
            keras.Input((3, 6, 5)),
            keras.layers.Flatten(),
            keras.layers.Reshape((3, 6, 5)),
            keras.layers.BatchNormalization(axis=1),
            keras.layers.MaxPooling2D(2, data_format="channels_first", name="pool"),
        ]
    )
    with pytest.raises(ValueError, match=r"channels last.*'pool' has data_format='channels_first'"):
        NoiseDataset(base, "uniform")


def test_raises_for_a_batch_normalization_without_variance(base):
    base.get_layer("stem_bn").moving_variance.assign(np.zeros(4))
    with pytest.raises(ValueError, match=r"variances above 0.* Received: none among 4 filters"):
        NoiseDataset(base)


def test_images_do_not_depend_on_how_many_are_made_at_once(base, monkeypatch):
    for kind in ("uniform", "gaussian", "batch_norm"):
        noise = NoiseDataset(base, kind, batch_size=7)
        whole = noise[0]
        with monkeypatch.context() as patch:
            patch.setattr(noise_module, "PIXELS_AT_ONCE", 2 * 8 * 8)
            np.testing.assert_array_equal(noise[0], whole)


def test_many_channels_and_large_images_take_bounded_memory(monkeypatch):
    """Measured in full: all responses at once would take gigabytes, all exponents minutes."""
    monkeypatch.setattr(noise_module, "EXPONENTS", (0.0,))

    def of(shape, filters):
        layers = [keras.layers.Conv2D(filters, 3), keras.layers.BatchNormalization()]
        base = keras.Sequential([keras.Input(shape), *layers, keras.layers.Flatten()])
        base(np.zeros((1, *shape), "float32"))
        return base

    many, large = of((30, 8, 24), 32), of((224, 224, 3), 16)
    with grows_by_at_most(512):
        NoiseDataset(many)
    noise = NoiseDataset(large, batch_size=128)
    with grows_by_at_most(128):  # 77 MB of images; their float64 and its spectrum take 500
        noise[0]
