import keras
import numpy as np
import pytest

from keras_nern.network import copying
from keras_nern.network.kernels import walk_layers

L = keras.layers
RNG = np.random.default_rng(0)


def _copy(model):
    return copying.copy_model(model, keras.saving.serialize_keras_object(model))


def _model(*layers, name="net"):
    return keras.Sequential([keras.Input((4, 4, 2)), L.Conv2D(2, 3), *layers], name=name)


@keras.saving.register_keras_serializable("tests")
class Everything(L.Layer):
    """State in a weight of another form, a file and a seed."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.word = "before"
        self.seed = keras.random.SeedGenerator()

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale

    def save_own_variables(self, store):
        store["square"] = self.scale**2

    def load_own_variables(self, store):
        self.scale.assign(keras.ops.sqrt(np.array(store["square"])))

    def save_assets(self, folder):
        with open(f"{folder}/word.txt", "w") as file:
            file.write(self.word)

    def load_assets(self, folder):
        with open(f"{folder}/word.txt") as file:
            self.word = file.read()


def _everything():
    layer = Everything(name="all")
    model = _model(layer)
    layer.scale.assign([2.0, 4.0])
    layer.word = "after"
    keras.random.normal((1,), seed=layer.seed)
    return model, layer


def test_a_copy_has_all_state():
    model, layer = _everything()
    copy = _copy(model)
    twin = copy.get_layer("all")
    np.testing.assert_array_equal(twin.scale, [2.0, 4.0])
    assert twin.word == "after"
    np.testing.assert_array_equal(twin.seed.state, layer.seed.state)
    assert twin.scale is not layer.scale
    assert [path for path, *_ in copying.twins(model, copy)] == [
        "net",
        "input_layer",
        "conv2d",
        "all",
    ]
    assert all(copying.save_alike(a, b) for _, a, b in copying.twins(model, copy))
    twin.word = "other"
    assert not copying.save_alike(layer, twin)
    twin.word = "after"
    twin.scale.assign([2.0, 3.0])
    assert not copying.save_alike(layer, twin)


def test_a_copy_of_a_quantized_model_has_each_weight_in_its_place():
    dense = L.Dense(3, name="dense")
    model = _model(L.Flatten(), dense)
    dense.quantize("int8")
    images = RNG.normal(size=(2, 4, 4, 2)).astype("float32")
    np.testing.assert_array_equal(_copy(model)(images), model(images))


@keras.saving.register_keras_serializable("tests")
class Branching(keras.Model):
    """Layers that inference does not reach, in a list and in a nested model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(2, 3)
        self.extra = [keras.Sequential([L.Conv2D(3, 1), L.BatchNormalization()]), L.PReLU()]
        self.unused = L.Conv2D(5, 1)

    def call(self, x, training=None):
        x = self.conv(x)
        if training:
            for layer in self.extra:
                x = layer(x)
        return x


def _branching():
    model, images = Branching(name="net"), np.ones((2, 4, 4, 2), "float32")
    model(images)
    model(images, training=True)
    return model


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_layers_that_only_training_reaches_are_built():
    model = _branching()
    model.extra[0].layers[1].moving_mean.assign([1.0, 2.0, 3.0])
    rebuilt = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert len(rebuilt.weights) < len(model.weights)
    copying.build_from_configs(rebuilt, copying.build_configs(model))
    for copy in (_copy(model), rebuilt):
        shapes = [[tuple(w.shape) for w in one.weights] for one in (model, copy)]
        assert shapes[0] == shapes[1]
        assert not copy.unused.built
    np.testing.assert_array_equal(_copy(model).extra[0].layers[1].moving_mean, [1.0, 2.0, 3.0])


def _tie(layer, other):
    layer._tracker.unlock()
    layer._trainable_variables.remove(layer._kernel)
    layer._kernel = other._kernel
    layer._tracker.lock()


def test_raises_for_weights_that_the_config_does_not_share():
    first, second = L.Conv2D(2, 1, name="first"), L.Conv2D(2, 1, name="second")
    model = _model(first, second)
    assert not copying.shares_weights(model)
    _tie(second, first)
    assert copying.shares_weights(model)
    message = "which layers share weights. Received: 'second' of 'net', which shares a weight"
    with pytest.raises(ValueError, match=message):
        _copy(model)


def test_layers_that_are_called_twice_or_contain_others_share_no_weights():
    conv = L.Conv2D(2, 1)
    assert not copying.shares_weights(_model(conv, conv, L.SpectralNormalization(L.Conv2D(2, 1))))


@keras.saving.register_keras_serializable("tests")
class Growing(L.Layer):
    """A layer whose config makes one more sublayer each time."""

    def __init__(self, count=1, **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.inner = [L.Conv2D(2, 1) for _ in range(count)]

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)

    def call(self, x):
        return self.inner[0](x)

    def get_config(self):
        return {**super().get_config(), "count": self.count + 1}


