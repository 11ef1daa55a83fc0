import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from roundtrips import assert_config_round_trip

from keras_nern.regularizers import SmoothnessRegularizer, SumOfRegularizers, add_regularizer

RNG = np.random.default_rng(0)


def _cosine_distance(u, v, least=1e-12):
    norms = max(np.linalg.norm(u), least) * max(np.linalg.norm(v), least)
    return 1 - float(u.ravel() @ v.ravel()) / norms


def _slow_penalty(kernel, filters, channels, reduction, distance=_cosine_distance):
    cin, cout = kernel.shape[-2:]
    along_filters = [
        distance(kernel[..., c, f], kernel[..., c, f + 1])
        for c in range(cin)
        for f in range(cout - 1)
    ]
    along_channels = [
        distance(kernel[..., c, f], kernel[..., c + 1, f])
        for c in range(cin - 1)
        for f in range(cout)
    ]
    total = 0.0
    for strength, distances in ((filters, along_filters), (channels, along_channels)):
        if distances:
            total += strength * (np.mean(distances) if reduction == "mean" else np.sum(distances))
    return total


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "shape", [(3, 3, 4, 5), (5, 4, 3), (2, 3, 2, 3, 4), (3, 3, 6, 1), (3, 3, 1, 6), (3, 3, 1, 1)]
)
def test_matches_the_formula(shape, reduction):
    kernel = RNG.normal(size=shape).astype("float32")
    regularizer = SmoothnessRegularizer(0.3, 0.7, reduction)
    expected = _slow_penalty(kernel, 0.3, 0.7, reduction)
    assert float(regularizer(kernel)) == pytest.approx(expected, rel=1e-5)


def test_strengths_are_per_axis():
    kernel = np.zeros((1, 2, 2, 2), "float32")  # equal along channels, orthogonal along filters
    kernel[0, 0, :, 0] = kernel[0, 1, :, 1] = 1
    assert float(SmoothnessRegularizer(filters=2.0, channels=0.0)(kernel)) == 2
    assert float(SmoothnessRegularizer(filters=0.0, channels=2.0)(kernel)) == 0


@pytest.mark.parametrize(("shape", "distance"), [((1, 1, 4, 5), "auto"), ((3, 3, 4, 5), "l2")])
def test_squared_distance_is_in_units_of_the_layers_rms(shape, distance):
    kernel = RNG.normal(size=shape).astype("float32")
    square = np.mean(kernel**2)
    expected = _slow_penalty(
        kernel, 0.3, 0.7, "mean", lambda u, v: float(np.mean((u - v) ** 2)) / square
    )
    regularizer = SmoothnessRegularizer(0.3, 0.7, distance=distance)
    assert float(regularizer(kernel)) == pytest.approx(expected, rel=1e-5)
    assert float(regularizer(1e-3 * kernel)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "distance"),
    [((2, 2, 2, 3), "cosine"), ((2, 2, 2, 3), "l2"), ((1, 1, 3, 4), "auto")],
)
def test_gradient_matches_finite_differences(shape, distance):
    kernel = tf.Variable(RNG.normal(size=shape).astype("float32"))
    regularizer = SmoothnessRegularizer(0.3, 0.7, "sum", distance)
    step = 1e-2
    kernel[..., 1, 2].assign(0.02 * kernel[..., 1, 2])  # one kernel below the least norm
    with tf.GradientTape() as tape:
        penalty = regularizer(kernel)
    gradient = tape.gradient(penalty, kernel).numpy()
    for index in np.ndindex(shape):
        values = []
        for sign in (1, -1):
            moved = kernel.numpy()
            moved[index] += sign * step
            values.append(float(regularizer(moved)))
        assert gradient[index] == pytest.approx((values[0] - values[1]) / (2 * step), abs=5e-3)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("zeros", ["one", "all"])
def test_penalty_and_gradient_of_zero_kernels_are_finite(distance, zeros):
    kernel = RNG.normal(size=(3, 3, 3, 4)).astype("float32")
    if zeros == "all":
        kernel[:] = 0
    kernel[:, :, 1, 2] = 0
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        penalty = SmoothnessRegularizer(1.0, 1.0, distance=distance)(variable)
    gradient = tape.gradient(penalty, variable).numpy()
    assert math.isfinite(float(penalty))
    assert np.isfinite(gradient).all()
    if distance == "cosine":
        assert float(penalty) == pytest.approx(_slow_penalty(kernel, 1, 1, "mean"), rel=1e-5)


def _least_norm(kernel):
    """Computes a tenth of the root mean square of the norms."""
    return 0.1 * np.sqrt(np.mean(np.sum(kernel**2, axis=(0, 1), dtype="float64")))


@pytest.mark.parametrize("norm", [1e-2, 1e-6, 1e-9, 1e-11])
def test_small_kernels_do_not_outweigh_the_others(norm):
    kernel = RNG.normal(size=(3, 3, 6, 6)).astype("float32")
    kernel[:, :, 2, 3] *= norm / np.linalg.norm(kernel[:, :, 2, 3])
    least = _least_norm(kernel)
    expected = _slow_penalty(kernel, 1, 1, "mean", lambda u, v: _cosine_distance(u, v, least))
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        penalty = SmoothnessRegularizer(1.0, 1.0)(variable)
    assert float(penalty) == pytest.approx(expected, rel=1e-5)
    # the small kernel is in 4 of the 30 + 30 pairs, each with a gradient of at most 1 / least
    gradient = tape.gradient(penalty, variable).numpy()
    assert np.linalg.norm(gradient[:, :, 2, 3]) <= 4 / 30 / least
    assert np.linalg.norm(gradient[:, :, 2, 3]) > 0


