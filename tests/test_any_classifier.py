"""Classifiers with every kind of layer and structure are fitted, rebuilt, saved and loaded."""

import re

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.network.blocks import Blocks

layers = keras.layers


def _sequential(shape, *inner):
    return keras.Sequential([keras.Input(shape), *inner, layers.Flatten(), layers.Dense(3)])


def _kinds_of_conv2d():
    return _sequential(
        (8, 8, 4),
        layers.DepthwiseConv2D(3),
        layers.BatchNormalization(),
        layers.SeparableConv2D(6, 3),
        layers.Conv2D(6, 3, groups=2, padding="same"),
        layers.Conv2D(4, 3, dilation_rate=2, padding="same", activation="relu"),
        layers.Conv2DTranspose(5, 3, strides=2),
        layers.Conv2D(4, 1, trainable=False),
    )


def _inception():
    """A 7 x 7 stem and parallel kernels of several sizes, without batch normalization."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 7, strides=2, padding="same", activation="relu")(inputs)
    branches = [
        layers.Conv2D(3, size, padding="same", activation="relu")(x) for size in (1, (1, 7), (7, 1))
    ]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def _nested():
    """A Sequential model in a functional model in wrappers, with augmentation."""
    cell = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()]
    )
    middle_input = keras.Input((8, 8, 4))
    middle = keras.Model(middle_input, layers.ReLU()(cell(middle_input) + middle_input))
    inputs = keras.Input((2, 8, 8, 3))
    x = layers.TimeDistributed(layers.RandomFlip())(inputs)
    x = layers.TimeDistributed(layers.Conv2D(4, 1))(x)
    x = layers.TimeDistributed(middle)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def _added_constant():
    """Both the Add layer and the add operation, as in MobileNetV3."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same")(inputs)
    x = layers.Add()([x, inputs])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.ReLU(6.0)(x + 3.0))))


def _shared_layer():
    conv = layers.Conv2D(3, 3, padding="same")
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(conv(layers.ReLU()(conv(inputs))))
    return keras.Model(inputs, layers.Dense(3)(x))


def _two_inputs():
    image, profile = keras.Input((8, 8, 3), name="image"), keras.Input((10,), name="profile")
    x = layers.Flatten()(layers.Conv2D(4, 3)(image))
    x = layers.Concatenate()([x, layers.Dense(4)(profile)])
    return keras.Model([image, profile], layers.Dense(3)(x))


def _named_inputs_and_outputs():
    image, series = keras.Input((8, 8, 3), name="image"), keras.Input((12, 2), name="series")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    y = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3)(series))
    z = layers.Concatenate()([x, y])
    return keras.Model(
        {"image": image, "series": series},
        {"a": layers.Dense(3, activation="softmax")(z), "b": layers.Dense(2)(z)},
    )