@keras.saving.register_keras_serializable("tests")
class Failing(L.Layer):
    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class Stubborn(L.Layer):
    def call(self, x):
        return x

    def save_own_variables(self, store):
        store["table"] = np.ones(3)

    def load_own_variables(self, store):
        raise KeyError("size")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Growing, "builds the same layers. Received: 'net' with 4 layers, whose copy has 5"),
        (
            lambda: Failing(size=3),
            r"can be built from its config. Received: 'net' \(TypeError: .*argument: 'size'\)",
        ),
        (
            lambda: Stubborn(name="own"),
            r"saved state can be loaded into a copy. Received: 'own' of 'net' \(KeyError: 'size'\)",
        ),
    ],
)
def test_raises_for_a_model_that_cannot_be_copied(layer, message):
    with pytest.raises(ValueError, match=message):
        _copy(_model(layer()))


def test_twins_name_the_first_layer_of_another_class():
    others = _model(L.BatchNormalization(), L.ReLU())
    with pytest.raises(ValueError, match=r"Received: 'net' with 4 .*differs from 'one' on"):
        list(copying.twins(_model(L.ReLU(name="one"), L.ReLU()), others))


def _shapes(inputs):
    return keras.tree.map_structure(lambda x: (*x.shape, x.dtype.name), inputs)


@keras.saving.register_keras_serializable("tests")
class OfMany(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(sum(keras.tree.flatten(inputs)))


def _called(inputs):
    model = OfMany()
    model(inputs)
    return model


def _text():
    inputs = keras.Input((), dtype="string"), keras.Input((3,), dtype="int32")
    hashed = keras.ops.cast(L.Hashing(4)(inputs[0]), "float32")
    return keras.Model(inputs, hashed[:, None] + keras.ops.cast(inputs[1], "float32"))


FIVE = np.ones((5, 3), "float32")
PROBED = {
    "one input": (lambda: _model(), (2, 4, 4, 2, "float32")),
    "any size": (
        lambda: keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(2, 3)]),
        (2, 32, 32, 3, "float32"),
    ),
    "a size of at least 100": (
        lambda: keras.Sequential([keras.Input((None, 3)), L.Conv1D(2, 100)]),
        (2, 224, 3, "float32"),
    ),
    "a fixed batch": (
        lambda: keras.Sequential([keras.Input(batch_shape=(3, 4)), L.Dense(2)]),
        (3, 4, "float32"),
    ),
    "text and integers": (_text, ((2, "string"), (2, 3, "int32"))),
    "subclassed": (lambda: _called(FIVE), (2, 3, "float32")),
    "a dict": (
        lambda: _called({"b": FIVE, "a": FIVE}),
        {"a": (2, 3, "float32"), "b": (2, 3, "float32")},
    ),
    "a list": (lambda: _called([FIVE, FIVE]), [(2, 3, "float32")] * 2),
}


@pytest.mark.parametrize(("make", "shapes"), PROBED.values(), ids=PROBED)
def test_probes_with_inputs_that_the_model_takes(make, shapes):
    assert _shapes(copying.probe(make())) == shapes


def test_probes_nothing_if_the_inputs_are_unknown():
    model = OfMany()
    model.dense.build((None, 3))
    model.built = True
    assert copying.probe(model) is None


def test_a_probe_changes_no_variable():
    model = _model(L.BatchNormalization(), L.Dropout(0.5, seed=1))
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    copying.probe(model)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable)


@pytest.mark.parametrize(
    ("outputs", "others", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ({"a": [0.0], "b": [2.0]}, {"a": [0.5], "b": [2.0]}, 0.5),  # 0.5 of 1, as all are 0
        ([1, 2], [1, 2], 0.0),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([1.0, 2.0], [1.0, np.nan], np.nan),
        ([1.0, 2.0], [1.0, np.inf], np.inf),
        ([1.0, 2.0], [[1.0, 2.0]], np.inf),
    ],
)
def test_distances_are_relative_to_the_largest_number(outputs, others, expected):
    outputs, others = (
        {"x": np.array(one)} if isinstance(one, list) else {k: np.array(v) for k, v in one.items()}
        for one in (outputs, others)
    )
    np.testing.assert_equal(copying.distance(outputs, others), expected)


def test_compile_configs_are_removed_at_every_depth():
    inner = _model(name="inner")
    inner.compile("adam", "mse")
    model = keras.Sequential([inner, L.Flatten()])
    model.compile("sgd", "mse")
    config = keras.saving.serialize_keras_object(model)
    assert str(config).count("compile_config") == 2
    assert "compile_config" not in str(copying.without_compile_configs(config))
    copy = _copy(model)
    assert [path for path, _ in walk_layers(copy)] == [path for path, _ in walk_layers(model)]
