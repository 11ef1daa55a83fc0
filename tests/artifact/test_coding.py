import itertools
import math

import constriction
import numpy as np
import pytest
from range_reader import RangeReader

from keras_nern.artifact import codec
from keras_nern.permutations.permutation import Permutation


@pytest.fixture(autouse=True)
def _seeded():
    """In place of that of conftest.py: nothing here draws from Keras."""


def some_levels(shape, bits, seed=0, spread=0.3):
    top = 2 ** (bits - 1) - 1
    values = np.random.default_rng(seed).normal(0, spread * top, shape)
    return np.clip(np.rint(values), -top, top).astype("int8")


def entropy_bytes(levels):
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    return -(shares * np.log2(shares)).sum() * levels.size / 8


def some_permutation(grids, kind, seed=0):
    rng = np.random.default_rng(seed)
    orders = []
    for filters, columns in grids:
        if kind == "cross_filter":
            orders.append(rng.permutation(filters * columns))
        else:
            rows = [f * columns + rng.permutation(columns) for f in rng.permutation(filters)]
            orders.append(np.concatenate(rows))
    return Permutation(grids, orders, kind)


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_come_back(bits):
    kernels = [some_levels((30, 20), bits), some_levels((20, 7), bits, 1), np.zeros((3, 1), "int8")]
    data = codec.encode_levels(kernels, bits)
    decoded = codec.decode_levels(data, [kernel.shape for kernel in kernels], bits)
    for levels, kernel in zip(decoded, kernels, strict=True):
        assert levels.dtype == "int8"
        np.testing.assert_array_equal(levels, kernel)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_read_by_the_specification(bits):
    kernels = [some_levels((30, 20), bits), some_levels((20, 7), bits, 1)]
    reader = RangeReader(codec.encode_levels(kernels, bits))
    for kernel in kernels:
        assert reader.levels(kernel.size, bits) == kernel.ravel().tolist()


@pytest.mark.parametrize(("bits", "excess"), [(3, 0.001), (4, 0.002), (6, 0.005), (8, 0.02)])
def test_levels_take_little_more_than_their_entropy(bits, excess):
    levels = some_levels((240, 160), bits)
    assert len(codec.encode_levels([levels], bits)) <= (1 + excess) * entropy_bytes(levels) + 8


def test_pruned_levels_take_next_to_nothing():
    # Each of 100,000 zeros comes when at least as many as 8/9 of those before it are counted:
    # the sum over runs of log2((2 i + 15) / (2 i + 1)) bits is below 14 log2(100,000) + 64 * 4
    levels = np.zeros((1000, 100), "int8")
    assert len(codec.encode_levels([levels], 4)) <= (14 * math.log2(100_000) + 256) / 8


def test_levels_beyond_the_bits_are_refused():
    with pytest.raises(ValueError, match=r"Levels must be in \[-7, 7\]\. Received"):
        codec.encode_levels([np.array([8])], 4)


@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_orders_come_back(kind):
    grids = [(1, 1), (6, 4), (1, 9), (5, 1), (2, 2)]
    permutation = some_permutation(grids, kind)
    data = codec.encode_orders(permutation)
    assert codec.decode_orders(data, grids, kind) == permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_order_comes_back(size):
    for order in itertools.permutations(range(size)):
        permutation = Permutation([(1, size)], [np.array(order)])
        data = codec.encode_orders(permutation)
        assert codec.decode_orders(data, [(1, size)], "cross_filter") == permutation
        assert RangeReader(data).order(size) == list(order)


def test_order_of_two_byte_by_byte():
    # One swap of two equally likely, [0, 2^63) or [2^63, 2^64) but for rounding: the words of
    # their lowest numbers. 0 swaps block 1 away, 1 leaves it.
    def data(order):
        return codec.encode_orders(Permutation([(1, 2)], [np.array(order)]))

    assert data([1, 0]) == bytes([0, 0, 0, 0])
    assert data([0, 1]) == bytes([0, 0, 0, 0x80])


@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_orders_read_by_the_specification(kind):
    grids = [(6, 40), (3, 5)]
    permutation = some_permutation(grids, kind)
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
    [("cross_filter", (64, 64)), ("cross_filter", (512, 512)), ("in_filter", (128, 128))],
)
def test_orders_take_little_more_than_their_bits(kind, grid):
    permutation = some_permutation([grid], kind)
    data = codec.encode_orders(permutation)
    assert permutation.bits <= 8 * len(data) <= 1.001 * permutation.bits + 64
    assert codec.decode_orders(data, [grid], kind) == permutation


def test_large_swaps_are_coded_in_two_parts(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST_DIGIT", 2**13)  # else of more than a million blocks
    grid = (150, 100)
    permutation = some_permutation([grid], "cross_filter")
    data = codec.encode_orders(permutation)
    assert codec.decode_orders(data, [grid], "cross_filter") == permutation
    assert 8 * len(data) <= 1.02 * permutation.bits


def test_swaps_in_two_parts_are_as_specified(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST_DIGIT", 2**11)
    permutation = some_permutation([(50, 50)], "cross_filter")
    reader = RangeReader(codec.encode_orders(permutation))
    assert reader.order(2500, largest=2**11) == permutation.orders[0].tolist()


def test_refuses_a_swap_with_what_is_not_there(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST_DIGIT", 2**11)
    encoder = constriction.stream.queue.RangeEncoder()
    highs = [size if size <= 2048 else math.ceil(size / 1024) for size in range(2, 2051)]
    last = np.array(highs, "int32") - 1
    encoder.encode(last, constriction.stream.model.Uniform(), last + 1)
    # 2,050 in parts of 1,024 is two, and two left over
    encoder.encode(np.array([1, 2], "int32"), constriction.stream.model.Uniform(1024))
    with pytest.raises(ValueError, match="a swap with a block that is not there"):
        codec.decode_orders(encoder.get_compressed().tobytes(), [(1, 2050)], "cross_filter")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(7), "7 bytes are no whole number of 4-byte words"),
        (bytes(4), "4 bytes are too few for the order of 1,000 blocks"),
        (bytes(20_000), "the range coder has words left over"),
        (b"\xff" * 2000, "the range coder cannot read it"),
    ],
)
def test_refuses_what_is_no_order(data, message):
    with pytest.raises(ValueError, match=message):
        codec.decode_orders(data, [(10, 100)], "cross_filter")


def test_refuses_what_are_no_levels():
    data = codec.encode_levels([some_levels((30, 20), 4)], 4)
    with pytest.raises(ValueError, match="words left over"):
        codec.decode_levels(data + bytes([1] * 400), [(30, 20)], 4)
    with pytest.raises(ValueError, match="the range coder cannot read it"):
        codec.decode_levels(b"\xff" * len(data), [(30, 20)], 4)