@keras.saving.register_keras_serializable("tests")
class Residual(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.bn = layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build((*shape[:-1], self.filters))

    def call(self, x, training=None):
        return keras.ops.relu(x + self.bn(self.conv(x), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(4, 3)
        self.blocks = [Residual(4), Residual(4)]
        self.head = layers.Dense(3, activation="softmax")

    def call(self, x, training=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(keras.ops.mean(x, axis=(1, 2)))


def _subclassed():
    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


MODELS = {
    "Conv1D": lambda: _sequential(
        (12, 3),
        layers.Conv1D(4, 5),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        layers.BatchNormalization(),
    ),
    "kinds of Conv2D": _kinds_of_conv2d,
    "Conv3D": lambda: _sequential((6, 6, 6, 2), layers.Conv3D(3, 3), layers.Conv3D(4, (1, 2, 2))),
    "kernels of several sizes": _inception,
    "nested": _nested,
    "added constant": _added_constant,
    "shared layer": _shared_layer,
    "two inputs": _two_inputs,
    "named inputs and outputs": _named_inputs_and_outputs,
    "subclassed": _subclassed,
}


def _inputs(model):
    """Six random inputs in the structure that `model` takes."""
    rng = np.random.default_rng(0)
    if getattr(model, "inputs", None) is None:
        return rng.normal(size=(6, 8, 8, 3)).astype("float32")
    given = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(
        lambda x: rng.normal(size=(6, *x.shape[1:])).astype("float32"), given
    )


def _assert_same(a, b, **tolerance):
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.fixture(scope="module", params=MODELS)
def classifier(request):
    """A classifier, inputs for it and its outputs."""
    keras.utils.set_random_seed(1)
    base = MODELS[request.param]()
    inputs = _inputs(base)
    return base, inputs, base(inputs, training=False)


@pytest.mark.parametrize(
    ("view", "permutation", "run_eagerly"),
    [("crop", "cross_filter", True), ("block", "in_filter", False)],
)
def test_classifier_is_fitted_rebuilt_and_saved(
    classifier, view, permutation, run_eagerly, tmp_path
):
    base, inputs, outputs = classifier
    nern = keras_nern.NeRNModel(base, 16, permutation=permutation, view=view)
    nern.compile(reconstruction_steps=2, run_eagerly=run_eagerly)
    history = nern.fit(inputs, epochs=1, batch_size=6, verbose=0).history
    assert history["logits_loss"][0] > 0
    assert history["feature_map_loss"][0] > 0
    assert set(nern.evaluate(inputs, verbose=0, return_dict=True)) >= {"agreement", "loss"}
    _assert_same(base(inputs, training=False), outputs)

    rebuilt, predicted = nern.reconstruct(), nern(inputs)
    _assert_same(rebuilt(inputs, training=False), predicted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(keras.tree.flatten(predicted)[0], keras.tree.flatten(outputs)[0])
    for kernel, copy in zip(Blocks(base).kernels, Blocks(rebuilt).kernels, strict=True):
        copy.variable.assign(kernel.variable)
    _assert_same(rebuilt(inputs, training=False), outputs)

    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    _assert_same(loaded(inputs), predicted, rtol=1e-5, atol=1e-6)


def test_include_and_exclude_choose_the_represented_layers(tmp_path):
    base = _inception()
    inputs = _inputs(base)
    stem, one, *_ = [layer.name for layer in base.layers if isinstance(layer, layers.Conv2D)]
    nern = keras_nern.NeRNModel(
        base, 8, include=lambda layer: "conv" in layer.name, exclude=re.compile(f"^{stem}$")
    )
    assert stem not in nern.predict_kernels()
    assert one in nern.predict_kernels()
    rebuilt = nern.reconstruct()
    np.testing.assert_array_equal(
        rebuilt.get_layer(stem).kernel.numpy(), base.get_layer(stem).kernel.numpy()
    )
    weights = 7 * 7 * 3 * 4 + 4
    assert re.search(rf"Conv2D +{stem} +{weights} +in exclude", str(nern.summary_table()))
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    assert list(loaded.predict_kernels()) == list(nern.predict_kernels())
    _assert_same(loaded(inputs), nern(inputs), rtol=1e-5, atol=1e-6)


def test_include_dense_represents_dense_layers():
    base = _sequential((8, 8, 3), layers.Conv2D(4, 3))
    nern = keras_nern.NeRNModel(base, 8, include_dense=True, view="block", block_size=4)
    kernels = nern.predict_kernels()
    assert [kernel.shape for kernel in kernels.values()] == [(3, 3, 3, 4), (144, 3)]
    assert nern.predictor.output_layer.units == 16


def test_accuracy_averages_over_several_outputs():
    base = _named_inputs_and_outputs()
    inputs = _inputs(base)
    nern = keras_nern.NeRNModel(base, 8)
    nern.compile(run_eagerly=True)
    classes = {name: np.argmax(x, axis=-1) for name, x in nern.predict(inputs, verbose=0).items()}
    result = nern.evaluate(inputs, classes, verbose=0, return_dict=True)
    assert result["accuracy"] == 1
    wrong = {**classes, "a": (classes["a"] + 1) % 3}
    assert nern.evaluate(inputs, wrong, verbose=0, return_dict=True)["accuracy"] == 0.5


def test_raises_for_inputs_of_other_shapes():
    nern = keras_nern.NeRNModel(_two_inputs(), 8)
    images, profiles = np.zeros((2, 8, 8, 3)), np.zeros((2, 9))
    message = r"shape \(batch, 8, 8, 3\), \(batch, 10\), .*Received: \(2, 8, 8, 3\), \(2, 9\)"
    with pytest.raises(ValueError, match=message):
        nern.fit([images, profiles])
    with pytest.raises(ValueError, match=r"inputs for \['image', 'profile'\]\. Received: 1 "):
        nern.fit(images)
