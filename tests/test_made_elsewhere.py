"""Classifiers from files of other Keras versions, and from KerasHub, can be represented."""

import pathlib

import keras
import numpy as np
import pytest

import keras_nern

FOLDER = pathlib.Path(__file__).parent / "made_elsewhere"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("keras2.h5", {"stem", "oblong", "grouped"}),
        ("keras3.keras", {"stem", "depthwise", "separable/depthwise_kernel", "grouped"}),
    ],
)
def test_represents_a_classifier_from_another_keras_version(name, layers, tmp_path):
    base = keras.models.load_model(FOLDER / name, compile=False)
    with np.load(FOLDER / f"{name}.npz") as made:
        images, outputs = made["images"], made["outputs"]
    inputs = [images] if isinstance(base.input, list) else images  # Keras 2 expects a list
    np.testing.assert_allclose(base(inputs), outputs, atol=1e-5)

    nern = keras_nern.NeRNModel(base, hidden_size=16)
    assert layers <= set(nern.predict_kernels())
    nern.compile(reconstruction_steps=2)
    before = nern.relative_error()
    nern.fit(images, batch_size=2, verbose=0)
    assert nern.relative_error() != before
    np.testing.assert_allclose(base(inputs), outputs, atol=1e-5)  # the base is unchanged

    nern.export(tmp_path / "small.nern")
    rebuilt = keras_nern.load(tmp_path / "small.nern")
    np.testing.assert_allclose(rebuilt(inputs), nern.reconstruct()(inputs), atol=1e-5)
    rebuilt.set_weights(base.get_weights())
    np.testing.assert_array_equal(rebuilt(inputs), base(inputs))


def test_represents_a_keras_hub_classifier():
    hub = pytest.importorskip("keras_hub", reason="install keras-hub")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    base = hub.models.ImageClassifier(backbone, num_classes=4, preprocessor=None)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    outputs = base(images).numpy()
    nern = keras_nern.NeRNModel(base, hidden_size=16)
    nern.compile(reconstruction_steps=2)
    nern.fit(images, batch_size=2, verbose=0)
    np.testing.assert_array_equal(base(images), outputs)
    rebuilt = nern.reconstruct()
    assert np.abs(rebuilt(images).numpy() - outputs).max() > 0
    rebuilt.set_weights(base.get_weights())
    np.testing.assert_array_equal(rebuilt(images), outputs)
