import itertools

import keras
import numpy as np
import pytest

from keras_nern.network.blocks import Blocks, block_coordinates

RNG = np.random.default_rng(0)


def _model(*layers, shape=(16, 16, 4)):
    return keras.Sequential([keras.Input(shape), *layers])


MODELS = {
    "3x3": lambda: _model(keras.layers.Conv2D(5, 3), keras.layers.Conv2D(6, 3)),
    "many sizes": lambda: _model(
        keras.layers.Conv2D(5, 7),
        keras.layers.Conv2D(20, 1),
        keras.layers.Conv2D(3, (1, 5), groups=1),
        keras.layers.Conv2D(4, 2),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        keras.layers.SeparableConv2D(3, 2),
        keras.layers.Conv2DTranspose(2, 3),
    ),
    "1-D": lambda: _model(keras.layers.Conv1D(5, 3), keras.layers.Conv1D(3, 5), shape=(16, 4)),
    "3-D": lambda: _model(
        keras.layers.Conv3D(5, 3), keras.layers.Conv3D(2, (1, 2, 3)), shape=(8, 8, 8, 2)
    ),
}


def _slow_blocks(kernel, values, view, side, rank):
    """Computes blocks and mask by their definition, one weight at a time."""
    blocks, masks = [], []
    for row in kernel.rows(values):
        if view == "block":
            for start in range(0, len(row), side * side):
                run = row[start : start + side * side]
                blocks.append(np.pad(run, (0, side * side - len(run))))
                masks.append(np.arange(side * side) < len(run))
            continue
        for channel in row.reshape(kernel.channels, -1):
            shape = (1,) * (rank - len(kernel.spatial_shape)) + kernel.spatial_shape
            block, mask = np.zeros((side,) * rank), np.zeros((side,) * rank, bool)
            for position, weight in zip(np.ndindex(shape), channel, strict=True):
                index = tuple((side - n) // 2 + i for n, i in zip(shape, position, strict=True))
                block[index], mask[index] = weight, True
            blocks.append(block.ravel())
            masks.append(mask.ravel())
    return np.array(blocks), np.array(masks)


VIEWS = [("crop", None), ("block", None), ("block", 2), ("block", 5)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("view", "size"), VIEWS)
def test_blocks_match_the_definition_and_invert(make, view, size):
    model = make()
    blocks = Blocks(model, view, size)
    sides = [max(kernel.spatial_shape) for kernel in blocks.kernels]
    side = max(sides) if view == "crop" else size or 3
    rank = max(len(kernel.spatial_shape) for kernel in blocks.kernels)
    expected = []
    for index, kernel in enumerate(blocks.kernels):
        wanted, mask = _slow_blocks(kernel, kernel.variable.numpy(), view, side, rank)
        expected.append((wanted, mask))
        got = blocks.kernel_blocks(index)
        assert got.shape[:2] == blocks.grids[index]
        np.testing.assert_array_equal(got.reshape(wanted.shape), wanted.astype("float32"))
        noisy = wanted + 7.0 * ~mask  # entries without a weight are ignored
        np.testing.assert_array_equal(blocks.kernel(index, noisy), kernel.variable.numpy())
    everything, masks = (np.concatenate(parts) for parts in zip(*expected, strict=True))
    assert (blocks.num_blocks, blocks.block_length) == everything.shape
    assert blocks.num_weights == masks.sum() == sum(k.num_weights for k in blocks.kernels)
    np.testing.assert_allclose(blocks.norms(), np.linalg.norm(everything, axis=1), rtol=1e-6)

    indices = RNG.integers(0, blocks.num_blocks, 200)
    taken, mask = blocks.take(blocks.weights(), indices)
    np.testing.assert_array_equal(taken, everything[indices].astype("float32"))
    np.testing.assert_array_equal(mask, masks[indices])

    for kernel, value in zip(blocks.kernels, blocks.split(everything), strict=True):
        np.testing.assert_array_equal(value, kernel.variable.numpy())


@pytest.mark.parametrize("view", ["crop", "block"])
def test_coordinates_are_layer_filter_and_column(view):
    blocks = Blocks(MODELS["many sizes"](), view)
    own = np.array(
        [
            (layer, filter_, column)
            for layer, (filters, columns) in enumerate(blocks.grids)
            for filter_ in range(filters)
            for column in range(columns)
        ]
    )
    np.testing.assert_array_equal(blocks.coordinates(np.arange(blocks.num_blocks)), own)
    # with a permutation, the block at position p of a layer gets the coordinate of block p
    orders = [RNG.permutation(stop - start) for start, stop in itertools.pairwise(blocks.offsets)]
    permuted = np.empty_like(own)
    for start, order in zip(blocks.offsets, orders, strict=False):
        for position, block in enumerate(order):
            permuted[start + block] = own[start + position]
    positions = np.concatenate([np.argsort(order) for order in orders])
    np.testing.assert_array_equal(block_coordinates(blocks.grids, positions), permuted)
    indices = RNG.permutation(blocks.num_blocks)
    np.testing.assert_array_equal(blocks.coordinates(indices, positions), permuted[indices])


def test_both_views_are_equal_if_all_kernels_have_the_block_size():
    model = MODELS["3x3"]()
    crop, block = Blocks(model, "crop"), Blocks(model, "block")
    assert crop.grids == block.grids
    for index in range(2):
        np.testing.assert_array_equal(crop.kernel_blocks(index), block.kernel_blocks(index))


def test_the_block_view_fills_its_blocks_with_1x1_kernels():
    model = _model(keras.layers.Conv2D(8, 3), keras.layers.Conv2D(90, 1), keras.layers.Conv2D(5, 1))
    assert Blocks(model, "crop").grids == [(8, 4), (90, 8), (5, 90)]
    assert Blocks(model, "block").grids == [(8, 4), (90, 1), (5, 10)]


@pytest.mark.parametrize(("ones", "view"), [(5, "crop"), (6, "block")])
def test_the_automatic_view_uses_at_least_half_of_its_entries(ones, view):
    # 8 x 4 kernels of 9 weights and n x 8 of one weight: crops carry 288 + 8 n in 9 (32 + 8 n)
    # entries, which is half of them at n = 36 / 7 = 5.1
    blocks = Blocks(_model(keras.layers.Conv2D(8, 3), keras.layers.Conv2D(ones, 1)))
    assert blocks.view == view
    assert blocks.block_length == 9


def test_a_block_size_makes_the_automatic_view_the_block_view():
    blocks = Blocks(MODELS["3x3"](), block_size=2)
    assert (blocks.view, blocks.block_length) == ("block", 4)
    assert Blocks(MODELS["3x3"]()).view == "crop"


def test_dense_layers_can_be_included():
    model = _model(keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(3))
    blocks = Blocks(model, "block", include_dense=True)
    assert [kernel.shape for kernel in blocks.kernels] == [(3, 3, 4, 2), (392, 3)]
    assert blocks.grids == [(2, 4), (3, 44)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"view": "tile"}, r"view must be one of .*view='tile'"),
        ({"view": "block", "block_size": 0}, r"block_size must be .* at least 1.*block_size=0"),
        ({"view": "block", "block_size": 2.5}, "block_size must be an integer.*block_size=2.5"),
        (
            {"view": "crop", "block_size": 3},
            r"must be None if view='crop'. Received: block_size=3, view='crop'",
        ),
        ({"exclude": lambda layer: True}, r"whose layers are all skipped: in exclude"),
    ],
)
def test_raises_for_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Blocks(MODELS["3x3"](), **arguments)
