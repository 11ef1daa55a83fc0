import math

import numpy as np
import pytest
from slow_paths import slow_greedy

from keras_nern.permutations import tours
from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.orders import block_order, invert, permutation_bits

SHAPES = [(3, 3, 5, 7), (1, 1, 4, 3), (3, 1, 1, 6), (3, 3, 6, 1)]


def _slow_kernels(kernel):
    _, _, cin, cout = kernel.shape
    return [[kernel[:, :, c, f].ravel() for c in range(cin)] for f in range(cout)]


def _grid(kernel):
    return np.array([[k for k in filter_] for filter_ in _slow_kernels(kernel)])


def _slow_cross_filter(kernel, metric):
    return slow_greedy([k for filter_ in _slow_kernels(kernel) for k in filter_], metric)


def _slow_in_filter(kernel, metric):
    filters = _slow_kernels(kernel)
    channels = [slow_greedy(filter_, metric) for filter_ in filters]
    ordered = [
        np.concatenate([filter_[c] for c in order])
        for filter_, order in zip(filters, channels, strict=True)
    ]
    return [f * len(filters[0]) + c for f in slow_greedy(ordered, metric) for c in channels[f]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kind", "oracle"), [("cross_filter", _slow_cross_filter), ("in_filter", _slow_in_filter)]
)
@pytest.mark.parametrize("metric", METRICS)
def test_orders_match_the_definition(kind, oracle, shape, metric):
    kernel = np.random.default_rng(0).normal(size=shape)
    if shape[:2] == (1, 1):  # scalars have cosine 1 or -1: ties go to the lowest index
        kernel = np.sign(kernel)
    order = block_order(_grid(kernel), kind, metric=metric)
    np.testing.assert_array_equal(order, oracle(kernel, metric))


@pytest.mark.parametrize("method", ["greedy", "two_opt", "fast_tsp"])
def test_in_filter_keeps_filters_together(method):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 7))
    order = block_order(_grid(kernel), "in_filter", method)
    filters = order.reshape(7, 5) // 5
    assert (filters == filters[:, :1]).all()
    assert sorted(filters[:, 0]) == list(range(7))


def test_inverse_of_an_order():
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(order[invert(order)], np.arange(20))
    np.testing.assert_array_equal(invert(order)[order], np.arange(20))


def test_bits_count_the_permutations():
    shape = (2, 3)
    assert permutation_bits(shape) == 0
    assert permutation_bits(shape, "cross_filter") == pytest.approx(math.log2(720))
    # 3! orders in each of 2 filters, and 2! of the filters
    assert permutation_bits(shape, "in_filter") == pytest.approx(math.log2(72))


@pytest.mark.parametrize("method", tours.METHODS[1:])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_no_path_is_longer_than_the_greedy_one(method, metric):
    if method == "fast_tsp":
        pytest.importorskip("fast_tsp", reason="install keras-nern[tsp]")
    for seed in range(4 if method == "two_opt" else 1):
        blocks = np.random.default_rng(seed).normal(size=(8, 8, 9))
        flat = blocks.reshape(64, 9)
        orders = [block_order(blocks, "cross_filter", one, metric) for one in ("greedy", method)]
        lengths = [tours.path_length(flat, order, metric) for order in orders]
        assert lengths[1] < lengths[0]
        orders = [block_order(blocks, "in_filter", one, metric) for one in ("greedy", method)]
        for number in range(8):
            found = []
            for order in orders:
                rows = order.reshape(8, 8)
                row = rows[rows[:, 0] // 8 == number][0]
                found.append(tours.path_length(flat, row, metric))
            assert found[1] <= found[0] + 1e-6


def test_unknown_names():
    message = "permutation must be one of .*Received: permutation='smooth'"
    with pytest.raises(ValueError, match=message):
        block_order(np.zeros((1, 1, 9)), "smooth")
    with pytest.raises(ValueError, match=message):
        permutation_bits((1, 1), "smooth")
    with pytest.raises(ValueError, match=r"metric must be one of .*Received: metric='angle'"):
        block_order(np.zeros((1, 1, 9)), None, metric="angle")
