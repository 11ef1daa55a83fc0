import keras
import numpy as np
import pytest

from keras_nern import kernels


def test_finds_the_convolutions_in_order(base):
    found = kernels.find_convolutions(base)
    assert [conv.name for conv in found] == ["stem", "conv", "shortcut"]
    assert [conv.shape for conv in found] == [(3, 3, 1, 4), (3, 3, 4, 6), (1, 1, 4, 6)]
    assert [conv.num_kernels for conv in found] == [4, 24, 24]
    assert [conv.num_weights for conv in found] == [36, 216, 24]


def test_enters_nested_models_and_lists_a_shared_layer_once():
    shared = keras.layers.Conv2D(2, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input((4, 4, 2)), shared], name="inner")
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, shared(inner(inputs)))
    assert [conv.name for conv in kernels.find_convolutions(model)] == ["inner/shared"]


def test_leaves_depthwise_and_transposed_convolutions_out():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.SeparableConv2D(3, 1),
            keras.layers.Conv2DTranspose(2, 3),
        ]
    )
    assert kernels.find_convolutions(model) == []


def _slow_blocks(kernel, k):
    kh, kw, cin, cout = kernel.shape
    rows = np.zeros((cin * cout, k, k))
    for f in range(cout):
        for c in range(cin):
            for i in range(kh):
                for j in range(kw):
                    rows[f * cin + c, (k - kh) // 2 + i, (k - kw) // 2 + j] = kernel[i, j, c, f]
    return rows.reshape(cin * cout, k * k)


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (1, 3), (2, 2), (5, 5)])
def test_blocks_match_the_definition_and_invert(size):
    kernel = np.random.default_rng(0).normal(size=(*size, 3, 4)).astype("float32")
    blocks = kernels.kernel_to_blocks(kernel, 5)
    np.testing.assert_array_equal(blocks, _slow_blocks(kernel, 5).astype("float32"))
    np.testing.assert_array_equal(kernels.blocks_to_kernel(blocks, kernel.shape), kernel)


def test_mask_marks_the_centre_crop():
    np.testing.assert_array_equal(
        kernels.block_mask((1, 3, 8, 9), 3).reshape(3, 3), [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    )


def test_block_size_is_the_largest_side():
    model = keras.Sequential(
        [keras.Input((9, 9, 1)), keras.layers.Conv2D(2, (1, 7)), keras.layers.Conv2D(2, 3)]
    )
    assert kernels.block_size(kernels.find_convolutions(model)) == 7
