import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.network.original import OriginalNetwork

RNG = np.random.default_rng(0)
SHAPES = [(3, 3, 1, 4), (3, 3, 4, 6), (1, 1, 4, 6)]  # of the kernels of `base`


def _layer_outputs(model, names, inputs):
    return [keras.Model(model.inputs[0], model.get_layer(name).output)(inputs) for name in names]


def _assert_equal(seen, expected):
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_feature_maps_follow_normalization_and_precede_activation(base, images):
    maps, outputs, logits, *_ = OriginalNetwork(base).forward(images)
    _assert_equal(maps, _layer_outputs(base, ("stem_bn", "conv_bn", "shortcut"), images))
    np.testing.assert_array_equal(outputs, base(images, training=False))
    np.testing.assert_array_equal(logits, [outputs])


def _sequential_layers():
    return [
        keras.Input((6, 6, 1)),
        keras.layers.Conv2D(2, 3, use_bias=False),
        keras.layers.BatchNormalization(name="bn"),
        keras.layers.ReLU(),
        keras.layers.Conv2D(2, 3, name="last"),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ]


def _added():
    model = keras.Sequential()
    for layer in _sequential_layers():
        model.add(layer)
    return model


SEQUENTIAL = {
    "listed": lambda: keras.Sequential(_sequential_layers()),
    "added": _added,
    "from config": lambda: keras.Sequential.from_config(_added().get_config()),
}


@pytest.mark.parametrize("make", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_feature_maps_of_a_sequential_model(make):
    model = make()
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    x = images = np.random.default_rng(1).normal(size=(2, 6, 6, 1)).astype("float32")
    seen = {}
    for layer in model.layers:
        x = seen[layer.name] = layer(x)
    maps, outputs, *_ = OriginalNetwork(model).forward(images)
    _assert_equal(maps, [seen["bn"], seen["last"]])
    np.testing.assert_allclose(outputs, x, rtol=1e-5)


def test_a_convolution_used_twice_gives_a_feature_map_each_time():
    conv = keras.layers.Conv2D(2, 3, padding="same")
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(conv(conv(inputs))))
    images = RNG.normal(size=(2, 4, 4, 2)).astype("float32")
    once = conv(images)
    seen = OriginalNetwork(model).forward(images)
    _assert_equal(seen.maps, [once, conv(once)])
    np.testing.assert_array_equal(seen.outputs, model(images))


