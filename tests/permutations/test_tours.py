import itertools
import sys

import numpy as np
import pytest
from slow_paths import slow_greedy, slow_length

from keras_nern.permutations import nearest_neighbours, tours
from keras_nern.permutations.nearest_neighbours import METRICS, prepare
from keras_nern.permutations.tours import MAX_PIECE, NEIGHBOURS, Tour, order_vectors

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch):
    monkeypatch.setattr(tours, "FAST_TSP_SECONDS", 0.2)


def test_greedy_by_hand():
    right, up, far_right, left = [1, 0], [0, 1], [5, 0.1], [-1, 0]
    vectors = [right, up, far_right, left]
    assert order_vectors(vectors, metric="cosine").tolist() == [0, 2, 1, 3]
    # Distances from (1, 0): sqrt 2, 4.0, 2; from (0, 1): 5.1 and sqrt 2.
    assert order_vectors(vectors, metric="euclidean").tolist() == [0, 1, 3, 2]


def test_zero_vectors_have_the_cosine_0():
    # From (1, 0), the zero vector with cosine 0 comes before (-1, 0) with cosine -1.
    assert order_vectors([[1, 0], [-1, 0], [0, 0]], metric="cosine").tolist() == [0, 2, 1]
    assert order_vectors(np.zeros((3, 2)), metric="cosine").tolist() == [0, 1, 2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 2, 3, 40, 300])
def test_greedy_matches_the_definition(metric, n):
    vectors = RNG.normal(size=(n, 4))
    order = order_vectors(vectors, "greedy", metric)
    np.testing.assert_array_equal(order, slow_greedy(vectors, metric))


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_greedy_distinguishes_vectors_of_a_small_spread(spread):
    vectors = 3.0 + spread * RNG.normal(size=(200, 9))
    np.testing.assert_array_equal(order_vectors(vectors), slow_greedy(vectors, "euclidean"))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_are_ordered_by_index(metric):
    vectors = np.repeat(np.eye(3), 20, axis=0)
    order = order_vectors(vectors, "greedy", metric)
    np.testing.assert_array_equal(order, np.arange(60))


@pytest.mark.parametrize("method", tours.METHODS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 100])
def test_every_method_visits_each_vector_once_and_is_at_most_as_long_as_greedy(method, metric, n):
    vectors = RNG.normal(size=(n, 3))
    order = order_vectors(vectors, method, metric)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    greedy = order_vectors(vectors, "greedy", metric)
    longest = slow_length(vectors, greedy, metric) * (1 + 1e-6)
    assert slow_length(vectors, order, metric) <= longest


@pytest.mark.parametrize("method", tours.METHODS[1:])
def test_other_methods_order_points_on_a_line(method):
    # From the middle, the greedy path has to jump back to the other end.
    places = np.array([0.0, 1.0, 2.5, -1.1, -2.7, 4.5, -4.9])
    vectors = np.stack([places, 0 * places], axis=1)
    order = order_vectors(vectors, method)
    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))


def test_two_opt_is_near_the_shortest_path_and_fast_tsp_finds_it():
    ratios = []
    for _ in range(10):
        vectors = RNG.random((6, 2))
        shortest = min(
            slow_length(vectors, order, "euclidean") for order in itertools.permutations(range(6))
        )
        order = order_vectors(vectors, "two_opt")
        ratios.append(slow_length(vectors, order, "euclidean") / shortest)
        found = tours._fast_tsp(prepare(vectors, "euclidean"), "euclidean")
        assert slow_length(vectors, found, "euclidean") == pytest.approx(shortest, rel=1e-3)
    assert min(ratios) > 1 - 1e-6
    assert np.mean(ratios) < 1.05


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_scale_of_the_vectors_does_not_change_the_order(metric, size):
    vectors = RNG.normal(size=(50, 4))
    expected = order_vectors(vectors, "two_opt", metric)
    np.testing.assert_array_equal(order_vectors(size * vectors, "two_opt", metric), expected)


@pytest.mark.parametrize(("method", "passes"), [("greedy", 1), ("two_opt", 2), ("fast_tsp", 3)])
@pytest.mark.parametrize("n", [1, 2, 200])
def test_progress_counts_every_vector_in_every_pass(method, passes, n):
    done = []
    order_vectors(RNG.normal(size=(n, 3)), method, progress=done.append)
    assert sum(done) == passes * n


def test_raises_for_an_unknown_method_or_metric():
    with pytest.raises(ValueError, match=r"method must be one of .*Received: method='exact'"):
        order_vectors(np.zeros((3, 2)), "exact")
    message = r"metric must be one of \('cosine', 'euclidean'\). Received: metric='angle'"
    with pytest.raises(ValueError, match=message):
        order_vectors(np.zeros((3, 2)), metric="angle")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_raises_for_vectors_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"finite weights to order. Received: some NaN or inf"):
        order_vectors([[0.0, 1.0], [bad, 1.0]])


