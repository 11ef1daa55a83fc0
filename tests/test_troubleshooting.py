"""docs/troubleshooting.md quotes messages exactly as the package prints them."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import ROOT
from test_documentation import blocks_of

import keras_nern

layers = keras.layers
PAGE = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())


def classifier(*last, shape=(32, 32, 3)):
    """A classifier of three classes; `last` replaces its layers after the convolution."""
    last = last or (layers.GlobalAveragePooling2D(), layers.Dense(3, name="head"))
    convolution = layers.Conv2D(8, 3, padding="same", name="conv")
    return keras.Sequential([keras.Input(shape), convolution, *last], name="classifier")


def nern_of(base, **arguments):
    return keras_nern.NeRNModel(base, hidden_size=8, **arguments)


def images(*shape):
    return np.zeros(shape, "float32")


class Subclassed(keras.Model):
    """A model without `get_config`."""

    def __init__(self, classes):
        super().__init__(name="subclassed")
        self.conv, self.pool = layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()
        self.head = layers.Dense(classes)

    def call(self, inputs):
        return self.head(self.pool(self.conv(inputs)))


def over_rows(x):
    return keras.ops.softmax(x, axis=1)


def double(x):
    return 2.0 * x


def not_built():
    nern_of(keras.Sequential([layers.Conv2D(8, 3), layers.Flatten()], name="classifier"))


def no_convolutions():
    flat = [keras.Input((4, 4, 1)), layers.Flatten(name="flat"), layers.Dense(3, name="head")]
    nern_of(keras.Sequential(flat, name="classifier"))


def larger_than_kernels():
    nern_of(classifier())


def without_get_config():
    model = Subclassed(classes=3)
    model(images(1, 32, 32, 3))
    nern_of(model)


def classes_first():
    last = layers.Conv2D(3, 1, name="head"), layers.Activation(over_rows)
    nern_of(classifier(*last, shape=(4, 4, 3)))


def wrong_shape():
    nern_of(classifier()).fit(images(4, 28, 28, 1))


def wrong_labels():
    nern_of(classifier()).evaluate(images(3, 32, 32, 3), np.array([1, 2, 3]))


def endless():
    nern_of(classifier()).fit(tf.data.Dataset.from_tensors(images(4, 32, 32, 3)).repeat())


def loss_given():
    nern_of(classifier()).compile(loss="mse")


def diverged():
    nern = nern_of(classifier())
    nern.compile(keras.optimizers.SGD(1e30), reconstruction_steps=100)
    nern.fit(steps_per_epoch=100, verbose=0)


def saved_without_extension():
    nern_of(classifier()).save("nern.h5")


def exported_without_extension():
    nern_of(classifier()).export("classifier")


def exported_lambda():
    last = layers.GlobalAveragePooling2D(), layers.Lambda(double, name="double")
    nern_of(classifier(*last, layers.Dense(3, name="head"))).export("classifier.nern")


def damaged():
    nern_of(classifier()).export("classifier.nern")
    with open("classifier.nern", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damaged")
    keras_nern.load("classifier.nern")


def not_compact():
    classifier().save("classifier.keras")
    keras_nern.load("classifier.keras")


@pytest.mark.parametrize(
    "mistake",
    [
        *(not_built, no_convolutions, classes_first, wrong_shape, wrong_labels, endless),
        *(loss_given, diverged, saved_without_extension, exported_without_extension),
        *(exported_lambda, damaged, not_compact),
    ],
)
def test_page_quotes_the_error(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        mistake()
    assert str(raised.value).partition(" Received: x=")[0] in PAGE


@pytest.mark.parametrize("mistake", [larger_than_kernels, without_get_config])
def test_page_quotes_the_warning(mistake):
    with pytest.warns(UserWarning, match="larger than the kernels|without get_config") as warned:
        mistake()
    (text, *_) = (str(one.message) for one in warned if one.category is UserWarning)
    assert text in PAGE


def test_page_reads_a_depthwise_network_of_keras_2():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    (code,) = (code for _, code, _ in blocks_of(text) if "old.h5" in code)
    path = ROOT / "tests/made_elsewhere/keras2_depthwise.h5"
    with pytest.raises(TypeError, match=r"passed to DepthwiseConv2D: \{'groups': 1\}"):
        keras.models.load_model(path, compile=False)
    names = {"keras": keras}
    exec(code.replace('"old.h5"', repr(str(path))).partition("base.save")[0], names)
    with np.load(f"{path}.npz") as made:
        np.testing.assert_allclose(names["base"]([made["images"]]), made["outputs"], atol=1e-5)
    assert {type(layer).__module__.partition(".")[0] for layer in names["base"].layers} == {"keras"}