def test_a_convolution_first_used_in_another_model_has_a_feature_map_in_this_one():
    conv = keras.layers.Conv2D(2, 3, padding="same")
    conv(keras.Input((7, 7, 2)))
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(2, 3, name="own")(conv(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    maps = OriginalNetwork(model).forward(np.ones((1, 4, 4, 2), "float32")).maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(1, 4, 4, 2), (1, 2, 2, 2)]


def _headed(*head):
    layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    return keras.Sequential([*layers, *head])


def test_runs_with_other_kernels_as_if_they_were_assigned(base, images):
    original = OriginalNetwork(base)
    rng = np.random.default_rng(5)
    kernels = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    before = base.get_weights()
    outputs = original.functional_call(images, [tf.constant(kernel) for kernel in kernels])
    observed = original.forward(images, [tf.constant(kernel) for kernel in kernels]).outputs
    for a, b in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    copy = keras.models.clone_model(base)
    copy.set_weights(before)
    for name, kernel in zip(("stem", "conv", "shortcut"), kernels, strict=True):
        copy.get_layer(name).kernel.assign(kernel)
    np.testing.assert_allclose(outputs, copy(images), rtol=1e-5)
    np.testing.assert_array_equal(outputs, observed)


def test_gradients_reach_the_kernels_and_match_finite_differences(base, images):
    original = OriginalNetwork(base)
    kernels = [tf.constant(value) for value in original.kernel_values()]

    def loss(kernels):
        return tf.reduce_sum(tf.square(original.functional_call(images, kernels)))

    with tf.GradientTape() as tape:
        tape.watch(kernels)
        value = loss(kernels)
    gradients = tape.gradient(value, kernels)
    for i, gradient in enumerate(gradients):
        step = 1e-3 * gradient / tf.norm(gradient)
        change = [loss([*kernels[:i], kernels[i] + s * step, *kernels[i + 1 :]]) for s in (1, -1)]
        slope = float(change[0] - change[1]) / 2e-3
        assert slope == pytest.approx(float(tf.norm(gradient)), rel=0.02)


def test_layer_scales_are_standard_deviations(base):
    base.get_layer("shortcut").kernel.assign(np.full((1, 1, 4, 6), 0.5))
    expected = [np.std(base.get_layer(name).kernel.numpy()) for name in ("stem", "conv")]
    np.testing.assert_allclose(OriginalNetwork(base).layer_scales(), [*expected, 1], rtol=1e-6)


def test_a_copy_is_not_compiled(base, images):
    base.compile("sgd", "mse")
    original = OriginalNetwork(base)
    assert "compile_config" not in original.architecture()
    copy = original.copy()
    assert not copy.compiled
    np.testing.assert_allclose(copy(images), base(images), rtol=1e-6)


def test_the_digest_depends_on_all_weights(base):
    before = OriginalNetwork(base).digest()
    np.testing.assert_array_equal(before, OriginalNetwork(base).digest())
    base.get_layer("fc").bias.assign([0.0, 0.0, 1e-6])
    assert (OriginalNetwork(base).digest() != before).any()


def _broken():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, name="c"), keras.layers.Flatten()]
    )
    kernel = model.get_layer("c").kernel.numpy()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("c").kernel.assign(kernel)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "resnet", "base must be a built .* Received: 'resnet' of type str"),
        (
            lambda: keras.Sequential([keras.layers.Conv2D(2, 3)]),
            "base must be a built .* not built",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            r"at least one layer to represent. .*include_dense is False",
        ),
        (_broken, "finite weights. Received: '.*c/kernel' with 1 of 18 entries NaN"),
    ],
)
def test_raises_for_a_base_that_cannot_be_represented(make, message):
    with pytest.raises(ValueError, match=message):
        OriginalNetwork(make())


def test_feature_maps_can_be_taken_at_additions(base, images):
    """Additions by layers and operators have feature maps; the addition of a bias has none."""
    (add,) = [layer.name for layer in base.layers if isinstance(layer, keras.layers.Add)]
    _assert_equal(
        OriginalNetwork(base, "additions").forward(images).maps, _layer_outputs(base, [add], images)
    )
    _assert_equal(
        OriginalNetwork(base, "both").forward(images).maps,
        _layer_outputs(base, ["stem_bn", "conv_bn", "shortcut", add], images),
    )
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs) + np.ones(2, "float32")
    x = x + inputs
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    images = RNG.normal(size=(2, 4, 4, 2)).astype("float32")
    maps = OriginalNetwork(model, "additions").forward(images).maps
    _assert_equal(maps, [keras.Model(inputs, x)(images)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("all", "feature_maps must be one of .* Received: feature_maps='all'"),
        ("additions", "Expected a base that adds feature maps.*feature_maps='additions'"),
        ("both", "Expected a base that adds feature maps"),
    ],
)
def test_raises_for_feature_maps_that_the_base_lacks(kind, message):
    with pytest.raises(ValueError, match=message):
        OriginalNetwork(_headed(), kind)


def test_a_normalization_of_another_precision_is_found():
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            keras.layers.Conv2D(2, 3, dtype="mixed_float16"),
            keras.layers.BatchNormalization(dtype="float32"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
        ]
    )
    model.layers[1].moving_mean.assign([1.0, -1.0])
    images = RNG.normal(size=(2, 5, 5, 1)).astype("float32")
    (feature_map,) = OriginalNetwork(model).forward(images).maps
    np.testing.assert_array_equal(feature_map, model.layers[1](model.layers[0](images)))


def test_raises_if_only_biases_and_features_are_added():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3)(inputs) + 3.0
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(2)(x)] * 2))
    with pytest.raises(ValueError, match="Expected a base that adds feature maps"):
        OriginalNetwork(model, "both")


