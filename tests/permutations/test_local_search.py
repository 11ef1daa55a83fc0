import numpy as np
import pytest

from keras_nern.permutations import tours
from keras_nern.permutations.nearest_neighbours import METRICS, nearest_neighbours, prepared
from keras_nern.permutations.tours import LONGEST_SHIFT, NEIGHBOURS, Path

RNG = np.random.default_rng(0)


def _path(n, metric="euclidean"):
    vectors = RNG.normal(size=(n, 3))
    return Path(prepared(vectors, metric), RNG.permutation(n), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [4, 6, 12, 40])
def test_every_move_gains_what_it_promises(metric, n):
    """Each best move, alone: the path stays a path and shortens by the gain."""
    seen = set()
    for _ in range(20):
        path = _path(n, metric)
        nodes = np.arange(n)
        nearest = np.array([np.delete(nodes, node) for node in nodes])
        near = path.distance(nodes[:, None], nearest)
        gains, moves = path._best_moves(nodes, nearest, near)
        for gain, move in zip(gains, moves.tolist(), strict=True):
            if gain == 0:
                continue
            moved = Path(path.vectors, path.tour[1:], metric)
            kind, *rest = move
            assert moved._reverse(*rest[:4]) if kind == 0 else moved._shift(*rest)
            seen.add(kind)
            assert sorted(moved.tour) == list(range(n + 1))
            assert moved.tour[0] == n
            np.testing.assert_array_equal(moved.tour[moved.place], np.arange(n + 1))
            assert path.length() - moved.length() == pytest.approx(gain, abs=1e-5)
    assert seen == {0, 1}


def test_no_better_move_is_left():
    """A local optimum by brute force: no reversal and no shift shortens the path."""
    n = 9  # so that each vector's neighbours are all others
    vectors = RNG.normal(size=(n, 2))
    order = tours.order_vectors(vectors, "two_opt").tolist()
    length = tours.path_length(vectors, order)
    others = []
    for low in range(n):
        for high in range(low + 1, n + 1):
            others.append(order[:low] + order[low:high][::-1] + order[high:])
            piece, rest = order[low:high], order[:low] + order[high:]
            if len(piece) <= LONGEST_SHIFT:
                for place in range(len(rest) + 1):
                    others.append(rest[:place] + piece + rest[place:])
                    others.append(rest[:place] + piece[::-1] + rest[place:])
    assert min(tours.path_length(vectors, other) for other in others) >= length * (1 - 1e-5)


def test_none_is_left_among_many_vectors():
    """After the last pass no move of any vector gains, though some failed on the way."""
    vectors = prepared(RNG.normal(size=(1500, 6)), "euclidean")
    path = Path(vectors, np.arange(1500), "euclidean")
    path.improve()
    nearest = nearest_neighbours(vectors, NEIGHBOURS)
    near = path.distance(np.arange(1500)[:, None], nearest)
    gains, _ = path._best_moves(np.arange(1500), nearest, near)
    assert gains.max() <= 1e-6 * path.length() / 1500


def test_moves_whose_steps_are_gone_are_not_made():
    path = Path(prepared(RNG.normal(size=(8, 2)), "euclidean"), np.arange(8), "euclidean")
    before = path.tour.copy()
    assert not path._reverse(1, 3, 5, 6)  # 3 does not follow 1
    assert not path._reverse(1, 2, 6, 5)  # one runs forwards, one backwards
    assert not path._shift(2, 3, 0, 4, 6, 7)  # 1 comes before 2, not 0
    assert not path._shift(2, 3, 1, 4, 5, 7)  # no step from 5 to 7
    assert not path._shift(2, 3, 1, 4, 3, 4)  # within the piece itself
    np.testing.assert_array_equal(path.tour, before)


def test_moves_by_hand():
    path = Path(prepared(RNG.normal(size=(6, 2)), "euclidean"), np.arange(6), "euclidean")
    assert path._reverse(0, 1, 3, 4)  # (0, 1), (3, 4) become (0, 3), (1, 4)
    assert path.tour.tolist() == [6, 0, 3, 2, 1, 4, 5]
    assert path._shift(3, 2, 0, 1, 5, 6)  # 3 beside 5, 2 at the end
    assert path.tour.tolist() == [6, 0, 1, 4, 5, 3, 2]
    assert path._shift(5, 5, 4, 3, 0, 6)  # to the front
    assert path.tour.tolist() == [6, 5, 0, 1, 4, 3, 2]
