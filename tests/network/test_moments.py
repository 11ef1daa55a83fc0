import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
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
@pytest.mark.parametrize("normalised", [False, True])
def test_the_error_is_that_of_the_layers_outputs(make, normalised):
    """Against the convolution run with the error in place of its kernel."""
    layer = make()
    layer.bias_initializer = keras.initializers.Constant(7.0)  # a bias does not change
    bn = keras.layers.BatchNormalization(epsilon=0.1)
    tail = [bn] if normalised else []
    base = keras.Sequential([keras.Input((9, 8, 2)), layer, *tail, keras.layers.Flatten()])
    scale = np.ones(4)
    if normalised:
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
    # and the axis of the outputs' filters
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
def test_the_error_is_that_of_the_outputs_in_one_dimension(shape, make, axis):
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


def test_the_moments_of_a_layer_that_is_called_twice_are_of_both_calls():
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


def test_other_layers_have_no_moments_and_are_learnt_without(images):
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
    gathered = second_moments(base, kernels, [images])
    known = [kernel.name for kernel, one in zip(kernels, gathered, strict=True) if one is not None]
    assert known == ["conv"]
    assert len(kernels) == 5
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.gather_second_moments(images)
    nern.compile(layer_output_weight=1.0, kernel_sampling="all")
    history = nern.fit(steps_per_epoch=60, epochs=2, verbose=0).history
    assert history["layer_output_loss"][1] < history["layer_output_loss"][0] < 2
    assert nern.relative_error() < 1


def test_the_loss_sums_over_layers_and_leaves_out_those_without_moments():
    kernel = np.ones((1, 1, 1, 1), "float32")
    moments, scale = np.ones((1, 1, 1), "float32"), np.ones(1, "float32")
    one = losses.layer_output_loss([kernel], [0 * kernel], [moments], [scale])
    assert float(one) == 1
    two = losses.layer_output_loss(
        [kernel] * 3, [0 * kernel] * 3, [moments, None, moments], [scale] * 3
    )
    assert float(two) == 2


def test_reconstruction_follows_the_layers_outputs(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=24)
    nern.compile(reconstruction_weight=0.0, layer_output_weight=1.0, kernel_sampling="all")
    with pytest.raises(ValueError, match=r"call gather_second_moments\(images\) before fit"):
        nern.fit(steps_per_epoch=1)
    nern.gather_second_moments(images)
    history = nern.fit(steps_per_epoch=100, epochs=2, verbose=0).history
    assert set(history) == {"loss", "reconstruction_loss", "relative_error", "layer_output_loss"}
    np.testing.assert_allclose(history["loss"], history["layer_output_loss"], rtol=1e-6)
    # the loss is the layers' own, run side by side
    expected = 0.0
    kernels = nern.predict_kernels()
    for name, kernel in kernels.items():
        given = keras.Model(base.input, base.get_layer(name).input)(images)
        scale = 1.0
        if name != "shortcut":
            bn = base.get_layer(f"{name}_bn")
            scale = bn.gamma / tf.sqrt(bn.moving_variance + bn.epsilon)
        original = base.get_layer(name).kernel
        change, whole = (
            tf.nn.conv2d(given, weights, 1, "SAME") * scale
            for weights in (kernel - original, original)
        )
        expected += float(tf.reduce_sum(change**2) / tf.reduce_sum(whole**2))
    last = nern.fit(steps_per_epoch=1, verbose=0).history["layer_output_loss"][0]
    assert last == pytest.approx(expected, rel=1e-3)
    assert last < 0.1 * history["layer_output_loss"][0]


def test_a_drawn_kernel_gets_the_gradient_it_has_among_all(base, images):
    """With a batch that draws every kernel, as with all of them."""

    class Every(keras_nern.AllKernels):
        def sample(self, count, seed, cumulative=None):
            return keras.ops.arange(52)

    def change(sampling):
        keras.utils.set_random_seed(2)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.gather_second_moments(images)
        nern.compile(
            optimizer=keras.optimizers.SGD(1.0), layer_output_weight=1.0, kernel_sampling=sampling
        )
        before = [weight.numpy() for weight in nern.trainable_variables]
        nern.fit(steps_per_epoch=1, verbose=0)
        return [a - b.numpy() for a, b in zip(before, nern.trainable_variables, strict=True)]

    for a, b in zip(change(Every()), change("all"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["array", "pair", "dataset", "noise", "generator"])
def test_moments_are_gathered_from_what_fit_takes(base, images, labels, kind):
    data = {
        "array": images,
        "pair": (images, labels),
        "dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(5).repeat(),
        "noise": keras_nern.NoiseDataset(base, steps=2, batch_size=6),
        "generator": (images[start : start + 4] for start in (0, 4, 8)),
    }[kind]
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.gather_second_moments(data, images=11, batch_size=5)
    seen = images if kind != "noise" else np.concatenate([data[0], data[1]])
    expected = second_moments(base, nern._original.blocks.kernels, [seen[:11]])
    for got, wanted in zip(nern._runtime.moments, expected, strict=True):
        np.testing.assert_allclose(got, wanted.moments, rtol=1e-4, atol=1e-5)


def test_refuses_images_that_do_not_fit(nern):
    with pytest.raises(ValueError, match=r"x must give images of shape \(batch, 8, 8, 1\)"):
        nern.gather_second_moments(np.zeros((3, 9, 8, 1)))
    with pytest.raises(ValueError, match="Expected at least one batch of images"):
        second_moments(nern.base, nern._original.blocks.kernels, [])
