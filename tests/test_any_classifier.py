"""What users have: every kind of layer and model is wrapped, trained and rebuilt."""

import re

import keras
import numpy as np
import pytest

import keras_nern

layers = keras.layers
RNG = np.random.default_rng(0)


def _sequential(shape, *inner):
    return keras.Sequential([keras.Input(shape), *inner, layers.Flatten(), layers.Dense(3)])


def _inception():
    """Several sizes side by side, a stem of 7x7, no batch normalisation."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 7, strides=2, padding="same", activation="relu")(inputs)
    branches = [
        layers.Conv2D(3, size, padding="same", activation="relu")(x) for size in (1, (1, 7), (7, 1))
    ]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def _nested():
    """A Sequential in a functional in a functional model, and a wrapper; augmentation."""
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


def _numbers_added():
    """As in MobileNetV3: Keras's Add layer, and the operation of that name beside it."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same")(inputs)
    x = layers.Add()([x, inputs])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.ReLU(6.0)(x + 3.0))))


def _shared():
    conv = layers.Conv2D(3, 3, padding="same")
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(conv(layers.ReLU()(conv(inputs))))
    return keras.Model(inputs, layers.Dense(3)(x))


def _frozen():
    model = _sequential((8, 8, 3), layers.Conv2D(4, 3), layers.Conv2D(4, 3))
    model.layers[0].trainable = False
    return model


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
    "Conv1D": lambda: _sequential((12, 3), layers.Conv1D(4, 5), layers.Conv1D(4, 3)),
    "Conv1D, causal and dilated": lambda: _sequential(
        (12, 3), layers.Conv1D(4, 3, padding="causal", dilation_rate=2), layers.BatchNormalization()
    ),
    "Conv3D": lambda: _sequential((6, 6, 6, 2), layers.Conv3D(3, 3), layers.Conv3D(4, (1, 2, 2))),
    "depthwise": lambda: _sequential(
        (8, 8, 3), layers.DepthwiseConv2D(3), layers.BatchNormalization(), layers.Conv2D(4, 1)
    ),
    "separable": lambda: _sequential((8, 8, 3), layers.SeparableConv2D(5, 3)),
    "transposed": lambda: _sequential((8, 8, 3), layers.Conv2DTranspose(5, 3, strides=2)),
    "groups and dilation": lambda: _sequential(
        (9, 9, 4), layers.Conv2D(6, 3, groups=2), layers.Conv2D(4, 3, dilation_rate=2)
    ),
    "frozen": _frozen,
    "many sizes": _inception,
    "nested": _nested,
    "numbers added": _numbers_added,
    "shared": _shared,
    "two inputs": _two_inputs,
    "named inputs and outputs": _named_inputs_and_outputs,
    "subclassed": _subclassed,
}


def _inputs(model):
    if getattr(model, "inputs", None) is None:
        return RNG.normal(size=(6, 8, 8, 3)).astype("float32")
    given = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(
        lambda x: RNG.normal(size=(6, *x.shape[1:])).astype("float32"), given
    )


def _assert_same(a, b, **tolerance):
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.parametrize("view", ["crop", "block"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_is_wrapped_trained_and_rebuilt(make, view):
    base = make()
    inputs = _inputs(base)
    before = base(inputs, training=False)
    nern = keras_nern.NeRNModel(base, 16, permutation="cross_filter", view=view)
    nern.compile(reconstruction_steps=2, run_eagerly=view == "crop")  # quicker for three steps
    history = nern.fit(inputs, epochs=1, batch_size=6, verbose=0).history
    assert history["logits_loss"][0] > 0
    assert history["feature_map_loss"][0] > 0
    _assert_same(base(inputs, training=False), before)
    rebuilt = nern.reconstruct()
    _assert_same(rebuilt(inputs, training=False), nern(inputs), rtol=1e-4, atol=1e-5)
    assert not np.allclose(keras.tree.flatten(rebuilt(inputs))[0], keras.tree.flatten(before)[0])
    assert set(nern.evaluate(inputs, verbose=0, return_dict=True)) >= {"agreement", "loss"}
    # and with the original kernels put back it is the base
    for kernel, copy in zip(
        keras_nern.network.blocks.Blocks(base).kernels,
        keras_nern.network.blocks.Blocks(rebuilt).kernels,
        strict=True,
    ):
        copy.variable.assign(kernel.variable)
    _assert_same(rebuilt(inputs, training=False), before)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_is_saved_and_loaded(make, tmp_path):
    base = make()
    inputs = _inputs(base)
    nern = keras_nern.NeRNModel(base, 8, permutation="in_filter", view="block")
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    _assert_same(loaded(inputs), nern(inputs), rtol=1e-5, atol=1e-6)


def test_what_is_represented_can_be_chosen(tmp_path):
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
    assert f"kept: Conv2D, {stem}, {7 * 7 * 3 * 4 + 4} weights (in exclude)" in str(
        nern.summary_table()
    )
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    assert list(loaded.predict_kernels()) == list(nern.predict_kernels())
    _assert_same(loaded(inputs), nern(inputs), rtol=1e-5, atol=1e-6)


def test_dense_layers_join_on_request():
    base = _sequential((8, 8, 3), layers.Conv2D(4, 3))
    nern = keras_nern.NeRNModel(base, 8, include_dense=True, view="block", block_size=4)
    kernels = nern.predict_kernels()
    assert [kernel.shape for kernel in kernels.values()] == [(3, 3, 3, 4), (144, 3)]
    assert nern.predictor.output_layer.units == 16


def test_labels_of_several_outputs_are_counted():
    base = _named_inputs_and_outputs()
    inputs = _inputs(base)
    nern = keras_nern.NeRNModel(base, 8)
    classes = {name: np.argmax(x, axis=-1) for name, x in nern.predict(inputs, verbose=0).items()}
    result = nern.evaluate(inputs, classes, verbose=0, return_dict=True)
    assert result["accuracy"] == 1
    wrong = {**classes, "a": classes["a"] + 1}
    assert nern.evaluate(inputs, wrong, verbose=0, return_dict=True)["accuracy"] == 0.5


def test_inputs_that_do_not_fit_are_refused():
    nern = keras_nern.NeRNModel(_two_inputs(), 8)
    images, profiles = np.zeros((2, 8, 8, 3)), np.zeros((2, 9))
    message = r"shape \(batch, 8, 8, 3\), \(batch, 10\), .*Received: \(2, 8, 8, 3\), \(2, 9\)"
    with pytest.raises(ValueError, match=message):
        nern.fit([images, profiles])
    with pytest.raises(ValueError, match=r"Received: \(2, 8, 8, 3\)\."):
        nern.fit(images)
