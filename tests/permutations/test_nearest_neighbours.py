import math

import numpy as np
import pytest

from keras_nern.permutations import nearest_neighbours

RNG = np.random.default_rng(0)


def _distances(vectors, metric):
    if metric == "euclidean":
        return np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return 1 - units @ units.T


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_nearest_by_brute_force(metric):
    vectors = RNG.normal(size=(50, 4))
    distances = _distances(vectors, metric)
    np.fill_diagonal(distances, math.inf)
    expected = np.sort(np.argsort(distances, axis=1)[:, :6], axis=1)
    got = np.sort(nearest_neighbours.nearest_neighbours(vectors, 6, metric), axis=1)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_of_many_vectors_most_neighbours_are_found(metric, monkeypatch):
    vectors = RNG.normal(size=(2000, 3))
    exact = nearest_neighbours.nearest_neighbours(vectors, 5, metric)
    monkeypatch.setattr(nearest_neighbours, "EXACT_LIMIT", 100)
    found = nearest_neighbours.nearest_neighbours(vectors, 5, metric)
    assert (found != np.arange(2000)[:, None]).all()
    shared = [len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)]
    assert all(len(set(row)) == 5 for row in found)
    assert 0.9 < np.mean(shared) / 5 < 1


def test_vectors_that_are_all_alike_have_neighbours_too(monkeypatch):
    monkeypatch.setattr(nearest_neighbours, "EXACT_LIMIT", 10)
    found = nearest_neighbours.nearest_neighbours(np.ones((200, 2)), 199)
    np.testing.assert_array_equal(
        np.sort(found, axis=1), [np.delete(np.arange(200), i) for i in range(200)]
    )


@pytest.mark.parametrize("count", [0, 4])
def test_count_must_fit(count):
    with pytest.raises(ValueError, match=f"count must be at least 1 and below 4.*count={count}"):
        nearest_neighbours.nearest_neighbours(np.eye(4), count)
