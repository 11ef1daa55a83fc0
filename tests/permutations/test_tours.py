import builtins
import itertools

import numpy as np
import pytest
from slow_paths import slow_greedy, slow_length

from keras_nern.permutations import nearest_neighbours, tours
from keras_nern.permutations.nearest_neighbours import prepared

RNG = np.random.default_rng(0)


def test_greedy_by_hand():
    right, up, far_right, left = [1, 0], [0, 1], [5, 0.1], [-1, 0]
    vectors = [right, up, far_right, left]
    assert tours.order_vectors(vectors, metric="cosine").tolist() == [0, 2, 1, 3]
    # distances from (1, 0): sqrt 2, 4.0, 2; from (0, 1): 5.1 and sqrt 2
    assert tours.order_vectors(vectors, metric="euclidean").tolist() == [0, 1, 3, 2]


def test_zero_vectors_have_the_cosine_zero():
    # From (1, 0): the zero vector (0) comes before (-1, 0) (-1); no NaN on the way.
    assert tours.order_vectors([[1, 0], [-1, 0], [0, 0]], metric="cosine").tolist() == [0, 2, 1]
    assert tours.order_vectors(np.zeros((3, 2)), metric="cosine").tolist() == [0, 1, 2]


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
@pytest.mark.parametrize("n", [1, 2, 3, 40, 300])
def test_greedy_matches_the_definition(metric, n):
    vectors = RNG.normal(size=(n, 4))
    order = tours.order_vectors(vectors, "greedy", metric)
    np.testing.assert_array_equal(order, slow_greedy(vectors, metric))


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_equal_vectors_go_by_index(metric):
    vectors = np.repeat(np.eye(3), 20, axis=0)
    order = tours.order_vectors(vectors, "greedy", metric)
    np.testing.assert_array_equal(order, np.arange(60))


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
def test_path_length_matches_the_definition(metric):
    vectors = RNG.normal(size=(30, 5))
    vectors[7] = 0
    order = RNG.permutation(30)
    expected = slow_length(vectors, order, metric)
    assert tours.path_length(vectors, order, metric) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", tours.METHODS)
@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 100])
def test_every_method_visits_each_vector_once_and_is_no_longer_than_greedy(method, metric, n):
    vectors = RNG.normal(size=(n, 3))
    order = tours.order_vectors(vectors, method, metric)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    greedy = tours.order_vectors(vectors, "greedy", metric)
    longest = tours.path_length(vectors, greedy, metric) * (1 + 1e-6)
    assert tours.path_length(vectors, order, metric) <= longest


@pytest.mark.parametrize("method", ["two_opt", "fast_tsp"])
def test_finds_the_way_along_a_line(method):
    # Greedy from the middle has to come back for the other end.
    places = np.array([0.0, 1.0, 2.5, -1.1, -2.7, 4.5, -4.9])
    vectors = np.stack([places, 0 * places], axis=1)
    order = tours.order_vectors(vectors, method)
    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))


def test_two_opt_is_near_the_shortest_path_and_fast_tsp_finds_it():
    # Among all paths through 7 points; the mean over 10 draws.
    ratios = []
    for _ in range(10):
        vectors = RNG.random((7, 2))
        shortest = min(
            slow_length(vectors, order, "euclidean") for order in itertools.permutations(range(7))
        )
        order = tours.order_vectors(vectors, "two_opt")
        ratios.append(tours.path_length(vectors, order) / shortest)
        found = tours._fast_tsp(prepared(vectors, "euclidean"), "euclidean")
        assert slow_length(vectors, found, "euclidean") == pytest.approx(shortest, rel=1e-3)
    assert min(ratios) > 1 - 1e-6
    assert np.mean(ratios) < 1.05


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_greedy_tells_vectors_apart_that_are_much_alike(spread):
    vectors = 3.0 + spread * RNG.normal(size=(200, 9))
    np.testing.assert_array_equal(tours.order_vectors(vectors), slow_greedy(vectors, "euclidean"))


@pytest.mark.parametrize("metric", nearest_neighbours.METRICS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_very_small_and_large_vectors_have_an_order_too(metric, size):
    vectors = RNG.normal(size=(50, 4))
    expected = tours.order_vectors(vectors, "two_opt", metric)
    np.testing.assert_array_equal(tours.order_vectors(size * vectors, "two_opt", metric), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_what_is_not_finite(bad):
    with pytest.raises(ValueError, match=r"finite weights to order. Received: some NaN or inf"):
        tours.order_vectors([[0.0, 1.0], [bad, 1.0]])


@pytest.mark.parametrize(("method", "rounds"), [("greedy", 1), ("two_opt", 2), ("fast_tsp", 3)])
@pytest.mark.parametrize("n", [1, 2, 200])
def test_progress_adds_up(method, rounds, n):
    if method == "fast_tsp":
        pytest.importorskip("fast_tsp", reason="install keras-nern[tsp]")
    done = []
    tours.order_vectors(RNG.normal(size=(n, 3)), method, progress=done.append)
    assert sum(done) == rounds * n


def test_the_length_of_a_path_is_exact_where_vectors_are_nearly_parallel():
    angles = np.array([0.0, 1e-6, 3e-6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1.0], [1e9], [1e-9]]
    expected = (1e-12 + 4e-12) / 2  # 1 - cos(x) is x^2 / 2
    assert tours.path_length(vectors, [0, 1, 2], "cosine") == pytest.approx(expected, rel=1e-3)
    assert tours.path_length(np.array([[1.0, 2], [2, 4], [0, 0]]), [0, 1, 2], "cosine") == 1.0


def test_unknown_names():
    message = r"method must be one of .*Received: method='exact'"
    with pytest.raises(ValueError, match=message):
        tours.order_vectors(np.zeros((3, 2)), "exact")
    message = r"metric must be one of \('cosine', 'euclidean'\). Received: metric='angle'"
    with pytest.raises(ValueError, match=message):
        tours.order_vectors(np.zeros((3, 2)), metric="angle")
    with pytest.raises(ValueError, match=message):
        tours.path_length(np.zeros((3, 2)), [0, 1, 2], "angle")


def test_fast_tsp_refuses_too_many_vectors(monkeypatch):
    monkeypatch.setattr(tours, "FAST_TSP_LIMIT", 5)
    with pytest.raises(ValueError, match=r'up to 5 vectors; take "two_opt" .*Received: 6'):
        tours.order_vectors(np.zeros((6, 2)), "fast_tsp")


def test_fast_tsp_says_what_to_install(monkeypatch):
    imports = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "fast_tsp":
            raise ImportError(name)
        return imports(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install keras-nern\[tsp\]"):
        tours.order_vectors(np.zeros((6, 2)), "fast_tsp")
