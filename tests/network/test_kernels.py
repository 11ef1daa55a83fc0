import keras
import numpy as np
import pytest

from keras_nern.network.kernels import Kernel, finalize, kernels_of, sublayers, walk_layers

RNG = np.random.default_rng(0)

IMAGES = (8, 8, 4)

# layer, input shape, and for each kernel: attribute, shape, spatial shape, channels, filters
LAYERS = {
    "1-D": (
        lambda: keras.layers.Conv1D(5, 3),
        (8, 4),
        [("kernel", (3, 4, 5), (3,), 4, 5)],
    ),
    "2-D": (
        lambda: keras.layers.Conv2D(5, (1, 7)),
        IMAGES,
        [("kernel", (1, 7, 4, 5), (1, 7), 4, 5)],
    ),
    "3-D": (
        lambda: keras.layers.Conv3D(5, 2),
        (4, 4, 4, 3),
        [("kernel", (2, 2, 2, 3, 5), (2, 2, 2), 3, 5)],
    ),
    "groups": (
        lambda: keras.layers.Conv2D(6, 3, groups=2),
        IMAGES,
        [("kernel", (3, 3, 2, 6), (3, 3), 2, 6)],
    ),
    "transposed": (
        lambda: keras.layers.Conv2DTranspose(5, 3),
        IMAGES,
        [("kernel", (3, 3, 5, 4), (3, 3), 4, 5)],
    ),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        IMAGES,
        [("kernel", (3, 3, 4, 2), (3, 3), 4, 2)],
    ),
    "separable": (
        lambda: keras.layers.SeparableConv2D(5, 3),
        IMAGES,
        [
            ("depthwise_kernel", (3, 3, 4, 1), (3, 3), 4, 1),
            ("pointwise_kernel", (1, 1, 4, 5), (1, 1), 4, 5),
        ],
    ),
    "dense": (lambda: keras.layers.Dense(5), (4,), [("kernel", (4, 5), (), 4, 5)]),
    "none": (lambda: keras.layers.BatchNormalization(), IMAGES, []),
}


@pytest.mark.parametrize(("make", "shape", "expected"), LAYERS.values(), ids=LAYERS)
def test_kernels_of_a_layer(make, shape, expected):
    layer = make()
    layer.build((None, *shape))
    kernels = kernels_of("path", layer)
    got = [(k.attribute, k.shape, k.spatial_shape, k.channels, k.filters) for k in kernels]
    assert got == expected
    for kernel in kernels:
        assert kernel.variable is getattr(layer, kernel.attribute)
        np.testing.assert_array_equal(kernel.values(), kernel.variable)
        assert kernel.shape == tuple(kernel.variable.shape)
        assert kernel.num_weights == np.prod(kernel.shape)
        assert kernel.name == ("path" if len(kernels) < 2 else f"path/{kernel.attribute}")


def _kernel(shape, layer=None):
    return Kernel("path", layer or keras.layers.Conv2D(1, 1), "kernel", shape)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (3, 2, 4, 5), (2, 3, 1, 4, 5)])
def test_rows_match_the_definition_and_invert(shape):
    values = RNG.normal(size=shape)
    kernel = _kernel(shape)
    rows = kernel.rows(values)
    for f in range(5):
        expected = [
            values[(*position, c, f)] for c in range(4) for position in np.ndindex(shape[:-2])
        ]
        np.testing.assert_array_equal(rows[f], expected)
    by_channel = kernel.by_channel(values)
    np.testing.assert_array_equal(by_channel, rows.reshape(5, 4, kernel.spatial_size))
    for laid_out in (rows, by_channel):
        np.testing.assert_array_equal(
            kernel.from_rows(keras.ops.convert_to_tensor(laid_out)), values
        )


def test_rows_of_a_transposed_convolution_are_its_filters():
    values = RNG.normal(size=(3, 2, 5, 4))
    kernel = _kernel((3, 2, 5, 4), keras.layers.Conv2DTranspose(5, (3, 2)))
    plain = _kernel((3, 2, 4, 5)).rows(values.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(kernel.rows(values), plain)
    np.testing.assert_array_equal(
        kernel.from_rows(keras.ops.convert_to_tensor(kernel.rows(values))), values
    )


class _Block(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="block")
        self.parts = [
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.Conv2D(2, 3, name="conv"),
        ]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_walks_to_any_depth_and_lists_each_layer_once():
    shared = keras.layers.Conv2D(2, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input((9, 9, 2)), shared, _Block()], name="inner")
    middle_input = keras.Input((9, 9, 2))
    middle = keras.Model(middle_input, inner(shared(middle_input)), name="middle")
    inputs = keras.Input((3, 9, 9, 2), name="images")
    model = keras.Model(inputs, keras.layers.TimeDistributed(middle, name="each")(inputs))
    paths = [path for path, layer in walk_layers(model) if isinstance(layer, keras.layers.Conv2D)]
    assert paths == [
        "each/middle/shared",
        "each/middle/inner/block/conv",
        "each/middle/inner/block/conv_2",
    ]
    assert [path for path, _ in walk_layers(model)][:2] == ["images", "each"]


def test_lists_the_layers_that_a_layer_holds():
    block = _Block()
    assert sublayers(block) == block.parts
    assert sublayers(keras.layers.TimeDistributed(block)) == [block]
    assert sublayers(block.parts[0]) == []


def test_an_assigned_mean_takes_effect():
    layer = keras.layers.Normalization()
    layer.adapt(np.array([[1.0], [3.0]]))
    model = keras.Sequential([keras.Input((1,)), layer])
    mean, variance, count = layer.get_weights()
    layer.set_weights([mean + 10.0, variance, count])
    finalize(model)
    np.testing.assert_allclose(model(np.array([[12.0], [13.0]])), [[0.0], [1.0]])