class OwnHead(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(1, 3)

    def call(self, inputs):
        return keras.ops.sigmoid(keras.ops.mean(self.conv(inputs), axis=(1, 2)))


def test_the_output_activation_can_be_given():
    model = OwnHead()
    images = RNG.normal(size=(4, 5, 5, 1)).astype("float32")
    yes = model(images)[:, 0]
    logits = OriginalNetwork(model, output_activation="sigmoid").forward(images).logits[0]
    np.testing.assert_allclose(keras.ops.softmax(logits)[:, 1], yes, rtol=1e-5)
    unknown = OriginalNetwork(model).forward(images).logits[0]  # taken as logits
    np.testing.assert_array_equal(unknown[:, 1], yes)
    named = OriginalNetwork(_headed(keras.layers.Dense(2, "softmax")), output_activation="linear")
    outputs = named.forward(np.ones((1, 4, 4, 1), "float32"))
    np.testing.assert_array_equal(outputs.logits[0], outputs.outputs)
    with pytest.raises(ValueError, match=r"one of \('auto', .* Received: output_activation='relu'"):
        OriginalNetwork(model, output_activation="relu")


def _turns(kind, conv, x):
    """Runs a convolution in a loop or a branch."""
    if kind == "map":
        return keras.ops.map(lambda one: conv(one[None])[0], x)
    if kind == "vectorized_map":
        return keras.ops.vectorized_map(lambda one: conv(one[None])[0], x)
    if kind == "scan":
        return keras.ops.scan(lambda _, one: (conv(one[None])[0],) * 2, x[0], x)[1]
    if kind == "cond":
        return keras.ops.cond(keras.ops.mean(x) > -1e3, lambda: conv(x), lambda: -conv(x))
    return keras.ops.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, conv(y)), (0, x))[1]


@keras.saving.register_keras_serializable("tests")
class Looping(keras.layers.Layer):
    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.conv = kind, keras.layers.Conv2D(2, 3, padding="same")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return _turns(self.kind, self.conv, x)

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("tests")
class LoopingModel(keras.Model):
    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.conv = kind, keras.layers.Conv2D(2, 3, padding="same", name="looped")

    def get_config(self):
        return {"kind": self.kind, "name": self.name}

    def call(self, x):
        return keras.ops.mean(_turns(self.kind, self.conv, x), axis=(1, 2))


LOOPS = ("map", "vectorized_map", "scan", "cond", "while_loop")


def _traced_maps(original, images):
    spec = tf.TensorSpec((None, None, *images.shape[2:]))
    return tf.function(lambda x: original.forward(x).maps, input_signature=[spec])(images)


@pytest.mark.parametrize("kind", LOOPS)
def test_the_feature_map_of_a_loop_is_the_output_of_the_layer_around_it(kind):
    inputs, layer = keras.Input((4, 4, 2)), Looping(kind)
    base = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(layer(inputs)))
    original = OriginalNetwork(base)
    images = RNG.normal(size=(3, 4, 4, 2)).astype("float32")
    _assert_equal(_traced_maps(original, images), [layer(images)])
    assert original.left_out == {}


@pytest.mark.parametrize("kind", LOOPS)
def test_the_feature_map_of_a_loop_outside_of_layers_is_left_out(kind):
    base = LoopingModel(kind)
    images = RNG.normal(size=(3, 4, 4, 2)).astype("float32")
    base(images)
    original = OriginalNetwork(base)
    assert _traced_maps(original, images) == []
    assert original.left_out == {"looped": "it runs in a loop, outside of any layer"}


def test_the_feature_map_of_time_distributed_layers_of_unknown_length_has_all_steps():
    frame = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    )
    inputs, layer = keras.Input((None, 4, 4, 2)), keras.layers.TimeDistributed(frame)
    base = keras.Model(inputs, keras.ops.mean(layer(inputs), axis=(1, 2, 3)))
    original = OriginalNetwork(base)
    # as many clips as frames: Keras (3.15) takes one number for the other in a graph
    clips = RNG.normal(size=(5, 5, 4, 4, 2)).astype("float32")
    _assert_equal(_traced_maps(original, clips), [layer(clips)])
    steps = original.forward(clips).maps  # eager steps are not in a loop
    np.testing.assert_allclose(
        keras.ops.relu(keras.ops.stack(steps, axis=1)), layer(clips), rtol=1e-5
    )


