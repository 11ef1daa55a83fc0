import math

import numpy as np
import pytest
from slow_paths import slow_greedy, slow_length

from keras_nern.permutations import tours
from keras_nern.permutations.nearest_neighbours import METRICS
from keras_nern.permutations.orders import block_order, check_order, invert, permutation_bits

SHAPES = [(5, 7, 9), (1, 4, 3), (6, 1, 4), (1, 6, 9), (4, 3, 1)]  # (filters, columns, B)


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch):
    monkeypatch.setattr(tours, "FAST_TSP_SECONDS", 0.2)


def _slow_cross_filter(blocks, metric):
    return slow_greedy([block for row in blocks for block in row], metric)


def _slow_in_filter(blocks, metric):
    within = [slow_greedy(row, metric) for row in blocks]
    ordered = [
        np.concatenate([row[column] for column in order])
        for row, order in zip(blocks, within, strict=True)
    ]
    columns = len(blocks[0])
    return [f * columns + column for f in slow_greedy(ordered, metric) for column in within[f]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kind", "oracle"), [("cross_filter", _slow_cross_filter), ("in_filter", _slow_in_filter)]
)
@pytest.mark.parametrize("metric", METRICS)
def test_orders_match_the_definition(kind, oracle, shape, metric):
    blocks = np.random.default_rng(0).normal(size=shape)
    if shape[-1] == 1:  # scalars have cosine 1 or -1: ties go to the lowest index
        blocks = np.sign(blocks)
    order = block_order(blocks, kind, metric=metric)
    np.testing.assert_array_equal(order, oracle(blocks, metric))


@pytest.mark.parametrize("method", tours.METHODS)
def test_in_filter_keeps_the_blocks_of_each_filter_together(method):
    blocks = np.random.default_rng(0).normal(size=(7, 5, 9))
    filters = block_order(blocks, "in_filter", method).reshape(7, 5) // 5
    assert (filters == filters[:, :1]).all()
    assert sorted(filters[:, 0]) == list(range(7))


def test_invert_gives_the_inverse_permutation():
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(order[invert(order)], np.arange(20))
    np.testing.assert_array_equal(invert(order)[order], np.arange(20))


def test_bits_count_the_permutations():
    shape = (2, 3)
    assert permutation_bits(shape) == 0
    assert permutation_bits(shape, "cross_filter") == pytest.approx(math.log2(720))
    # 3! orders in each of 2 filters, and 2! orders of the filters
    assert permutation_bits(shape, "in_filter") == pytest.approx(math.log2(72))


@pytest.mark.parametrize(("method", "seeds"), [("two_opt", 4), ("fast_tsp", 1)])
@pytest.mark.parametrize("metric", METRICS)
def test_no_path_is_longer_than_the_greedy_one(method, seeds, metric):
    for seed in range(seeds):
        blocks = np.random.default_rng(seed).normal(size=(8, 8, 9))
        flat = blocks.reshape(64, 9)
        greedy, found = (
            block_order(blocks, "cross_filter", one, metric) for one in ("greedy", method)
        )
        assert slow_length(flat, found, metric) < slow_length(flat, greedy, metric)
        greedy, found = (
            block_order(blocks, "in_filter", one, metric).reshape(8, 8)
            for one in ("greedy", method)
        )
        for row in greedy:
            same_filter = found[found[:, 0] // 8 == row[0] // 8][0]
            longest = slow_length(flat, row, metric) + 1e-6
            assert slow_length(flat, same_filter, metric) <= longest


def test_raises_for_an_unknown_kind_or_metric():
    message = "kind must be one of .*Received: kind='smooth'"
    with pytest.raises(ValueError, match=message):
        block_order(np.zeros((1, 1, 9)), "smooth")
    with pytest.raises(ValueError, match=message):
        permutation_bits((1, 1), "smooth")
    with pytest.raises(ValueError, match=r"metric must be one of .*Received: metric='angle'"):
        block_order(np.zeros((1, 1, 9)), None, metric="angle")


@pytest.mark.parametrize("order", [np.arange(5), np.zeros(6, int)])
def test_raises_for_an_order_that_is_not_a_permutation(order):
    check_order(np.arange(6)[::-1], 6, index=2)
    with pytest.raises(ValueError, match=r"layer 2 must be a permutation of range\(6\)"):
        check_order(order, 6, index=2)
