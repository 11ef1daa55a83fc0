import keras
import numpy as np
import pytest
from torch_states import torch_state

from keras_nern import models, smoothness_report


@pytest.fixture(scope="module")
def resnet20():
    return models.resnet_cifar(20)


def _parameters(depth, shortcut):
    """He et al., section 4.2; for option A they give 0.27, 0.46, 0.66 and 0.85 million."""

    def conv_bn(size, cin, cout):
        return size * size * cin * cout + 4 * cout

    n = (depth - 2) // 6
    total = conv_bn(3, 3, 16)
    for cin, cout in ((16, 16), (16, 32), (32, 64)):
        total += conv_bn(3, cin, cout) + (2 * n - 1) * conv_bn(3, cout, cout)
        if cin != cout and shortcut == "B":
            total += conv_bn(1, cin, cout)
    return total + 65 * 10


@pytest.mark.parametrize(
    ("depth", "shortcut"),
    [
        (20, "A"),
        (32, "B"),
        pytest.param(20, "B", marks=pytest.mark.slow),
        pytest.param(32, "A", marks=pytest.mark.slow),
        pytest.param(44, "A", marks=pytest.mark.slow),
        pytest.param(44, "B", marks=pytest.mark.slow),
        pytest.param(56, "A", marks=pytest.mark.slow),
        pytest.param(56, "B", marks=pytest.mark.slow),
    ],
)
def test_parameters_and_convolutions_follow_the_formula(depth, shortcut):
    model = models.resnet_cifar(depth, shortcut=shortcut)
    assert model.count_params() == _parameters(depth, shortcut)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) == depth - 1 + (2 if shortcut == "B" else 0)


def test_shortcut_a_subsamples_pads_with_zeros_and_saves(tmp_path):
    model = models.resnet_cifar(20, shortcut="A")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(loaded(images), model(images))

    gamma = model.get_layer("layer2_0_bn2").gamma
    gamma.assign(0 * gamma)  # the block returns its shortcut
    add = model.get_layer("layer2_0_add")
    block = keras.Model(model.inputs[0], [model.get_layer("layer1_2_relu2").output, add.output])
    before, after = (np.asarray(x) for x in block(images))
    np.testing.assert_array_equal(after[..., 8:24], before[:, ::2, ::2])
    assert not after[..., :8].any()
    assert not after[..., 24:].any()


def test_normalizes_raw_pixels():
    model = models.resnet_cifar(20, input_shape=(8, 8, 2), mean=(0.5, 0.25), std=(0.1, 0.2))
    stage = keras.Model(model.inputs[0], model.get_layer("normalization").output)
    pixel = np.array([255, 0], "uint8").reshape(1, 1, 1, 2).repeat(8, 1).repeat(8, 2)
    got = stage(pixel)[0, 0, 0]
    np.testing.assert_allclose(got, [(1 - 0.5) / 0.1, (0 - 0.25) / 0.2], rtol=1e-5)


def test_loads_torch_weights(resnet20, tmp_path):
    state = torch_state(resnet20)
    state |= {"bn1.num_batches_tracked": np.array(7)}
    np.savez(tmp_path / "weights.npz", **state)
    target = models.resnet_cifar(20)
    assert models.load_torch_weights(target, tmp_path / "weights.npz") is target
    for a, b in zip(resnet20.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.weight"), "state must have an array 'fc.weight' for the weight"),
        (lambda s: s.update(extra=np.zeros(1)), r"Received: superfluous arrays \['extra'\]"),
        (
            lambda s: s.update({"fc.bias": np.zeros(3)}),
            r"'fc.bias' must have the shape \(10,\) in Keras's layout. Received: \(3,\)",
        ),
    ],
)
def test_raises_for_torch_weights_that_do_not_fit_and_changes_nothing(resnet20, change, message):
    state = {name: value + 1 for name, value in torch_state(resnet20).items()}
    change(state)
    before = resnet20.get_weights()
    with pytest.raises(ValueError, match=message):
        models.load_torch_weights(resnet20, state)
    for a, b in zip(before, resnet20.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"depth must be one of \(20, 32, 44, 56\). Received: depth=21"),
        ({"shortcut": "C"}, r"shortcut must be one of \('A', 'B'\). Received: shortcut='C'"),
        ({"classes": 0}, "classes must be an integer of at least 1. Received: classes=0"),
        (
            {"mean": (0.1, 0.2)},
            r"mean must be one number, or one per channel \(3\). Received: mean=\(0.1, 0.2\)",
        ),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.resnet_cifar(**arguments)


@pytest.mark.parametrize(
    ("name", "channels", "filters"),
    # from the table in docs/smoothness.md
    [("resnet20-cifar10", 0.036, 0.009), ("resnet20-cifar10-smooth", 0.709, 0.686)],
)
def test_trained_networks_have_the_documented_smoothness(name, channels, filters):
    found = smoothness_report(models.load(name), kinds=()).mean("as trained")
    assert found == pytest.approx([channels, filters], abs=5e-4)


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("resnet20-cifar10", 89.58),
        pytest.param("resnet20-cifar10-smooth", 88.53, marks=pytest.mark.slow),
    ],
)
def test_trained_networks_reach_the_documented_accuracy(name, accuracy, cifar10):
    assert _accuracy(models.load(name), cifar10) == pytest.approx(accuracy, abs=0.02)


def test_raises_for_an_unknown_trained_network():
    with pytest.raises(ValueError, match=r"one of .*'resnet20-cifar10'.*Received: .*'resnet18'"):
        models.load("resnet18")


@pytest.mark.parametrize(
    ("depth", "accuracy"), [(20, 92.60), pytest.param(56, 94.37, marks=pytest.mark.slow)]
)
def test_networks_trained_in_pytorch_reach_their_accuracy(depth, accuracy, cifar10, resnet_weights):
    model = models.load_torch_weights(models.resnet_cifar(depth), resnet_weights(depth))
    assert _accuracy(model, cifar10) == pytest.approx(accuracy, abs=0.02)


def _accuracy(model, cifar10):
    """Test accuracy in percent. Another processor may classify 2 of 10,000 images differently."""
    images, labels = cifar10
    predicted = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    return 100 * np.mean(predicted == labels)