@keras.saving.register_keras_serializable("tests")
class Trained(keras.Model):
    """A convolution that only training reaches."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(2, 3)
        self.extra = keras.layers.Conv2D(2, 3, name="extra")

    def call(self, x, training=None):
        return keras.ops.mean((self.extra if training else self.conv)(x), axis=(1, 2))


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_the_summary_names_layers_whose_feature_maps_are_left_out():
    base, images = Trained(), np.ones((2, 4, 4, 2), "float32")
    base(images, training=True)
    base(images)
    nern = keras_nern.NeRNModel(base, 8, num_layers=2)
    assert "left out" not in str(nern.summary_table())
    nern.compile(run_eagerly=True)
    nern.evaluate(images, verbose=0)
    table = nern.summary_table()
    assert table.left_out == table.to_dict()["left_out"]
    assert table.left_out == {"extra": "it is not called in inference"}
    assert re.search("feature map left out +reason\n-+\nextra +it is not called", str(table))


@keras.saving.register_keras_serializable("tests")
class Assigning(keras.layers.Layer):
    def __init__(self, raw, **kwargs):
        super().__init__(**kwargs)
        self.count = (tf.Variable if raw else keras.Variable)(1.0, trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


def test_layers_may_assign_to_variables_of_keras_only():
    layer = Assigning(raw=False)
    OriginalNetwork(_headed(layer)).forward(np.ones((1, 4, 4, 1), "float32"))
    assert float(layer.count) == 1
    layer = Assigning(raw=True, name="assigning")
    model = _headed(layer)
    before = float(layer.count)
    with pytest.raises(ValueError, match=r"Keras variables only.*'assigning', which assigns to"):
        OriginalNetwork(model)
    assert float(layer.count) == before


def test_raises_for_layers_without_gradients_of_their_kernels():
    with keras.RematScope(mode="full"):
        model = _headed(keras.layers.Dense(2, name="last"))
    message = r"outside of `keras.RematScope`.* Received: 'conv2d', made in a scope of mode 'full'"
    with pytest.raises(ValueError, match=message):
        OriginalNetwork(model)
    OriginalNetwork(keras.models.clone_model(model))


def test_stateful_recurrent_layers_start_from_zero():
    inputs = keras.Input(batch_shape=(2, 6, 2))
    rnn = keras.layers.LSTM(3, stateful=True)
    model = keras.Model(inputs, rnn(keras.layers.Conv1D(4, 3)(inputs)))
    series = RNG.normal(size=(2, 6, 2)).astype("float32")
    first = model(series)
    states = [keras.ops.convert_to_numpy(state) for state in rnn.states]
    assert any(state.any() for state in states)
    original = OriginalNetwork(model)
    np.testing.assert_array_equal(original.functional_call(series), first)
    np.testing.assert_array_equal(original.copy()(series), first)
    _assert_equal(rnn.states, states)


def test_a_copy_holds_no_compile_settings_of_nested_models(tmp_path):
    inner = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    inner.compile("adam", "mse")
    base = keras.Sequential([inner, keras.layers.Flatten()])
    assert "compile_config" not in str(OriginalNetwork(base).architecture())


@keras.saving.register_keras_serializable("tests")
class Forgetful(keras.layers.Layer):
    factor = 1.0

    def call(self, x):
        return x * self.factor


def test_raises_for_a_copy_that_gives_other_outputs():
    layer = Forgetful(name="scaling")
    original = OriginalNetwork(_headed(layer))
    original.check_copyable()
    layer.factor = 2.0
    message = r"whose copy differs by 0\.5 of the largest output, from 'scaling' \(Forgetful\) on"
    with pytest.raises(ValueError, match=message):
        original.copy()


def test_raises_for_a_copy_that_cannot_be_run():
    original = OriginalNetwork(_headed())

    def fail(*args, **kwargs):
        raise TypeError("no such thing")

    with pytest.raises(ValueError, match=r"whose file, .* can be run.*\(TypeError: no such thing"):
        original.check_copy(fail, purpose="file")
