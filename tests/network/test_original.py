import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.network.original import OriginalNetwork
from keras_nern.network.recording import capture_calls, output_activation

RNG = np.random.default_rng(0)
SHAPES = [(3, 3, 1, 4), (3, 3, 4, 6), (1, 1, 4, 6)]  # of the kernels of `base`


def _layer_outputs(model, names, inputs):
    return [keras.Model(model.inputs[0], model.get_layer(name).output)(inputs) for name in names]


def _assert_equal(seen, expected):
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_feature_maps_are_taken_after_normalisation_before_activation(base, images):
    maps = OriginalNetwork(base).observe(images).maps
    _assert_equal(maps, _layer_outputs(base, ("stem_bn", "conv_bn", "shortcut"), images))


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
    maps, outputs, _ = OriginalNetwork(model).observe(images)
    _assert_equal(maps, [seen["bn"], seen["last"]])
    np.testing.assert_allclose(outputs, x, rtol=1e-5)


def test_a_convolution_used_twice_gives_a_feature_map_each_time():
    conv = keras.layers.Conv2D(2, 3, padding="same")
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(conv(conv(inputs))))
    images = RNG.normal(size=(2, 4, 4, 2)).astype("float32")
    once = conv(images)
    seen = OriginalNetwork(model).observe(images)
    _assert_equal(seen.maps, [once, conv(once)])
    np.testing.assert_array_equal(seen.outputs, model(images))


