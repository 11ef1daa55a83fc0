import itertools
import math

import numpy as np
import pytest

from keras_nern.predictor.runs import Runs, place_features

# every division of few blocks, and some of many
DIVISIONS = [
    *((blocks, experts) for blocks in range(1, 25) for experts in range(1, blocks + 1)),
    *itertools.product((30_063, 99_991), (2, 7, 997)),
]


def test_every_block_has_one_slot_and_every_slot_one_block():
    for num_blocks, experts in DIVISIONS:
        runs = Runs(num_blocks, experts)
        ranks, slots = runs.ranks(), runs.slots()
        assert ranks.shape == (runs.num_slots,) == (experts * runs.length,)
        assert ranks.min() >= 0
        assert ranks.max() < num_blocks
        np.testing.assert_array_equal(ranks[slots], np.arange(num_blocks))
        # a run shares at most one block, with the run after it
        assert 0 <= runs.num_slots - num_blocks < experts
        shared = np.setdiff1d(np.arange(runs.num_slots), slots)
        np.testing.assert_array_equal(shared % runs.length, runs.length - 1)
        np.testing.assert_array_equal(ranks[shared], ranks[shared + 1])


def test_runs_match_the_definition():
    for num_blocks, experts in DIVISIONS:
        runs = Runs(num_blocks, experts)
        assert runs.length == math.ceil(num_blocks / experts)
        expected = [expert * num_blocks // experts for expert in range(experts)]
        assert runs.starts.tolist() == expected


def test_runs_by_hand():
    runs = Runs(num_blocks=8, experts=3)  # 8 = 3 x 3 - 1
    assert (runs.length, runs.num_slots) == (3, 9)
    assert runs.starts.tolist() == [0, 2, 5]
    assert runs.ranks().tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert runs.slots().tolist() == [0, 1, 3, 4, 5, 6, 7, 8]


def test_raises_for_more_experts_than_blocks():
    with pytest.raises(ValueError, match=r"at most 1,234, .* blocks\. Received: experts=1235"):
        Runs(1234, 1235)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_features_match_the_formula(length):
    features = place_features(length)
    assert features.shape == (length, 16)
    assert features.dtype == "float32"
    for place, i in itertools.product(range(length), range(8)):
        angle = 2 * math.pi * place * length ** (-(i + 1) / 8) / 2
        expected = math.sin(angle), math.cos(angle)
        np.testing.assert_allclose(features[place, [i, 8 + i]], expected, atol=1e-6)


def test_no_two_places_of_a_run_have_equal_features():
    features = place_features(4_000).astype("float64")
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 1e-2
