"""Factors of the curvature against loops over positions, images and draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from peaks import grows_by_at_most

from keras_nern import losses
from keras_nern.network import curvature
from keras_nern.network.original import ForwardOutputs, OriginalNetwork

L = keras.layers
RNG = np.random.default_rng(0)


def _fixed(outputs, *_):
    """Probes that are a function of the logits, so that an oracle has the same."""
    for logits in outputs.logits:
        yield logits, tf.sin(3.0 * tf.stop_gradient(logits) + 1.0)


@pytest.fixture(autouse=True)
def _same_numbers_in_every_order():
    global RNG
    RNG = np.random.default_rng(0)


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(curvature, "probes", _fixed)


def _gather(base, batches, images=10, weights=(1.0, 1.0, 1.0), **selection):
    selection = {"include_dense": True, **selection}
    original = OriginalNetwork(base, output_activation="linear", **selection)
    return curvature.gather_factors(original, batches, images, *weights)


# Plain layers and depthwise ones: A and G.

LAYERS = {
    "1-D": ((7, 2), lambda **kw: L.Conv1D(4, 3, **kw)),
    "1-D, causal, dilated": (
        (9, 2),
        lambda **kw: L.Conv1D(4, 3, padding="causal", dilation_rate=2, **kw),
    ),
    "1-D, causal, strided": (
        (9, 2),
        lambda **kw: L.Conv1D(4, 3, padding="causal", strides=2, **kw),
    ),
    "1-D in groups": ((7, 4), lambda **kw: L.Conv1D(6, 3, groups=2, **kw)),
    "1-D, channels first": (
        (2, 9),
        lambda **kw: L.Conv1D(4, 3, strides=2, data_format="channels_first", **kw),
    ),
    "2-D": ((5, 6, 2), lambda **kw: L.Conv2D(4, 3, **kw)),
    "2-D, strided, same": ((6, 5, 2), lambda **kw: L.Conv2D(4, 3, strides=2, padding="same", **kw)),
    "2-D, dilated, same": (
        (6, 5, 2),
        lambda **kw: L.Conv2D(4, (2, 3), dilation_rate=(2, 1), padding="same", **kw),
    ),
    "2-D in groups": ((5, 5, 4), lambda **kw: L.Conv2D(6, 3, groups=2, padding="same", **kw)),
    "2-D, oblong": ((5, 6, 2), lambda **kw: L.Conv2D(3, (1, 5), padding="same", **kw)),
    "2-D, 1x1": ((5, 5, 3), lambda **kw: L.Conv2D(4, 1, strides=2, **kw)),
    "3-D": ((3, 4, 3, 2), lambda **kw: L.Conv3D(3, 2, **kw)),
    "3-D, strided, same": (
        (5, 3, 4, 2),
        lambda **kw: L.Conv3D(2, (2, 3, 3), strides=(2, 1, 2), padding="same", **kw),
    ),
    "depthwise": ((5, 6, 3), lambda **kw: L.DepthwiseConv2D(3, depth_multiplier=2, **kw)),
    "depthwise, strided, same": (
        (6, 6, 3),
        lambda **kw: L.DepthwiseConv2D(3, strides=2, padding="same", **kw),
    ),
    "depthwise, dilated": (
        (6, 6, 3),
        lambda **kw: L.DepthwiseConv2D(3, dilation_rate=2, padding="same", **kw),
    ),
    "depthwise, 1-D": (
        (8, 3),
        lambda **kw: L.DepthwiseConv1D(3, strides=2, depth_multiplier=2, padding="same", **kw),
    ),
    "Dense": ((5,), lambda **kw: L.Dense(4, **kw)),
    "Dense at positions": ((3, 2, 4), lambda **kw: L.Dense(3, **kw)),
}
ACTIVATIONS = [None, "relu", "gelu", "softmax"]
CASES = [(name, ACTIVATIONS[i % 4]) for i, name in enumerate(LAYERS)]
CASES += [("2-D", "relu"), ("2-D", "gelu"), ("1-D, channels first", "relu"), ("Dense", None)]


def _base(shape, layer):
    base = keras.Sequential([keras.Input(shape), layer, L.Flatten(), L.Dense(3, name="head")])
    for weight in base.weights:  # biases and kernels that are not trivial
        weight.assign(RNG.normal(size=weight.shape) * 0.7)
    return base, RNG.normal(size=(6, *shape)).astype("float32")


def _moved(layer, array):
    return np.moveaxis(array, 1, -1) if layer.data_format == "channels_first" else array


def _padded(layer, size):
    """For each spatial axis of an input, the number of outputs and of zeros in front."""
    for axis, length in enumerate(size):
        stride, dilation = layer.strides, layer.dilation_rate
        stride = stride[axis] if isinstance(stride, tuple) else stride
        dilation = dilation[axis] if isinstance(dilation, tuple) else dilation
        reach = dilation * (layer.kernel_size[axis] - 1) + 1
        if layer.padding == "valid":
            yield (length - reach) // stride + 1, 0, stride, dilation
        else:
            count = -(-length // stride)
            before = max(0, (count - 1) * stride + reach - length) // 2
            yield count, reach - 1 if layer.padding == "causal" else before, stride, dilation


def _slow_patches(layer, image):
    """The patches of one channels-last image, position by position: `(positions, S, channels)`."""
    if isinstance(layer, L.Dense):
        return image.reshape(-1, 1, image.shape[-1])
    axes = list(_padded(layer, image.shape[:-1]))
    patches = []
    for position in np.ndindex(*(count for count, *_ in axes)):
        patch = []
        for offset in np.ndindex(*layer.kernel_size):
            place = tuple(
                p * stride + o * dilation - before
                for p, o, (_, before, stride, dilation) in zip(position, offset, axes, strict=True)
            )
            inside = all(0 <= i < n for i, n in zip(place, image.shape, strict=False))
            patch.append(image[place] if inside else np.zeros(image.shape[-1]))
        patches.append(patch)
    return np.array(patches)


def _gradients(base, layer, linear, image):
    """The gradient before the layer's activation, on one image."""
    before = linear(image)
    with tf.GradientTape() as tape:
        tape.watch(before)
        logits = base.layers[-1](base.layers[-2](layer.activation(before)))
        probed = sum(
            tf.reduce_sum(a * b) for a, b in _fixed(ForwardOutputs([], None, [logits], []))
        )
    return tape.gradient(probed, before).numpy()