def test_a_convolution_first_used_in_another_model_is_observed_in_this_one():
    conv = keras.layers.Conv2D(2, 3, padding="same")
    conv(keras.Input((7, 7, 2)))
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(2, 3, name="own")(conv(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    maps = OriginalNetwork(model).observe(np.ones((1, 4, 4, 2), "float32")).maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(1, 4, 4, 2), (1, 2, 2, 2)]


def _headed(*head):
    layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    return keras.Sequential([*layers, *head])


def _functional_head(operation):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
    return keras.Model(inputs, operation(keras.layers.Dense(2)(x)))


def _quantized(model):
    model.layers[-1].quantize("int8")
    return model


SOFTMAX, SIGMOID = keras.activations.softmax, keras.activations.sigmoid
HEADS = {
    "logits": (lambda: _headed(keras.layers.Dense(2)), keras.activations.linear),
    "softmax": (lambda: _headed(keras.layers.Dense(2, activation="softmax")), SOFTMAX),
    "layer": (lambda: _headed(keras.layers.Dense(2), keras.layers.Softmax()), SOFTMAX),
    "activation": (
        lambda: _headed(keras.layers.Dense(2), keras.layers.Activation("sigmoid")),
        SIGMOID,
    ),
    "operation": (lambda: _functional_head(keras.ops.softmax), SOFTMAX),
    "sigmoid operation": (lambda: _functional_head(keras.ops.sigmoid), SIGMOID),
    "reshaped": (
        lambda: _headed(
            keras.layers.Dense(1, activation="sigmoid"),
            keras.layers.Reshape((1, 1)),
            keras.layers.Identity(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
        ),
        SIGMOID,
    ),
    "hard sigmoid": (lambda: _headed(keras.layers.Dense(1, activation="hard_sigmoid")), SIGMOID),
    "function of ops": (
        lambda: _headed(keras.layers.Dense(2, activation=keras.ops.softmax)),
        SOFTMAX,
    ),
    "function of tf.nn": (
        lambda: _headed(keras.layers.Dense(2, activation=tf.nn.softmax)),
        SOFTMAX,
    ),
    "linear after it": (
        lambda: _headed(
            keras.layers.Dense(2, activation="sigmoid"), keras.layers.Activation("linear")
        ),
        SIGMOID,
    ),
    "another activation": (
        lambda: _headed(keras.layers.Dense(2, activation="relu")),
        keras.activations.relu,
    ),
    "of float16, cast": (
        lambda: _headed(
            keras.layers.Dense(2, activation="softmax", dtype="mixed_float16"),
            keras.layers.Activation("linear", dtype="float32"),
            keras.layers.Reshape((1, 2), dtype="float16"),
        ),
        SOFTMAX,
    ),
    "quantized": (lambda: _quantized(_headed(keras.layers.Dense(2, "softmax"))), SOFTMAX),
    "nested": (
        lambda: keras.Sequential(
            [keras.Input((4, 4, 1)), _headed(keras.layers.Dense(1, activation="sigmoid"))]
        ),
        SIGMOID,
    ),
}


@pytest.mark.parametrize(("make", "activation"), HEADS.values(), ids=HEADS)
def test_knows_what_the_outputs_are(make, activation):
    model = make()
    with capture_calls(model) as calls:
        outputs = model(np.ones((1, 4, 4, 1), "float32"))
    found = output_activation(calls, outputs)
    assert (found or keras.activations.linear) is activation


def test_observes_the_network_with_its_own_kernels(base, images):
    maps, outputs, _ = OriginalNetwork(base).observe(images)
    np.testing.assert_array_equal(outputs, base(images, training=False))
    reference = keras.Model(base.inputs[0], base.get_layer("conv_bn").output)
    np.testing.assert_array_equal(maps[1], reference(images, training=False))


def test_runs_as_if_other_kernels_had_been_assigned(base, images):
    original = OriginalNetwork(base)
    rng = np.random.default_rng(5)
    kernels = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    before = base.get_weights()
    outputs = original.functional_call(images, [tf.constant(kernel) for kernel in kernels])
    observed = original.observe(images, [tf.constant(kernel) for kernel in kernels]).outputs
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


def test_digest_follows_the_weights(base):
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
        (lambda: keras.Sequential([keras.layers.Conv2D(2, 3)]), "where these are not built"),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            r"at least one layer whose kernel can be represented. .*include_dense is False",
        ),
        (_broken, "finite weights. Received: '.*c/kernel' with 1 of 18 entries NaN"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        OriginalNetwork(make())


def test_feature_maps_can_be_taken_at_additions(base, images):
    """At layers and operators alike, but not where a bias is added."""
    (add,) = [layer.name for layer in base.layers if isinstance(layer, keras.layers.Add)]
    _assert_equal(
        OriginalNetwork(base, "additions").observe(images).maps, _layer_outputs(base, [add], images)
    )
    _assert_equal(
        OriginalNetwork(base, "both").observe(images).maps,
        _layer_outputs(base, ["stem_bn", "conv_bn", "shortcut", add], images),
    )
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs) + np.ones(2, "float32")
    x = x + inputs
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    images = RNG.normal(size=(2, 4, 4, 2)).astype("float32")
    maps = OriginalNetwork(model, "additions").observe(images).maps
    _assert_equal(maps, [keras.Model(inputs, x)(images)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("all", "feature_maps must be one of .* Received: feature_maps='all'"),
        ("additions", "Expected a base that adds feature maps.*feature_maps='additions'"),
        ("both", "Expected a base that adds feature maps"),
    ],
)
def test_refuses_feature_maps_that_are_not_there(kind, message):
    with pytest.raises(ValueError, match=message):
        OriginalNetwork(_headed(), kind)


def test_a_normalisation_of_another_precision_is_the_one_that_follows():
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
    (feature_map,) = OriginalNetwork(model).observe(images).maps
    np.testing.assert_array_equal(feature_map, model.layers[1](model.layers[0](images)))
    convert = keras.DTypePolicy.convert_input
    with pytest.raises(RuntimeError), capture_calls(model):
        raise RuntimeError
    assert keras.DTypePolicy.convert_input is convert  # as it was, whatever happens


def test_refuses_additions_that_are_none_of_maps():
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


def test_what_the_outputs_are_can_be_said():
    model = OwnHead()
    images = RNG.normal(size=(4, 5, 5, 1)).astype("float32")
    yes = model(images)[:, 0]
    logits = OriginalNetwork(model, output_activation="sigmoid").observe(images).logits[0]
    np.testing.assert_allclose(keras.ops.softmax(logits)[:, 1], yes, rtol=1e-5)
    unknown = OriginalNetwork(model).observe(images).logits[0]  # taken for logits
    np.testing.assert_array_equal(unknown[:, 1], yes)
    named = OriginalNetwork(_headed(keras.layers.Dense(2, "softmax")), output_activation="linear")
    outputs = named.observe(np.ones((1, 4, 4, 1), "float32"))
    np.testing.assert_array_equal(outputs.logits[0], outputs.outputs)
    with pytest.raises(ValueError, match=r"one of \('auto', .* Received: output_activation='relu'"):
        OriginalNetwork(model, output_activation="relu")
