import keras
import numpy as np
import pytest
from torch_states import torch_state

from keras_nern import models, smoothness_report

# Parameters of the field's ResNets with option A: He et al. give 0.27, 0.46, 0.66 and
# 0.85 million. By hand: the stem, 2 n blocks of two 3x3 per stage, BN, Dense.
DEPTHS = [20, 32, 44, 56]


def _parameters(depth, shortcut):
    def conv_bn(size, cin, cout):
        return size * size * cin * cout + 4 * cout

    n = (depth - 2) // 6
    total = conv_bn(3, 3, 16)
    for cin, cout in ((16, 16), (16, 32), (32, 64)):
        total += conv_bn(3, cin, cout) + (2 * n - 1) * conv_bn(3, cout, cout)
        if cin != cout and shortcut == "B":
            total += conv_bn(1, cin, cout)
    return total + 65 * 10


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_has_the_fields_size(depth, shortcut):
    model = models.resnet_cifar(depth, shortcut=shortcut)
    assert model.count_params() == _parameters(depth, shortcut)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) == depth - 1 + (2 if shortcut == "B" else 0)


def test_shortcut_a_subsamples_and_pads_with_zeros():
    model = models.resnet_cifar(20, shortcut="A")
    for layer in model.layers:  # leave the shortcut alone in the block
        if layer.name == "layer2_0_bn2":
            layer.gamma.assign(0 * layer.gamma)
    add = model.get_layer("layer2_0_add")
    block = keras.Model(model.inputs[0], [model.get_layer("layer1_2_relu2").output, add.output])
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    before, after = (np.asarray(x) for x in block(images))
    np.testing.assert_array_equal(after[..., 8:24], before[:, ::2, ::2])
    assert not after[..., :8].any()
    assert not after[..., 24:].any()


def test_shortcut_a_saves_and_loads(tmp_path):
    model = models.resnet_cifar(20, shortcut="A")
    model.save(tmp_path / "a.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "a.keras")(images), model(images)
    )


def test_normalises_raw_pixels():
    model = models.resnet_cifar(20, input_shape=(8, 8, 2), mean=(0.5, 0.25), std=(0.1, 0.2))
    stage = keras.Model(model.inputs[0], model.get_layer("normalization").output)
    pixel = np.array([255, 0], "uint8").reshape(1, 1, 1, 2).repeat(8, 1).repeat(8, 2)
    got = stage(pixel)[0, 0, 0]
    np.testing.assert_allclose(got, [(1 - 0.5) / 0.1, (0 - 0.25) / 0.2], rtol=1e-5)


def test_loads_torch_weights(tmp_path):
    source, target = models.resnet_cifar(20), models.resnet_cifar(20)
    np.savez(tmp_path / "w.npz", **torch_state(source))
    models.load_torch_weights(target, tmp_path / "w.npz")
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    state = torch_state(source) | {"bn1.num_batches_tracked": np.array(7)}
    assert models.load_torch_weights(target, state) is target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.weight"), "Expected an array 'fc.weight'"),
        (lambda s: s.update(extra=np.zeros(1)), r"no place in it: \['extra'\]"),
        (
            lambda s: s.update({"fc.bias": np.zeros(3)}),
            r"Expected 'fc.bias' to give the shape \(10,\). Received: \(3,\)",
        ),
    ],
)
def test_refuses_weights_that_do_not_fit_and_changes_nothing(change, message):
    model = models.resnet_cifar(20)
    state = {name: value + 1 for name, value in torch_state(model).items()}
    change(state)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        models.load_torch_weights(model, state)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"depth must be one of \(20, 32, 44, 56\). Received: depth=21"),
        ({"shortcut": "C"}, r"shortcut must be one of \('A', 'B'\). Received: shortcut='C'"),
        ({"classes": 0}, "classes must be an integer of at least 1. Received: classes=0"),
        ({"mean": (0.1, 0.2)}, r"mean must be .* \(3\). Received: mean=\(0.1, 0.2\)"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.resnet_cifar(**arguments)


@pytest.mark.parametrize(
    ("name", "channels", "filters"),
    # the table of docs/smoothness.md
    [("resnet20-cifar10", 0.036, 0.009), ("resnet20-cifar10-smooth", 0.709, 0.686)],
)
def test_the_packages_own_networks_are_as_smooth_as_the_docs_say(name, channels, filters):
    model = models.load(name)
    found = smoothness_report(model, kinds=()).mean("as trained")
    assert found == pytest.approx([channels, filters], abs=5e-4)


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("resnet20-cifar10", 89.58),
        pytest.param("resnet20-cifar10-smooth", 88.53, marks=pytest.mark.slow),
    ],
)
def test_the_packages_own_networks_reach_their_accuracy(name, accuracy, cifar10):
    images, labels = cifar10
    predicted = models.load(name).predict(images, batch_size=500, verbose=0).argmax(axis=1)
    assert 100 * np.mean(predicted == labels) == pytest.approx(accuracy, abs=0.02)


def test_refuses_a_network_that_the_package_does_not_have():
    with pytest.raises(ValueError, match=r"one of .*'resnet20-cifar10'.*Received: .*'resnet18'"):
        models.load("resnet18")


@pytest.mark.parametrize(
    ("depth", "accuracy"), [(20, 92.60), pytest.param(56, 94.37, marks=pytest.mark.slow)]
)
def test_real_networks_reach_their_accuracy(depth, accuracy, cifar10, resnet_weights):
    images, labels = cifar10
    model = models.load_torch_weights(models.resnet_cifar(depth), resnet_weights(depth))
    predicted = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    # two images of 10,000, for what rounding may turn over on another processor
    assert 100 * np.mean(predicted == labels) == pytest.approx(accuracy, abs=0.02)
