import itertools
import math

import constriction
import numpy as np
import pytest
import zstandard
from range_reader import RangeReader

from keras_nern.artifact import codec
from keras_nern.permutations.permutation import Permutation


def random_levels(shape, bits, seed=0, spread=0.3):
    top = 2 ** (bits - 1) - 1
    values = np.random.default_rng(seed).normal(0, spread * top, shape)
    return np.clip(np.rint(values), -top, top).astype("int8")


def entropy_bytes(levels):
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    return -(shares * np.log2(shares)).sum() * levels.size / 8


def random_permutation(grids, kind, seed=0):
    rng = np.random.default_rng(seed)
    orders = []
    for filters, columns in grids:
        if kind == "cross_filter":
            orders.append(rng.permutation(filters * columns))
        else:
            rows = [f * columns + rng.permutation(columns) for f in rng.permutation(filters)]
            orders.append(np.concatenate(rows))
    return Permutation(grids, orders, kind)


# Floats.


@pytest.mark.parametrize(
    ("dtype", "planes"),
    [
        ("float32", "0000 0000 8000 3fc0"),  # 1 is 3f800000, -2 is c0000000
        ("float16", "0000 3cc0"),  # 3c00 and c000
        ("bfloat16", "8000 3fc0"),  # the upper halves of float32
        ("int16", "01fe 00ff"),  # 0001 and fffe
    ],
)
def test_floats_are_written_in_planes(dtype, planes):
    data = codec.pack_floats(np.array([1.0, -2.0]), dtype)
    assert zstandard.decompress(data) == bytes.fromhex(planes)
    np.testing.assert_array_equal(codec.unpack_floats(data, 2, dtype), [1, -2])


def test_bfloat16_rounds_to_the_nearest_number_with_eight_significant_bits():
    values = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-9, -3.0e38])
    unpacked = codec.unpack_floats(codec.pack_floats(values, "bfloat16"), 4, "bfloat16")
    assert unpacked.dtype == "float32"
    np.testing.assert_array_equal(unpacked[:3], [1, 1 + 2.0**-6, 1])  # a tie goes to even
    np.testing.assert_allclose(unpacked[3], -3.0e38, rtol=2.0**-8)


def test_encodes_an_empty_array_of_floats():
    assert codec.unpack_floats(codec.pack_floats([], "float32"), 0, "float32").shape == (0,)


def test_planes_compress_random_floats():
    values = np.random.default_rng(0).normal(size=5000).astype("float32")
    assert len(codec.pack_floats(values, "float32")) < 0.9 * values.nbytes


def test_raises_for_floats_too_large_for_their_type():
    with pytest.raises(ValueError, match=r"numbers that float16 can hold\. Received: 1 larger"):
        codec.pack_floats(np.array([1.0, 70_000.0, np.inf]), "float16")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zstandard.compress(bytes(9)), "it unpacks to 9 bytes instead of 8"),
        (zstandard.compress(bytes(10**9)), "it unpacks to 1,000,000,000 bytes instead of 8"),
        (zstandard.compress(bytes(8))[:-1], "zstandard cannot read it"),
        (zstandard.compress(bytes(8)) + b"x", "zstandard cannot read it"),
        (b"no frame", "zstandard cannot read it"),
        (b"", "zstandard cannot read it"),
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8)),
            "it unpacks to -1 bytes instead of 8",
        ),
    ],
    ids=["longer", "much longer", "truncated", "data behind", "text", "empty", "without a size"],
)
def test_raises_for_another_zstandard_frame(data, message):
    with pytest.raises(ValueError, match=message):
        codec.unpack_floats(data, 2, "float32")


@pytest.mark.parametrize(
    ("dtype", "precision", "stored"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float32", "float64"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float16"),
        ("float64", "float16", "float16"),
        ("bfloat16", "float16", "float16"),
        ("int64", "float16", "int64"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "float16"),
        ("bool", "float32", "uint8"),
    ],
)
def test_types_in_which_weights_are_written(dtype, precision, stored):
    assert codec.stored_type(dtype, precision) == stored


# Levels.


@pytest.mark.parametrize("bits", range(2, 9))
def test_decodes_the_levels_that_were_encoded(bits):
    shapes = [(30, 20), (20, 7), (3, 1)]
    kernels = [random_levels(shape, bits, seed) for seed, shape in enumerate(shapes)]
    data = codec.encode_levels(kernels, bits)
    for levels, kernel in zip(codec.decode_levels(data, shapes, bits), kernels, strict=True):
        assert levels.dtype == "int8"
        np.testing.assert_array_equal(levels, kernel)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_encoded_as_specified(bits):
    kernels = [random_levels((30, 20), bits), random_levels((20, 7), bits, seed=1)]
    reader = RangeReader(codec.encode_levels(kernels, bits))
    for kernel in kernels:
        assert reader.levels(kernel.size, bits) == kernel.ravel().tolist()


@pytest.mark.parametrize(("bits", "excess"), [(3, 0.001), (4, 0.002), (6, 0.005), (8, 0.02)])
def test_levels_take_little_more_than_their_entropy(bits, excess):
    levels = random_levels((240, 160), bits)
    assert len(codec.encode_levels([levels], bits)) <= (1 + excess) * entropy_bytes(levels) + 8


def test_zeros_take_almost_no_bytes():
    # A zero is encoded when at least 8/9 of the zeros before it have been counted. The sum over
    # chunks of log2((2 i + 15) / (2 i + 1)) bits is below 14 log2(100,000) + 64 * 4.
    levels = np.zeros((1000, 100), "int8")
    assert len(codec.encode_levels([levels], 4)) <= (14 * math.log2(100_000) + 256) / 8


