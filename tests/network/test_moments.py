import keras
import numpy as np
import pytest
from peaks import grows_by_at_most

from keras_nern import losses
from keras_nern.network.moments import second_moments
from keras_nern.network.selection import find_kernels

RNG = np.random.default_rng(0)

LAYERS = {
    "plain": lambda: keras.layers.Conv2D(4, 3, use_bias=False),
    "strided, same": lambda: keras.layers.Conv2D(4, 3, strides=2, padding="same"),
    "dilated": lambda: keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same"),
    "in groups": lambda: keras.layers.Conv2D(4, 3, groups=2),
    "oblong": lambda: keras.layers.Conv2D(4, (1, 5), padding="same"),
    "1x1": lambda: keras.layers.Conv2D(4, 1, strides=2),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("normalized", [False, True])
def test_the_output_error_is_that_of_the_layer(make, normalized):
    """Compares with the convolution, run with the error in place of its kernel."""
    layer = make()
    layer.bias_initializer = keras.initializers.Constant(7.0)  # the bias has no error
    bn = keras.layers.BatchNormalization(epsilon=0.1)
    tail = [bn] if normalized else []
    base = keras.Sequential([keras.Input((9, 8, 2)), layer, *tail, keras.layers.Flatten()])
    scale = np.ones(4)
    if normalized:
        bn.gamma.assign([0.5, -2.0, 1.0, 3.0])
        bn.moving_variance.assign([1.0, 2.0, 0.5, 4.0])
        scale = np.array([0.5, -2.0, 1.0, 3.0]) / np.sqrt(np.array([1.0, 2.0, 0.5, 4.0]) + 0.1)
    images = RNG.normal(size=(10, 9, 8, 2)).astype("float32")
    kernels, _ = find_kernels(base, include_dense=True)
    moments, found = second_moments(base, kernels, [images[:6], images[6:]])[0]
    np.testing.assert_allclose(found, scale, rtol=1e-5)

    original = layer.kernel.numpy()
    error = RNG.normal(size=original.shape).astype("float32")
    layer.kernel.assign(error)
    changes = layer(images).numpy() - (7.0 if layer.use_bias else 0.0)
    expected = np.mean(np.sum((scale * changes) ** 2, axis=-1))
    got = losses.output_error(error, moments, found)
    assert float(got) == pytest.approx(expected, rel=1e-4)

    layer.kernel.assign(original)
    whole = np.mean(
        np.sum((scale * (layer(images) - (layer.bias if layer.use_bias else 0))) ** 2, -1)
    )
    loss = losses.layer_output_loss([original], [original - error], [moments], [found])
    assert float(loss) == pytest.approx(expected / whole, rel=1e-4)


OTHERS = {
    # input shape, layer, and the axis of the output's filters
    "causal, dilated": (
        (9, 2),
        lambda: keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=2, use_bias=False),
        -1,
    ),
    "causal, strided": (
        (9, 2),
        lambda: keras.layers.Conv1D(4, 3, padding="causal", strides=2, use_bias=False),
        -1,
    ),
    "1-D in groups": ((9, 2), lambda: keras.layers.Conv1D(4, 3, groups=2, use_bias=False), -1),
    "channels first": (
        (2, 9),
        lambda: keras.layers.Conv1D(4, 3, data_format="channels_first", use_bias=False),
        1,
    ),
    "Dense": ((3, 2), lambda: keras.layers.Dense(4, use_bias=False), -1),
}


@pytest.mark.parametrize(("shape", "make", "axis"), OTHERS.values(), ids=OTHERS)
def test_the_output_error_is_that_of_a_dense_or_1d_layer(shape, make, axis):
    layer = make()
    base = keras.Sequential(
        [
            keras.Input(shape),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="head"),
        ]
    )
    images = RNG.normal(size=(10, *shape)).astype("float32")
    kernels, _ = find_kernels(base, include_dense=True)
    moments, scale = second_moments(base, kernels, [images[:6], images[6:]])[0]
    error = RNG.normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(error)
    expected = np.mean(np.sum(layer(images).numpy() ** 2, axis=axis))
    assert float(losses.output_error(error, moments, scale)) == pytest.approx(expected, rel=1e-4)


def test_the_moments_of_a_shared_layer_are_those_of_all_calls():
    conv = keras.layers.Conv2D(2, 3, padding="same", use_bias=False)
    inputs = keras.Input((5, 5, 2))
    base = keras.Model(inputs, keras.layers.Flatten()(conv(3.0 * conv(inputs))))
    images = RNG.normal(size=(4, 5, 5, 2)).astype("float32")
    (gathered,) = second_moments(base, find_kernels(base)[0], [images])
    given = np.concatenate([images, 3.0 * conv(images)])
    error = RNG.normal(size=conv.kernel.shape).astype("float32")
    conv.kernel.assign(error)
    expected = np.mean(np.sum(conv(given).numpy() ** 2, axis=-1))
    got = losses.output_error(error, *gathered)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_other_layers_have_no_moments():
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.SeparableConv2D(2, 3, name="separable"),
            keras.layers.Conv2DTranspose(2, 3, name="transposed"),
            keras.layers.Flatten(),
        ]
    )
    kernels, _ = find_kernels(base)
    gathered = second_moments(base, kernels, [np.ones((1, 8, 8, 1), "float32")])
    assert len(gathered) == len(kernels) == 5
    assert [kernels[i].name for i, one in enumerate(gathered) if one is not None] == ["conv"]


def test_raises_without_batches(base):
    with pytest.raises(ValueError, match="batches must yield at least one batch of inputs"):
        second_moments(base, find_kernels(base)[0], [])


class Mapping(keras.layers.Layer):
    """Runs a convolution in a loop, which is traced although the model runs eagerly."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(2, 3, padding="same")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return keras.ops.vectorized_map(lambda one: self.conv(one[None])[0], x)


def test_layers_in_a_loop_have_no_moments():
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(Mapping()(x)))
    kernels, _ = find_kernels(model)
    first, looped = second_moments(model, kernels, [np.ones((3, 4, 4, 2), "float32")])
    assert first is not None
    assert looped is None


def test_large_images_take_the_memory_of_one(monkeypatch):
    base = keras.Sequential(
        [
            keras.Input((224, 224, 3)),
            keras.layers.Conv2D(8, 3, padding="same", name="first"),
            keras.layers.Conv2D(8, 3, padding="same", name="second"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    kernels, _ = find_kernels(base)
    images = np.random.default_rng(0).normal(size=(24, 224, 224, 3)).astype("float32")
    second_moments(base, kernels, [images[:1]])
    with grows_by_at_most(128):  # 330 MiB for the patches of all images in `second`
        found = second_moments(base, kernels, [images])
    # by parts as at once
    monkeypatch.setattr("keras_nern.network.moments.PIXELS_AT_ONCE", 2**30)
    some = second_moments(base, kernels, [images[:2]])
    monkeypatch.undo()
    for one, other in zip(some, second_moments(base, kernels, [images[:2]]), strict=True):
        np.testing.assert_allclose(one.moments, other.moments, rtol=1e-5, atol=1e-5)
    assert found[1].moments.shape == (1, 72, 72)
