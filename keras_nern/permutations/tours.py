"""Short paths through vectors: the travelling salesman's problem behind a permutation.

An order is smooth where the steps between neighbours are short, so that the best order
is the shortest path that visits all n vectors once. Three methods, each at least as
good as the one before it:

* `greedy`: start at index 0, go on to the nearest vector not yet visited, as in the paper.
* `two_opt`: the greedy path, shortened by 2-opt and Or-opt moves until none helps
  (see `local_search`).
* `fast_tsp`: the package of that name (`pip install keras-nern[tsp]`), which searches
  longer and holds all distances, up to `FAST_TSP_LIMIT` vectors.

What a short step is, is in `nearest_neighbours`.
"""

import numpy as np

from keras_nern.permutations.nearest_neighbours import (
    CHUNK,
    METRICS,
    directions,
    nearest_neighbours,
    prepared,
    scores,
)
from keras_nern.utils import checks
from keras_nern.utils.types import Progress

METHODS = ("greedy", "two_opt", "fast_tsp")
PASSES = {"greedy": 1, "two_opt": 2, "fast_tsp": 3}  # each begins with the ones before it
FAST_TSP_LIMIT = 10_000  # vectors; it takes all their distances
LONGEST_STEP = 65_535  # the largest distance it takes


def order_vectors(
    vectors: np.ndarray,
    method: str = "greedy",
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> np.ndarray:
    """Orders vectors so that neighbours are near.

    Args:
        vectors: array `(n, d)`, n at least 1.
        method: `"greedy"`, `"two_opt"` or `"fast_tsp"`. Defaults to `"greedy"`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
        progress: a function called, as the work goes on, with the number of vectors done
            since it was last called, or `None`: n in all for each of the `PASSES` of the
            method. Defaults to `None`.

    Returns:
        int64 array `(n,)`, a permutation of `range(n)`.

    Raises:
        ValueError: for another method or metric, or too many vectors for `fast_tsp`.
        ImportError: where `fast_tsp` is not installed.

    Example:

    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 0.1]])
    >>> order_vectors(vectors)
    array([0, 1, 2])
    >>> order_vectors(vectors, metric="cosine")
    array([0, 2, 1])
    """
    checks.one_of("method", method, METHODS)
    checks.one_of("metric", metric, METRICS)
    if method == "fast_tsp":
        check_fast_tsp(len(vectors))
    vectors = prepared(vectors, metric)
    order = _greedy(vectors, metric, progress)
    if method == "greedy":
        return order
    if len(order) < 3:
        if progress:
            progress((PASSES[method] - 1) * len(order))
        return order
    order = Path(vectors, order, metric).improve(progress)
    if method == "two_opt":
        return order
    found = _fast_tsp(vectors, metric)
    if progress:
        progress(len(order))
    lengths = [Path(vectors, path, metric).length() for path in (order, found)]
    return found if lengths[1] < lengths[0] else order


def path_length(vectors: np.ndarray, order: np.ndarray, metric: str = "euclidean") -> float:
    """The summed length of the steps from each vector to the next of an order.

    Args:
        vectors: array `(n, d)`.
        order: int array `(n,)`, a permutation of `range(n)`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        A float.
    """
    checks.one_of("metric", metric, METRICS)
    vectors = np.asarray(vectors, "float64")[order]
    if metric == "euclidean":
        return float(np.linalg.norm(vectors[1:] - vectors[:-1], axis=1).sum())
    units = directions(vectors)
    lengths = np.square(units).sum(axis=1)  # 1, or 0 where there is no direction
    # 1 - cos, in a form that is exact near 0
    steps = np.square(units[1:] - units[:-1]).sum(axis=1) / 2
    return float(np.where(lengths[1:] * lengths[:-1] > 0, steps, 1.0).sum())


def _greedy(vectors: np.ndarray, metric: str, progress: Progress | None) -> np.ndarray:
    order = np.zeros(len(vectors), "int64")
    left = np.arange(len(vectors))  # those looked at, in rising order
    columns = np.ascontiguousarray(vectors.T)  # (d, left): long rows make for a fast product
    bias = scores(metric, vectors)
    score = np.empty_like(bias)
    last = visited = 0  # where the last one is in `left`; how many of those are visited
    for position in range(1, len(vectors)):
        bias[last] = -np.inf
        visited += 1
        if visited * 16 > len(left):
            keep = np.isfinite(bias)
            left, bias, columns = left[keep], bias[keep], np.ascontiguousarray(columns[:, keep])
            score = np.empty_like(bias)
            if progress:
                progress(visited)
            visited = 0
        np.dot(vectors[order[position - 1]], columns, out=score)
        score += bias
        last = int(score.argmax())
        order[position] = left[last]
    if progress:
        progress(len(left))
    return order


def check_fast_tsp(n: int) -> None:
    """Raises an error unless `fast_tsp` is there and takes n vectors."""
    if n > FAST_TSP_LIMIT:
        raise ValueError(
            f"fast_tsp holds all distances of up to {FAST_TSP_LIMIT:,} vectors; take "
            f'"two_opt" for more. Received: {n:,}'
        )
    try:
        import fast_tsp  # noqa: F401
    except ImportError as error:
        raise ImportError("method='fast_tsp' needs `pip install keras-nern[tsp]`") from error


def _fast_tsp(vectors: np.ndarray, metric: str, seconds: float = 10.0) -> np.ndarray:
    """The order that fast-tsp finds before it makes no headway, or the time is over."""
    import fast_tsp

    path = Path(vectors, np.arange(len(vectors)), metric)
    nodes = np.arange(path.n + 1)
    longest = 2 * max(1.0, float(np.abs(vectors).max()) * vectors.shape[1] ** 0.5)
    distances = np.empty((path.n + 1, path.n + 1), "int32")
    for node in nodes:
        row = path.distance(np.array([node]), nodes)
        distances[node] = np.rint(np.maximum(row, 0) * (LONGEST_STEP / longest))
    distances = np.maximum(distances, distances.T)  # rounding may differ by the way
    tour = fast_tsp.find_tour(distances, seconds, stop_when_converged=True)
    return np.roll(tour, -tour.index(path.n))[1:]


# Shortening a path through vectors by moves, until none helps.
#
# A move joins a vector a to one of its nearest neighbours c. It either
#
# * reverses a piece of the path (2-opt: Croes, "A method for solving traveling-salesman
#   problems", Operations Research 6, 1958): steps (a, b) and (c, d) become (a, c) and
#   (b, d); or
# * shifts a piece a ... e of up to three vectors from between p and q to between c and d
#   (Or-opt: Or, PhD thesis, Northwestern University, 1976).
#
# The path is kept as a cycle through an extra node, number n, at the distance 0 from all:
# its neighbours are the path's ends. Gains are computed for all nodes at once, then moves
# are made from the largest gain down, each only if the steps it takes away are still
# there; then again around what has changed, and at last once more around all.

NEIGHBOURS = 8  # of each vector, that moves try to join it to
LONGEST_SHIFT = 3


class Path:
    """A path and the local search on it.

    `tour` lists the cycle's nodes from the extra node n on, `place` is its inverse.
    """

    def __init__(self, prepared: np.ndarray, order: np.ndarray, metric: str) -> None:
        self.vectors = prepared
        self.metric = metric
        self.n = len(order)
        self.tour = np.concatenate([[self.n], order])
        self.place = np.empty_like(self.tour)
        self.place[self.tour] = np.arange(self.n + 1)

    def length(self) -> float:
        steps = self.distance(self.tour, np.roll(self.tour, -1))
        return float(steps.sum(dtype="float64"))

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Between nodes, elementwise; 0 to the extra node."""
        a, b = np.broadcast_arrays(a, b)
        u, v = (self.vectors[np.minimum(nodes, self.n - 1)] for nodes in (a, b))
        if self.metric == "cosine":
            distance = 1 - np.einsum("...d,...d->...", u, v)
        else:
            u -= v
            distance = np.sqrt(np.einsum("...d,...d->...", u, u))
        distance[(a == self.n) | (b == self.n)] = 0
        return distance

    def improve(self, progress: Progress | None = None) -> np.ndarray:
        """Moves until none shortens the path; returns the order."""
        nearest = nearest_neighbours(self.vectors, min(NEIGHBOURS, self.n - 1), self.metric)
        near = self.distance(np.arange(self.n)[:, None], nearest)
        least = 1e-6 * self.length() / self.n  # gains below this are rounding
        active = everything = np.arange(self.n)  # then those around which something has changed
        fewest = self.n
        while True:
            chunks = np.array_split(active, len(active) // CHUNK + 1)
            found = [self._best_moves(nodes, nearest[nodes], near[nodes]) for nodes in chunks]
            gains, moves = (np.concatenate(parts) for parts in zip(*found, strict=True))
            good = np.flatnonzero(gains > least)
            good = good[np.argsort(-gains[good], kind="stable")]
            changed = np.zeros(self.n + 1, bool)
            for move in moves[good].tolist():
                if self._reverse(*move[1:5]) if move[0] == 0 else self._shift(*move[1:]):
                    changed[move[1:]] = True
            places = self.place[np.flatnonzero(changed)]
            reach = np.arange(-LONGEST_SHIFT, LONGEST_SHIFT + 1)
            around = (places[:, None] + reach) % (self.n + 1)
            if not changed.any():
                if len(active) == self.n:
                    break
                active = everything  # a move may help that was not made, its steps being gone
                continue
            active = np.setdiff1d(self.tour[around], [self.n])
            if progress and len(active) < fewest:
                progress(fewest - len(active))
                fewest = len(active)
        if progress:
            progress(fewest)
        return self.tour[1:].copy()

    def _best_moves(
        self, nodes: np.ndarray, nearest: np.ndarray, near: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each node a the move that gains most by joining it to a neighbour c.

        Args:
            nodes: `(m,)`.
            nearest: their neighbours `(m, count)`.
            near: the distances to these, `(m, count)`.

        Returns:
            `(gains, moves)`: `(m,)`, and rows `(0, a, b, c, d, c, d)` of `_reverse` or
            `(1, a, e, p, q, c, d)` of `_shift`, `(m, 7)`.
        """
        size = self.n + 1
        after, before, step = np.empty(size, "int64"), np.empty(size, "int64"), np.empty(size)
        after[self.tour] = np.roll(self.tour, -1)
        before[self.tour] = np.roll(self.tour, 1)
        step[self.tour] = self.distance(self.tour, np.roll(self.tour, -1))
        forwards, backwards = (after, step), (before, step[before])
        gains, moves = np.zeros(len(nodes)), np.zeros((len(nodes), 7), "int64")

        def offer(gain: np.ndarray, *move: int | np.ndarray) -> None:
            rows, best = np.arange(len(nodes)), gain.argmax(axis=1)
            better = np.flatnonzero(gain[rows, best] > gains)
            gains[better] = gain[better, best[better]]
            for field, value in enumerate(move):
                moves[better, field] = np.broadcast_to(value, gain.shape)[better, best[better]]

        a, c = nodes[:, None], nearest
        for beyond, length in (forwards, backwards):
            b, d = beyond[a], beyond[c]
            gain = length[a] + length[c] - near - self.distance(b, d)
            offer(gain, 0, a, b, c, d, c, d)
        ends = ((forwards, backwards, 1), (backwards, forwards, -1))
        for (beyond, length), (behind, length_behind), sign in ends:
            p = behind[a]
            for count in range(1 if sign == 1 else 2, LONGEST_SHIFT + 1):
                last = self.place[a] + sign * (count - 1)
                whole = (last >= 1) & (last <= self.n)  # none goes over the extra node
                e = self.tour[np.where(whole, last, 1)]
                q = beyond[e]
                closed = length_behind[a] + length[e] - self.distance(p, q)
                for side, length_side in (forwards, backwards):
                    d = side[c]
                    gain = closed + length_side[c] - near - self.distance(e, d)
                    inside = [
                        (offset >= 0) & (offset < count)
                        for offset in (
                            sign * (self.place[c] - self.place[a]),
                            sign * (self.place[d] - self.place[a]),
                        )
                    ]
                    gain[inside[0] | inside[1] | ~whole] = -np.inf
                    offer(gain, 1, a, e, p, q, c, d)
        return gains, moves

    def _follows(self, a: int, b: int) -> bool:
        return (self.place[b] - self.place[a]) % (self.n + 1) == 1

    def _reverse(self, a: int, b: int, c: int, d: int) -> bool:
        """Steps (a, b), (c, d) become (a, c), (b, d), where both are still there."""
        if self._follows(b, a) and self._follows(d, c):
            a, b, c, d = b, a, d, c
        if not (self._follows(a, b) and self._follows(c, d)) or a == c:
            return False
        start, stop = (b, c) if self.place[a] < self.place[c] else (d, a)
        low, high = self.place[start], self.place[stop] + 1
        self._lay(low, self.tour[low:high][::-1])
        return True

    def _shift(self, a: int, e: int, p: int, q: int, c: int, d: int) -> bool:
        """Moves the piece a ... e from between p and q to between c and d, a beside c."""
        low, high = sorted((self.place[a], self.place[e]))
        piece = self.tour[low : high + 1]
        around = [self.tour[low - 1], self.tour[(high + 1) % (self.n + 1)]]
        ways = (([p, q], a), ([q, p], e))  # a single vector may lie either way
        if around not in [way for way, first in ways if self.place[first] == low]:
            return False
        if len(piece) > LONGEST_SHIFT or c in piece or d in piece:
            return False
        if self._follows(c, d):
            first, forwards = self.place[c], self.place[a] == low
        elif self._follows(d, c):
            first, forwards = self.place[d], self.place[e] == low
        else:
            return False
        piece = piece if forwards else piece[::-1]
        if first > high:
            self._lay(low, np.concatenate([self.tour[high + 1 : first + 1], piece]))
        else:
            self._lay(first + 1, np.concatenate([piece, self.tour[first + 1 : low]]))
        return True

    def _lay(self, start: int, nodes: np.ndarray) -> None:
        stop = start + len(nodes)
        self.tour[start:stop] = nodes.copy()
        self.place[self.tour[start:stop]] = np.arange(start, stop)
