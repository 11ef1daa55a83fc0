import math

import numpy as np
import pytest
from slow_paths import slow_distance

from keras_nern.permutations import nearest_neighbours

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_matches_brute_force(metric):
    vectors = RNG.normal(size=(50, 4))
    distances = np.array([[slow_distance(u, v, metric) for v in vectors] for u in vectors])
    np.fill_diagonal(distances, math.inf)
    expected = np.sort(np.argsort(distances, axis=1)[:, :6], axis=1)
    found = np.sort(nearest_neighbours.nearest_neighbours(vectors, 6, metric), axis=1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_beyond_the_exact_limit_most_neighbors_are_found(metric, monkeypatch):
    vectors = RNG.normal(size=(2000, 3))
    exact = nearest_neighbours.nearest_neighbours(vectors, 5, metric)
    monkeypatch.setattr(nearest_neighbours, "EXACT_LIMIT", 100)
    found = nearest_neighbours.nearest_neighbours(vectors, 5, metric)
    assert (found != np.arange(2000)[:, None]).all()
    shared = [len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)]
    assert all(len(set(row)) == 5 for row in found)
    assert 0.9 < np.mean(shared) / 5 < 1


def test_equal_vectors_are_neighbors_of_each_other(monkeypatch):
    monkeypatch.setattr(nearest_neighbours, "EXACT_LIMIT", 10)
    found = nearest_neighbours.nearest_neighbours(np.ones((200, 2)), 199)
    np.testing.assert_array_equal(
        np.sort(found, axis=1), [np.delete(np.arange(200), i) for i in range(200)]
    )


@pytest.mark.parametrize("count", [0, 4])
def test_raises_for_a_count_that_is_out_of_range(count):
    with pytest.raises(ValueError, match=f"count must be at least 1 and below 4.*count={count}"):
        nearest_neighbours.nearest_neighbours(np.eye(4), count)