def test_fast_tsp_raises_for_too_many_vectors(monkeypatch):
    monkeypatch.setattr(tours, "FAST_TSP_LIMIT", 5)
    with pytest.raises(ValueError, match=r'up to 5 vectors; use "two_opt" .*Received: 6'):
        order_vectors(np.zeros((6, 2)), "fast_tsp")


def test_fast_tsp_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_tsp", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'fast_tsp is not installed.*"keras-nern\[tsp\]"'):
        order_vectors(np.zeros((6, 2)), "fast_tsp")


# The local search.


def _random_tour(n, metric="euclidean"):
    return Tour(prepare(RNG.normal(size=(n, 3)), metric), RNG.permutation(n), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_length_matches_the_definition(metric):
    vectors, order = RNG.normal(size=(30, 5)), RNG.permutation(30)
    vectors[7] = 0
    prepared = prepare(vectors, "cosine") if metric == "cosine" else vectors
    expected = slow_length(vectors, order, metric)
    assert Tour(prepared, order, metric).length() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [4, 6, 12, 40])
def test_each_move_shortens_the_path_by_its_gain(metric, n):
    seen = set()
    for _ in range(20):
        tour = _random_tour(n, metric)
        nodes = np.arange(n)
        nearest = np.array([np.delete(nodes, node) for node in nodes])
        near = tour.distance(nodes[:, None], nearest)
        gains, moves = tour._best_moves(nodes, nearest, near)
        for gain, (kind, *move) in zip(gains, moves.tolist(), strict=True):
            if gain == 0:
                continue
            moved = Tour(tour.vectors, tour.nodes[1:], metric)
            assert moved._reverse(*move[:4]) if kind == 0 else moved._shift(*move)
            seen.add(kind)
            assert sorted(moved.nodes) == list(range(n + 1))
            assert moved.nodes[0] == n
            np.testing.assert_array_equal(moved.nodes[moved.place], np.arange(n + 1))
            assert tour.length() - moved.length() == pytest.approx(gain, abs=1e-5)
    assert seen == {0, 1}


def test_two_opt_ends_in_a_local_optimum():
    """No reversal and no shift shortens the path, by brute force."""
    n = 9  # so that the neighbors of each vector are all others
    vectors = RNG.normal(size=(n, 2))
    order = order_vectors(vectors, "two_opt").tolist()
    others = []
    for low in range(n):
        for high in range(low + 1, n + 1):
            others.append(order[:low] + order[low:high][::-1] + order[high:])
            piece, rest = order[low:high], order[:low] + order[high:]
            if len(piece) <= MAX_PIECE:
                for place in range(len(rest) + 1):
                    others.append(rest[:place] + piece + rest[place:])
                    others.append(rest[:place] + piece[::-1] + rest[place:])
    length = slow_length(vectors, order, "euclidean")
    assert min(slow_length(vectors, other, "euclidean") for other in others) >= length * (1 - 1e-5)


def test_two_opt_leaves_no_move_that_gains_among_many_vectors():
    """The last pass finds no gain for any vector, although earlier passes skipped moves."""
    n = 1500
    tour = Tour(prepare(RNG.normal(size=(n, 6)), "euclidean"), np.arange(n), "euclidean")
    tour.improve()
    nearest = nearest_neighbours.nearest_neighbours(tour.vectors, NEIGHBOURS)
    near = tour.distance(np.arange(n)[:, None], nearest)
    gains, _ = tour._best_moves(np.arange(n), nearest, near)
    assert gains.max() <= 1e-6 * tour.length() / n


def test_moves_whose_edges_are_gone_are_skipped():
    tour = Tour(prepare(RNG.normal(size=(8, 2)), "euclidean"), np.arange(8), "euclidean")
    before = tour.nodes.copy()
    assert not tour._reverse(1, 3, 5, 6)  # 3 does not follow 1
    assert not tour._reverse(1, 2, 6, 5)  # one runs forwards, one backwards
    assert not tour._shift(2, 3, 0, 4, 6, 7)  # 1 comes before 2, not 0
    assert not tour._shift(2, 3, 1, 4, 5, 7)  # no step from 5 to 7
    assert not tour._shift(2, 3, 1, 4, 3, 4)  # within the piece itself
    np.testing.assert_array_equal(tour.nodes, before)


def test_moves_by_hand():
    tour = Tour(prepare(RNG.normal(size=(6, 2)), "euclidean"), np.arange(6), "euclidean")
    assert tour._reverse(0, 1, 3, 4)  # (0, 1), (3, 4) become (0, 3), (1, 4)
    assert tour.nodes.tolist() == [6, 0, 3, 2, 1, 4, 5]
    assert tour._shift(3, 2, 0, 1, 5, 6)  # 3 next to 5, 2 at the end
    assert tour.nodes.tolist() == [6, 0, 1, 4, 5, 3, 2]
    assert tour._shift(5, 5, 4, 3, 0, 6)  # to the front
    assert tour.nodes.tolist() == [6, 5, 0, 1, 4, 3, 2]
