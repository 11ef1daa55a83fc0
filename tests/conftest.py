"""Seeds, small classifiers, and real data and networks if they are installed."""

import os
import pathlib

import keras
import numpy as np
import pytest

import keras_nern

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.clear_session(free_memory=False)  # collecting garbage takes seconds
    keras.utils.set_random_seed(1)


@pytest.fixture
def base():
    """A functional classifier with 3x3 kernels, with and without bias, and a 1x1 shortcut."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.ReLU()(x)
    y = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(x)
    y = keras.layers.BatchNormalization(name="conv_bn")(y)
    shortcut = keras.layers.Conv2D(6, 1, name="shortcut")(x)
    x = keras.layers.ReLU()(keras.layers.Add()([y, shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="fc")(x), name="tiny")
    rng = np.random.default_rng(0)
    for weight in model.weights:  # so that no weight is left at a trivial 0 or 1
        noise = rng.uniform(0.5, 1.5, weight.shape)
        if weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(noise - 1.0)
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(noise)
    return model


@pytest.fixture
def images():
    """Twelve images for `base`, float32 `(12, 8, 8, 1)`."""
    return np.random.default_rng(2).normal(size=(12, 8, 8, 1)).astype("float32")


@pytest.fixture
def labels():
    """Classes of `images`, int64 `(12,)`."""
    return np.random.default_rng(3).integers(0, 3, 12)


@pytest.fixture
def nern(base):
    """A small, quickly trained representation of `base`."""
    model = keras_nern.NeRNModel(base, hidden_size=16)
    model.compile(reconstruction_steps=5)
    return model


def _found(variable, default, sample):
    folder = pathlib.Path(os.environ.get(variable, default))
    if not (folder / sample).exists():
        pytest.skip(f"{folder / sample} not found: set {variable}")
    return folder


@pytest.fixture(scope="session")
def cifar10_folder():
    """The TFDS `data_dir` that holds CIFAR-10."""
    pytest.importorskip("tensorflow_datasets", reason="install keras-nern[data]")
    return _found("KERAS_NERN_TFDS", SHARED / "data" / "tfds", "cifar10")


@pytest.fixture(scope="session")
def cifar10(cifar10_folder):
    """CIFAR-10's test images uint8 `(10000, 32, 32, 3)` and labels `(10000,)`."""
    import tensorflow_datasets as tfds

    images, labels = tfds.load(
        "cifar10",
        split="test",
        data_dir=cifar10_folder,
        download=False,
        as_supervised=True,
        batch_size=-1,
    )
    return images.numpy(), labels.numpy()


@pytest.fixture(scope="session")
def resnet_weights():
    """A function from depth to the path of that ResNet's trained weights."""
    variable, default = "KERAS_NERN_WEIGHTS", SHARED / "weights"

    def path(depth):
        name = f"cifar10_resnet{depth}.npz"
        return _found(variable, default, name) / name

    return path