def test_raises_for_levels_beyond_the_bits():
    with pytest.raises(ValueError, match=r"Levels must be in \[-7, 7\]\. Received"):
        codec.encode_levels([np.array([8])], 4)


def test_raises_for_damaged_levels():
    data = codec.encode_levels([random_levels((30, 20), 4)], 4)
    with pytest.raises(ValueError, match="the range coder has words left over"):
        codec.decode_levels(data + bytes([1] * 400), [(30, 20)], 4)
    with pytest.raises(ValueError, match="the range coder cannot read it"):
        codec.decode_levels(b"\xff" * len(data), [(30, 20)], 4)


# Orders.


@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_decodes_the_orders_that_were_encoded(kind):
    grids = [(1, 1), (6, 4), (1, 9), (5, 1), (2, 2)]
    permutation = random_permutation(grids, kind)
    data = codec.encode_orders(permutation)
    assert codec.decode_orders(data, grids, kind) == permutation


def test_decodes_every_order_of_up_to_four_blocks():
    for size in range(1, 5):
        for order in itertools.permutations(range(size)):
            permutation = Permutation([(1, size)], [np.array(order)])
            data = codec.encode_orders(permutation)
            assert codec.decode_orders(data, [(1, size)], "cross_filter") == permutation
            assert RangeReader(data).order(size) == list(order)


def test_bytes_of_an_order_of_two_blocks():
    # One swap of two equally likely ones: [0, 2^63) or, up to rounding, [2^63, 2^64). The stream
    # is the first word of the lower bound. 0 swaps blocks 0 and 1; 1 leaves them.
    def data(order):
        return codec.encode_orders(Permutation([(1, 2)], [np.array(order)]))

    assert data([1, 0]) == bytes([0, 0, 0, 0])
    assert data([0, 1]) == bytes([0, 0, 0, 0x80])


@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_orders_are_encoded_as_specified(kind):
    grids = [(6, 40), (3, 5)]
    permutation = random_permutation(grids, kind)
    reader = RangeReader(codec.encode_orders(permutation))
    for order, (filters, columns) in zip(permutation.orders, grids, strict=True):
        if kind == "cross_filter":
            assert reader.order(filters * columns) == order.tolist()
        else:
            within = np.array([reader.order(columns) for _ in range(filters)])
            by_filter = np.array(reader.order(filters))
            np.testing.assert_array_equal((by_filter[:, None] * columns + within).ravel(), order)


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("cross_filter", (64, 64)),
        ("in_filter", (128, 128)),
        pytest.param("cross_filter", (512, 512), marks=pytest.mark.slow),
    ],
)
def test_orders_take_little_more_than_their_bits(kind, grid):
    permutation = random_permutation([grid], kind)
    data = codec.encode_orders(permutation)
    assert permutation.bits <= 8 * len(data) <= 1.001 * permutation.bits + 64
    assert codec.decode_orders(data, [grid], kind) == permutation


def test_swaps_of_many_blocks_are_encoded_in_two_digits_as_specified(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST_DIGIT", 2**11)  # instead of a million blocks
    permutation = random_permutation([(50, 50)], "cross_filter")
    data = codec.encode_orders(permutation)
    assert codec.decode_orders(data, [(50, 50)], "cross_filter") == permutation
    assert RangeReader(data).order(2500, largest=2**11) == permutation.orders[0].tolist()
    assert 8 * len(data) <= 1.02 * permutation.bits


def test_raises_for_a_swap_with_a_block_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST_DIGIT", 2**11)
    encoder = constriction.stream.queue.RangeEncoder()
    highs = [size if size <= 2048 else math.ceil(size / 1024) for size in range(2, 2051)]
    last = np.array(highs, "int32") - 1
    encoder.encode(last, constriction.stream.model.Uniform(), last + 1)
    # The last swap is 2 * 1024 + 2, one of 2,050.
    encoder.encode(np.array([1, 2], "int32"), constriction.stream.model.Uniform(1024))
    with pytest.raises(ValueError, match="it swaps a block with one that does not exist"):
        codec.decode_orders(encoder.get_compressed().tobytes(), [(1, 2050)], "cross_filter")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(7), "7 bytes are not a whole number of 4-byte words"),
        (bytes(4), "4 bytes are too few for the order of 1,000 blocks"),
        (bytes(20_000), "the range coder has words left over"),
        (b"\xff" * 2000, "the range coder cannot read it"),
    ],
    ids=["a part of a word", "too short", "too long", "no stream"],
)
def test_raises_for_damaged_orders(data, message):
    with pytest.raises(ValueError, match=message):
        codec.decode_orders(data, [(10, 100)], "cross_filter")


# Integers.


def test_integers_are_decoded_and_take_little_more_than_their_entropy():
    arrays = [random_levels((9, 40, 50), 6, spread=0.1), np.zeros((7, 3), "int8")]
    arrays += [np.array([127, -127, 0], "int8"), np.zeros(0, "int8")]
    data = codec.encode_integers(arrays)
    found = codec.decode_integers(data, [array.shape for array in arrays])
    for array, decoded in zip(arrays, found, strict=True):
        assert decoded.dtype == "int8"
        np.testing.assert_array_equal(decoded, array)
    assert len(codec.encode_integers(arrays[:1])) < 1.01 * entropy_bytes(arrays[0])
    assert len(codec.encode_integers([np.zeros(10**6, "int8")])) == 4
    reader = RangeReader(data)
    for array in arrays:
        assert reader.integers(array.size) == array.ravel().tolist()


def test_raises_for_integers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"Integers must be in \[-127, 127\]. Received: 128"):
        codec.encode_integers([np.array([1, -128])])


def test_raises_for_damaged_integers():
    data = codec.encode_integers([random_levels((500,), 6)])
    with pytest.raises(ValueError, match="words left over"):
        codec.decode_integers(data, [(20,)])
