import itertools
import math

import numpy as np
import pytest

from keras_nern.predictor.runs import DENSITY_POWER, Runs, place_features, run_lengths

# every division of few blocks, and some of many
DIVISIONS = [
    *((blocks, experts) for blocks in range(1, 25) for experts in range(1, blocks + 1)),
    *itertools.product((30_063, 99_991), (2, 7, 997)),
]
NETWORKS = [[4], [1, 1, 1], [3, 256, 256, 1024, 4096], [4096, 3], [100_000, 9, 9, 9, 9]]


def test_runs_of_one_layer_are_equal():
    for num_blocks, experts in DIVISIONS:
        lengths = run_lengths([num_blocks], experts)
        assert len(lengths) == experts
        assert sum(lengths) == num_blocks
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("sizes", NETWORKS)
def test_runs_are_pieces_of_equal_density(sizes):
    blocks = sum(sizes)
    density = np.repeat(np.power(sizes, -DENSITY_POWER), sizes)
    for experts in {1, 2, 3, min(17, blocks), blocks}:
        lengths = run_lengths(sizes, experts)
        assert (len(lengths), sum(lengths)) == (experts, blocks)
        assert min(lengths) >= 1
        if experts <= blocks / 100:
            totals = np.add.reduceat(density, np.append(0, np.cumsum(lengths)[:-1]))
            # to within half a block at either end
            assert np.ptp(totals) <= 2 * density.max()


def test_runs_of_equally_large_layers_are_equal():
    assert run_lengths([50] * 8, experts=4) == [100] * 4


def test_run_lengths_by_hand():
    # the densities 4^0.6 = 2.297 and 256^0.6 = 27.858 add up to 4 x 7.539; the first run ends
    # 7.539 - 2.297 = 5.242 into the second layer, which has 27.858 / 256 a block
    assert run_lengths([4, 256], experts=4) == [4 + 48, 69, 70, 69]


def test_slots_by_hand():
    runs = Runs([3, 1, 4])
    assert (runs.experts, runs.length, runs.num_slots) == (3, 4, 12)
    assert runs.starts.tolist() == [0, 3, 4]
    assert runs.places().tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert runs.ranks().tolist() == [0, 1, 2, 0, 3, 3, 3, 3, 4, 5, 6, 7]
    assert runs.slots().tolist() == [0, 1, 2, 4, 8, 9, 10, 11]


@pytest.mark.parametrize("sizes", NETWORKS)
def test_every_block_has_a_slot(sizes):
    for experts in (1, 2, 3):
        runs = Runs(run_lengths(sizes, min(experts, sum(sizes))))
        ranks, slots = runs.ranks(), runs.slots()
        assert ranks.shape == (runs.num_slots,)
        assert ranks.dtype == slots.dtype == "int32"
        np.testing.assert_array_equal(ranks[slots], np.arange(sum(sizes)))
        assert (np.diff(slots) > 0).all()


def test_raises_for_more_experts_than_blocks():
    with pytest.raises(ValueError, match=r"at most 1,234, .* blocks\. Received: experts=1235"):
        run_lengths([1000, 234], 1235)


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