def _slow_factors(base, layer, linear, images):
    depthwise = isinstance(layer, (L.DepthwiseConv1D, L.DepthwiseConv2D))
    dense = isinstance(layer, L.Dense)
    inputs = outputs = 0.0
    positions = 0
    for image in images:
        given = image if dense else _moved(layer, image[None])[0]
        gradient = _gradients(base, layer, linear, image[None])
        gradient = gradient if dense else _moved(layer, gradient)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        patches = _slow_patches(layer, given)
        assert len(patches) == len(gradient)
        groups = given.shape[-1] if depthwise else getattr(layer, "groups", 1)
        for patch, g in zip(patches, gradient, strict=True):
            x = np.stack([part.ravel() for part in np.split(patch, groups, axis=-1)])
            g = np.stack(np.split(g, groups))
            inputs += x[:, :, None] * x[:, None]
            outputs += g[:, :, None] * g[:, None]
        positions += len(patches)
    return inputs / positions, outputs / len(images)


@pytest.mark.parametrize(("name", "activation"), CASES)
def test_factors_match_loops_over_positions(fixed, name, activation):
    shape, make = LAYERS[name]
    layer, linear = make(activation=activation), make()
    base, images = _base(shape, layer)
    linear.build((None, *shape))
    linear.set_weights(layer.get_weights())
    factors = _gather(base, [images[:4], images[4:]], exclude="head")
    ((inputs, outputs, diagonal, positions),) = factors
    expected = _slow_factors(base, layer, linear, images)
    assert diagonal is positions is None
    assert inputs.dtype == outputs.dtype == "float32"
    for found, wanted in zip((inputs, outputs), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    error = RNG.normal(size=layer.kernel.shape).astype("float32")
    losses.curvature_cost(error, *factors[0])  # the shapes fit the kernel


def test_a_layer_called_twice_has_the_factors_of_both_calls(fixed):
    conv = L.Conv2D(2, 3, padding="same", activation="relu")
    inputs = keras.Input((4, 5, 2))
    head = L.Dense(3)
    base = keras.Model(inputs, head(L.Flatten()(conv(L.Rescaling(3.0)(conv(inputs))))))
    images = RNG.normal(size=(4, 4, 5, 2)).astype("float32")
    factors, _ = _gather(base, [images])
    a = g = 0.0
    for image in images:
        first = tf.nn.conv2d(image[None], conv.kernel, 1, "SAME") + conv.bias
        with tf.GradientTape() as tape:
            tape.watch(first)
            middle = 3.0 * tf.nn.relu(first)
            second = tf.nn.conv2d(middle, conv.kernel, 1, "SAME") + conv.bias
            logits = head(tf.reshape(tf.nn.relu(second), (1, -1)))
            probed = tf.reduce_sum(logits * tf.sin(3.0 * tf.stop_gradient(logits) + 1.0))
        gradients = tape.gradient(probed, [first, second])
        for given, gradient in zip((image, middle[0].numpy()), gradients, strict=True):
            patches = _slow_patches(conv, given).reshape(20, -1)
            gradient = gradient.numpy().reshape(20, 2)
            a += patches.T @ patches
            g += gradient.T @ gradient
    np.testing.assert_allclose(factors.inputs[0], a / (2 * 4 * 20), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(factors.outputs[0], g / 4, rtol=1e-3, atol=1e-4 * np.abs(g).max())


def test_layers_that_share_a_kernel_have_the_factors_of_both(fixed):
    first = L.Conv2D(2, 3, padding="same", use_bias=False)
    second = L.Conv2D(2, 3, padding="same", use_bias=False, strides=2)
    inputs = keras.Input((4, 5, 2))
    x = first(inputs)
    second.build(x.shape)
    second._tracker.unlock()
    second._trainable_variables.remove(second._kernel)
    second._kernel = first._kernel
    second._tracker.lock()
    base = keras.Model(inputs, L.Flatten()(second(x)))
    images = RNG.normal(size=(4, 4, 5, 2)).astype("float32")
    (factors,) = _gather(base, [images])
    a = g = 0.0
    for image in images:
        with tf.GradientTape() as tape:
            middle = tf.nn.conv2d(image[None], first.kernel, 1, "SAME")
            tape.watch(middle)
            logits = tf.nn.conv2d(middle, first.kernel, 2, "SAME")
            tape.watch(logits)
            probed = tf.reduce_sum(logits * tf.sin(3.0 * tf.stop_gradient(logits) + 1.0))
        gradients = tape.gradient(probed, [middle, logits])
        both = zip((first, second), (image, middle[0].numpy()), gradients, strict=True)
        for layer, given, gradient in both:
            gradient = gradient.numpy().reshape(-1, 2)
            patches = _slow_patches(layer, given).reshape(len(gradient), -1)
            a += patches.T @ patches
            g += gradient.T @ gradient
    np.testing.assert_allclose(factors.inputs[0], a / (4 * 26), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(factors.outputs[0], g / 4, rtol=1e-3, atol=1e-4 * np.abs(g).max())


def test_some_positions_stand_for_all(fixed, monkeypatch):
    base, _ = _base((16, 16, 2), L.Conv2D(3, 3))
    images = RNG.normal(size=(20, 16, 16, 2)).astype("float32")
    (every, _) = _gather(base, [images[:8], images[8:]], images=20)
    monkeypatch.setattr(curvature, "MIN_ROWS", 2000)  # of 3,920
    monkeypatch.setattr(curvature, "ROWS_PER_INPUT", 1)
    (some, _) = _gather(base, [images[:8], images[8:]], images=20)
    for found, wanted in zip(some[:2], every[:2], strict=True):
        off = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 0 < off < 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_factors_of_a_base_in_another_precision(fixed, policy):
    found = []
    for dtype in ("float32", policy):
        conv, head = L.Conv2D(4, 3, activation="gelu", dtype=dtype), L.Dense(3, dtype=dtype)
        base = keras.Sequential([keras.Input((6, 6, 2)), conv, L.Flatten(dtype=dtype), head])
        rng = np.random.default_rng(5)
        for weight in base.weights:
            weight.assign(rng.normal(size=weight.shape) * 0.2)
        images = rng.normal(size=(8, 6, 6, 2)).astype("float32")
        found.append(_gather(base, [images])[0])
    for a, b in zip(found[0][:2], found[1][:2], strict=True):
        assert b.dtype == "float32"
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)


# Other layers: a diagonal.

DIAGONAL = {
    "transposed": ((4, 4, 2), lambda: L.Conv2DTranspose(3, 3, strides=2, activation="relu")),
    "transposed, 1-D": ((5, 2), lambda: L.Conv1DTranspose(3, 3)),
    "separable": ((5, 5, 3), lambda: L.SeparableConv2D(4, 3, depth_multiplier=2)),
    "separable, 1-D": ((7, 3), lambda: L.SeparableConv1D(4, 3, padding="same")),
}


@pytest.mark.parametrize(("shape", "make"), DIAGONAL.values(), ids=DIAGONAL)
def test_the_diagonal_has_the_mean_squares_of_each_images_gradients(fixed, shape, make):
    layer = make()
    base, images = _base(shape, layer)
    factors = _gather(base, [image[None] for image in images], exclude="head")
    kernels = [v for v in layer.trainable_variables if "kernel" in v.name]
    squares = [0.0] * len(kernels)
    for image in images:
        with tf.GradientTape() as tape:
            logits = base(image[None])
            probed = tf.reduce_sum(logits * tf.sin(3.0 * tf.stop_gradient(logits) + 1.0))
        gradients = tape.gradient(probed, [kernel.value for kernel in kernels])
        squares = [s + g.numpy() ** 2 for s, g in zip(squares, gradients, strict=True)]
    assert len(factors) == len(kernels) == (2 if "Separable" in type(layer).__name__ else 1)
    for (inputs, outputs, diagonal, _), square in zip(factors, squares, strict=True):
        assert inputs is outputs is None
        assert diagonal.dtype == "float32"
        np.testing.assert_allclose(diagonal, square / len(images), rtol=1e-3, atol=1e-5)


COARSE = ["2-D", "2-D, strided, same", "2-D in groups", "1-D, channels first", "3-D"]


@pytest.mark.parametrize("name", COARSE)
def test_large_patches_have_factors_of_channels_and_of_positions(fixed, monkeypatch, name):
    shape, make = LAYERS[name]
    layer, linear = make(activation="relu"), make()
    base, images = _base(shape, layer)
    linear.build((None, *shape))
    linear.set_weights(layer.get_weights())
    monkeypatch.setattr(curvature, "MAX_FACTOR", 4)
    (factors,) = _gather(base, [images[:4], images[4:]], exclude="head")
    a, g = _slow_factors(base, layer, linear, images)
    groups, patch, _ = a.shape
    channels = layer.kernel.shape[-2]
    a = a.reshape(groups, patch // channels, channels, patch // channels, channels)
    of_channels = np.einsum("gscsd->gcd", a)
    of_positions = np.einsum("gsctc->gst", a) / np.einsum("gscsc->g", a)[:, None, None]
    assert factors.diagonal is None
    for found, wanted in zip(
        (factors.inputs, factors.positions, factors.outputs),
        (of_channels, of_positions, g),
        strict=True,
    ):
        assert found.dtype == "float32"
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    # the trace is that of A
    trace = np.einsum("gcc->g", factors.inputs) * np.einsum("gss->g", factors.positions)
    np.testing.assert_allclose(trace, np.einsum("gscsc->g", a), rtol=1e-3)


def test_layers_of_many_channels_or_filters_take_the_diagonal(monkeypatch):
    base = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(5, 3),  # patches of 18
            L.Conv2D(20, 1),  # 20 filters
            L.Conv2D(40, 1, groups=4),  # 5 channels and 10 filters in each group
            L.DepthwiseConv2D(3, padding="same"),  # of 9
            L.Flatten(),
            L.Dense(3),  # of 640 channels
        ]
    )
    monkeypatch.setattr(curvature, "MAX_FACTOR", 16)
    factors = _gather(base, [RNG.normal(size=(3, 6, 6, 2)).astype("float32")])
    assert [one.inputs is None for one in factors] == [False, True, False, False, True]
    assert [one.diagonal is None for one in factors] == [True, False, True, True, False]
    assert [one.positions is None for one in factors] == [False, True, True, True, True]
    assert factors[1].diagonal.shape == (1, 1, 5, 20)


class Mapping(L.Layer):
    """Runs a convolution in a loop, which is traced although the model runs eagerly."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(2, 3, padding="same")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return keras.ops.vectorized_map(lambda one: self.conv(one[None])[0], x)


def test_layers_in_a_loop_take_the_diagonal():
    inputs = keras.Input((4, 4, 2))
    x = Mapping()(L.Conv2D(2, 3, padding="same")(inputs))
    first, looped = _gather(keras.Model(inputs, L.Flatten()(x)), [np.ones((3, 4, 4, 2), "float32")])
    assert first.inputs is not None
    assert looped.inputs is None
    assert looped.diagonal.max() > 0


def test_a_layer_that_no_output_depends_on_has_no_factors():
    inputs = keras.Input((4, 4, 2))
    x = L.Conv2D(2, 3, name="used")(inputs)
    unused = L.Conv2D(2, 3, name="unused")(inputs)
    base = keras.Model(inputs, L.Flatten()(x + keras.ops.stop_gradient(unused)))
    original = OriginalNetwork(base, output_activation="linear")
    images = RNG.normal(size=(3, 4, 4, 2)).astype("float32")
    found = curvature.gather_factors(original, [images], 3, 1.0, 0.0, 1.0)
    names = [kernel.name for kernel in original.blocks.kernels]
    assert found[names.index("unused")] == curvature.Factors()
    assert found[names.index("used")].inputs is not None


def test_raises_without_batches(base):
    with pytest.raises(ValueError, match=r"at least one batch of inputs\. Received: none"):
        _gather(base, [])


# Probes.


def _hessian(loss, at):
    at = tf.constant(at.ravel())
    with tf.GradientTape() as outer:
        outer.watch(at)
        with tf.GradientTape() as inner:
            inner.watch(at)
            value = loss(at)
        gradient = inner.gradient(value, at)
    return outer.jacobian(gradient, at).numpy()


DRAWS = 60_000


def _second_moment(probe):
    flat = probe.numpy().reshape(DRAWS, -1).astype("float64")
    spread = np.sqrt(np.mean(flat**2, axis=0) / DRAWS)
    assert (np.abs(flat.mean(axis=0)) < 6 * spread).all()
    return flat.T @ flat / DRAWS


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_probes_of_logits_have_the_hessian_of_their_loss(shape):
    logits = RNG.normal(size=(1, *shape)).astype("float32") * 2
    expected = _hessian(
        lambda z: losses.logits_distillation_loss(logits, tf.reshape(z, (1, *shape)), 2.5), logits
    )
    outputs = ForwardOutputs([], None, [tf.repeat(logits, DRAWS, 0)], [])
    ((at, probe),) = curvature.probes(outputs, 0.3, 0.0, 2.5, keras.random.SeedGenerator(1))
    assert at.shape == probe.shape
    found = _second_moment(probe)
    assert np.linalg.norm(found - 0.3 * expected) < 0.03 * np.linalg.norm(0.3 * expected)


def test_probes_of_maps_have_the_hessian_of_their_loss():
    mapped = RNG.normal(size=(1, 2, 2, 2)).astype("float32")
    expected = _hessian(
        lambda a: losses.feature_map_distillation_loss([mapped], [tf.reshape(a, (1, 2, 2, 2))]),
        mapped,
    )
    many = tf.repeat(mapped, DRAWS, 0)
    outputs = ForwardOutputs([many, many], None, [], [])
    pairs = list(curvature.probes(outputs, 0.0, 0.7, 1.0, keras.random.SeedGenerator(1)))
    for _, probe in pairs:
        found = _second_moment(probe)
        assert np.linalg.norm(found - 0.7 * expected) < 0.03 * np.linalg.norm(0.7 * expected)
    (_, one), (_, other) = pairs  # independent, or their products would not cancel
    assert abs(np.sum(one * other)) < 0.02 * np.sum(np.square(one))


def test_there_are_no_probes_without_weights():
    outputs = ForwardOutputs([tf.ones((2, 3))], None, [tf.ones((2, 3))], [])
    generator = keras.random.SeedGenerator(1)
    assert list(curvature.probes(outputs, 0.0, 0.0, 1.0, generator)) == []


def test_a_black_image_does_not_count_more_than_others():
    """Its maps of zeros have no direction."""
    base, images = _base((5, 5, 2), L.Conv2D(3, 3, use_bias=False))
    images[0] = 0.0
    with_black = _gather(base, [images], weights=(0.0, 1.0, 1.0), exclude="head")[0]
    without = _gather(base, [images[1:]], weights=(0.0, 1.0, 1.0), exclude="head")[0]
    assert np.trace(with_black.outputs[0]) < 3 * np.trace(without.outputs[0])
    assert np.trace(with_black.outputs[0]) > 0.1 * np.trace(without.outputs[0])


# The whole.


@pytest.mark.parametrize("weights", [(1.0, 0.0, 3.0), (0.0, 1.0, 1.0), (0.5, 0.2, 1.0)])
def test_the_cost_is_that_of_distillation_to_second_order(weights):
    """On one position of one image, a Kronecker product is exact; only the draws differ."""
    conv = L.Conv2D(5, 1, activation="tanh")
    normalization = L.BatchNormalization()
    base = keras.Sequential(
        [
            keras.Input((1, 1, 4)),
            conv,
            normalization,
            L.Activation("gelu"),
            L.Flatten(),
            L.Dense(3, name="head"),
        ]
    )
    for weight in base.weights:
        weight.assign(RNG.uniform(0.3, 1.5, weight.shape))
    conv.kernel.assign(RNG.normal(size=conv.kernel.shape) * 0.5)
    base.layers[-1].kernel.assign(RNG.normal(size=(5, 3)))
    image = RNG.normal(size=(1, 1, 1, 4)).astype("float32")
    original = OriginalNetwork(base, output_activation="linear", include=conv)
    logits_weight, map_weight, temperature = weights
    images = np.repeat(image, 40_000, axis=0)
    (factors,) = curvature.gather_factors(original, [images], 40_000, *weights)
    teacher = original.forward(image)
    kernel = conv.kernel.numpy()
    for _ in range(4):
        error = 0.02 * RNG.normal(size=kernel.shape).astype("float32")
        found = float(losses.curvature_cost(error, *factors))
        cost = 0.0
        for sign in (1, -1):  # cancels the third order
            student = original.forward(image, [kernel + sign * error])
            a, b = (
                np.float64(one.logits[0][0]) / temperature for one in (teacher, student)
            )  # in float32, the logarithms would cancel
            a, b = (one - np.log(np.sum(np.exp(one))) for one in (a, b))
            cost += 0.5 * logits_weight * temperature**2 * np.sum(np.exp(a) * (a - b))
            maps = losses.feature_map_distillation_loss(teacher.maps, student.maps)
            cost += 0.5 * map_weight * maps
        assert found == pytest.approx(float(cost), rel=0.05)


def test_large_images_take_the_memory_of_one(fixed, monkeypatch):
    base = keras.Sequential(
        [
            keras.Input((224, 224, 3)),
            L.Conv2D(8, 3, padding="same", name="first"),
            L.Conv2D(8, 3, padding="same", name="second"),
            L.GlobalAveragePooling2D(),
        ]
    )
    images = RNG.normal(size=(24, 224, 224, 3)).astype("float32")
    _gather(base, [images[:1]])
    with grows_by_at_most(128):  # 330 MiB for the patches of all images in `second`
        found = _gather(base, [images], images=24)
    assert found[1].inputs.shape == (1, 72, 72)
    # by parts as at once
    monkeypatch.setattr(curvature, "MIN_ROWS", 10**6)  # every position
    some = _gather(base, [images[:2]], images=2)
    monkeypatch.setattr(curvature, "PIXELS_AT_ONCE", 2**30)
    for one, other in zip(some, _gather(base, [images[:2]], images=2), strict=True):
        for a, b in zip(one[:2], other[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_patches_of_few_images_at_once_give_the_same_factors(base, images, monkeypatch):
    original = OriginalNetwork(base)
    whole = curvature.gather_factors(original, [images], len(images), 1e-2, 2e-2, 1.0)
    monkeypatch.setattr("keras_nern.network.curvature.ENTRIES_AT_ONCE", 1)
    parts = curvature.gather_factors(original, [images], len(images), 1e-2, 2e-2, 1.0)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.inputs, other.inputs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-9)