@pytest.mark.parametrize("name", ["smoothness_regularizer", "SmoothnessRegularizer"])
def test_regularizer_is_found_by_name(name):
    layer = keras.layers.Conv2D(4, 3, kernel_regularizer=name)
    layer.build((None, 8, 8, 3))
    (loss,) = layer.losses
    expected = _slow_penalty(layer.kernel.numpy(), 1e-2, 1e-2, "mean")
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_config_round_trips():
    copy = assert_config_round_trip(SmoothnessRegularizer(0.1, 0.2, "sum", "l2"))
    assert (copy.filters, copy.channels, copy.reduction, copy.distance) == (0.1, 0.2, "sum", "l2")
    both = assert_config_round_trip(SumOfRegularizers([keras.regularizers.L2(0.1), copy]))
    assert [type(one).__name__ for one in both.regularizers] == ["L2", "SmoothnessRegularizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": -1.0}, "filters must be a finite number of at least 0. .*filters=-1.0"),
        ({"channels": math.inf}, "channels must be a finite number.*channels=inf"),
        ({"filters": math.nan}, "filters must be a finite number.*filters=nan"),
        ({"reduction": "max"}, "reduction must be one of .*reduction='max'"),
        ({"distance": "l1"}, "distance must be one of .*distance='l1'"),
    ],
)
def test_raises_for_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SmoothnessRegularizer(**arguments)


def test_raises_for_a_dense_kernel():
    with pytest.raises(ValueError, match=r"\(\.\.\., channels, filters\)\. Received: .*\(3, 4\)"):
        SmoothnessRegularizer()(np.zeros((3, 4), "float32"))


def _classifier(**kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="plain"),
            keras.Sequential([keras.layers.Conv2D(4, 3, name="inner", **kwargs)], name="nested"),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            keras.layers.SeparableConv2D(3, 2, name="separable"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )


def test_is_added_to_every_convolution_of_a_model(tmp_path):
    model = _classifier(kernel_regularizer=keras.regularizers.L2(0.5))
    weights = model.get_weights()
    assert add_regularizer(model, SmoothnessRegularizer(0.1, 0.1)) is model
    inner = model.get_layer("nested").get_layer("inner")
    separable = model.get_layer("separable")
    kernels = [
        model.get_layer("plain").kernel,
        inner.kernel,
        model.get_layer("depthwise").kernel,
        separable.depthwise_kernel,
    ]
    expected = sum(_slow_penalty(kernel.numpy(), 0.1, 0.1, "mean") for kernel in kernels)
    expected += 0.5 * np.sum(inner.kernel.numpy() ** 2)
    expected += float(SmoothnessRegularizer(0.1, 0.1)(separable.pointwise_kernel))
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(sum(loaded.losses)) == pytest.approx(expected, rel=1e-5)


def test_is_added_to_a_model_in_training():
    model = _classifier()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = RNG.normal(size=(4, 8, 8, 3)), np.zeros(4)
    arguments = {"batch_size": 4, "epochs": 1, "verbose": 0}
    model.optimizer.learning_rate = 0.0
    model.evaluate(images, labels, verbose=0)
    before = model.fit(images, labels, **arguments).history["loss"][0]
    add_regularizer(model, SmoothnessRegularizer(1.0, 1.0))
    after = model.fit(images, labels, **arguments).history["loss"][0]
    assert after - before == pytest.approx(float(sum(model.losses)), rel=1e-4)
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(after, rel=1e-5)


def test_is_added_to_selected_layers_only():
    model = _classifier()
    add_regularizer(model, layers=lambda layer: layer.name == "inner")
    inner = model.get_layer("nested").get_layer("inner")
    assert isinstance(inner.kernel.regularizer, SmoothnessRegularizer)
    assert model.get_layer("plain").kernel.regularizer is None
    with pytest.raises(ValueError, match=r"at least one convolution to regularize.*'plain'"):
        add_regularizer(model, layers=lambda layer: False)


@pytest.mark.parametrize("layers", ["nested/inner", ["inner"], re.compile("^nested/"), ("inner",)])
def test_layers_are_selected_as_for_a_representation(layers):
    model = _classifier()
    add_regularizer(model, layers=layers)
    assert model.get_layer("nested").get_layer("inner").kernel.regularizer is not None
    assert model.get_layer("plain").kernel.regularizer is None


def test_raises_for_unknown_layers():
    with pytest.raises(ValueError, match=r"layers must name layers .*Received: \['outer'\]"):
        add_regularizer(_classifier(), layers=["plain", "outer"])


def test_raises_for_a_model_that_is_not_built():
    model = keras.Sequential([keras.layers.Conv2D(2, 3)], name="unbuilt")
    with pytest.raises(ValueError, match=r"model must be a built keras.Model.*Received: 'unbuilt'"):
        add_regularizer(model)


def test_training_with_the_regularizer_makes_neighboring_kernels_similar():
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3)])
    add_regularizer(model, SmoothnessRegularizer(1.0, 1.0))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(np.zeros((100, 8, 8, 4)), np.zeros((100, 6, 6, 6)), batch_size=1, verbose=0)
    assert float(model.losses[0]) < 0.1
