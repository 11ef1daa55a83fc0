"""Short paths through vectors: the traveling salesman problem behind a permutation.

An order of n vectors is smooth if the distances between successive vectors are short, so the best
order is the shortest path that visits each vector once. There are three methods. Each returns a
path that is at most as long as that of the previous method:

* `greedy` starts at index 0 and continues with the nearest unvisited vector, as in the paper.
* `two_opt` improves the greedy path by local search, until no 2-opt or Or-opt move shortens it.
* `fast_tsp` calls the package of that name, which searches longer. It holds all pairwise distances
  and takes up to `FAST_TSP_LIMIT` vectors. Install it by `pip install "keras-nern[tsp]"`.

A move of the local search makes a vector a adjacent to one of its nearest neighbors c:

* 2-opt (Croes, "A method for solving traveling-salesman problems", Operations Research 6, 1958)
  reverses a piece of the path: the steps (a, b) and (c, d) become (a, c) and (b, d).
* Or-opt (Or, PhD thesis, Northwestern University, 1976) moves a piece a ... e of up to three
  vectors from between p and q to between c and d.

Each round computes the gains of the moves of many vectors at once. It then makes the moves in order
of decreasing gain and skips those whose steps an earlier move has removed. The next round considers
only vectors near changes. When no move is left there, a round considers all vectors again. The
search ends when such a round finds no move.

`nearest_neighbours` defines the distances.
"""

import numpy as np

from keras_nern.permutations.nearest_neighbours import (
    CHUNK,
    METRICS,
    nearest_neighbours,
    prepare,
    score_bias,
)
from keras_nern.utils import checks, optional
from keras_nern.utils.types import Progress

METHODS = ("greedy", "two_opt", "fast_tsp")
PASSES = {"greedy": 1, "two_opt": 2, "fast_tsp": 3}  # each method first runs the previous one
FAST_TSP_LIMIT = 10_000  # vectors
FAST_TSP_SECONDS = 10.0  # per path, at most
FAST_TSP_MAX_DISTANCE = 65_535  # the package takes integer distances up to this
NEIGHBOURS = 8  # nearest neighbors per vector that the local search tries
MAX_PIECE = 3  # largest number of vectors that Or-opt moves together


def order_vectors(
    vectors: np.ndarray,
    method: str = "greedy",
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> np.ndarray:
    """Orders vectors so that successive ones are near each other.

    Args:
        vectors: array `(n, d)`, n at least 1.
        method: `"greedy"`, `"two_opt"` or `"fast_tsp"`. Defaults to `"greedy"`.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.
        progress: function that is called during the search with the number of vectors processed
            since the previous call; or `None`. The numbers add up to n for each of the method's
            `PASSES`. Defaults to `None`.

    Returns:
        int64 array `(n,)`, a permutation of `range(n)`.

    Raises:
        ValueError: if `method` or `metric` is unknown, a vector is not finite, or there are too
            many vectors for `"fast_tsp"`.
        ImportError: if `method` is `"fast_tsp"` and the package is not installed.

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
    vectors = prepare(vectors, metric)
    order = _greedy(vectors, metric, progress)
    if method == "greedy":
        return order
    if len(order) < 3:
        if progress:
            progress((PASSES[method] - 1) * len(order))
        return order
    order = Tour(vectors, order, metric).improve(progress)
    if method == "two_opt":
        return order
    found = _fast_tsp(vectors, metric)
    if progress:
        progress(len(order))
    return min(order, found, key=lambda path: Tour(vectors, path, metric).length())


def _greedy(vectors: np.ndarray, metric: str, progress: Progress | None) -> np.ndarray:
    order = np.zeros(len(vectors), "int64")
    left = np.arange(len(vectors))  # candidates in increasing order, some of them visited
    columns = np.ascontiguousarray(vectors.T)  # (d, left): long rows make the product fast
    bias = score_bias(vectors, metric)  # (left,), -inf for the visited ones
    score = np.empty_like(bias)
    last = visited = 0  # place of the last vector in `left`, number of visited vectors in `left`
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
    """Checks that `fast_tsp` is installed and accepts a number of vectors.

    Args:
        n: number of vectors.

    Raises:
        ValueError: if there are more than `FAST_TSP_LIMIT` vectors.
        ImportError: if `fast_tsp` is not installed.
    """
    if n > FAST_TSP_LIMIT:
        raise ValueError(
            f'The method "fast_tsp" orders up to {FAST_TSP_LIMIT:,} vectors; use "two_opt" for '
            f"more. Received: {n:,}"
        )
    optional.require("fast_tsp", "tsp")


def _fast_tsp(vectors: np.ndarray, metric: str) -> np.ndarray:
    """The order that fast_tsp finds; it stops if it converges or after `FAST_TSP_SECONDS`."""
    fast_tsp = optional.require("fast_tsp", "tsp")
    tour = Tour(vectors, np.arange(len(vectors)), metric)
    nodes = np.arange(tour.n + 1)
    bound = 2 * max(1.0, float(np.abs(vectors).max()) * vectors.shape[1] ** 0.5)
    distances = np.empty((tour.n + 1, tour.n + 1), "int32")
    for node in nodes:
        row = tour.distance(np.array([node]), nodes)
        distances[node] = np.rint(np.maximum(row, 0) * (FAST_TSP_MAX_DISTANCE / bound))
    distances = np.maximum(distances, distances.T)  # rounding may break the symmetry
    found = fast_tsp.find_tour(distances, FAST_TSP_SECONDS, stop_when_converged=True)
    return np.roll(found, -found.index(tour.n))[1:]


class Tour:
    """A path through vectors, and the local search that shortens it.

    The path is stored as a cycle through all vectors and an extra node, number n, whose distance to
    all others is 0. The path's ends are the two nodes next to the extra node.

    Args:
        vectors: prepared vectors, float32 `(n, d)`.
        order: int array `(n,)`, a permutation of `range(n)`.
        metric: `"cosine"` or `"euclidean"`.

    Attributes:
        nodes: int array `(n + 1,)`, the nodes in the order of the cycle.
        place: int array `(n + 1,)`, the place of each node in `nodes`.
    """

    def __init__(self, vectors: np.ndarray, order: np.ndarray, metric: str) -> None:
        self.vectors = vectors
        self.metric = metric
        self.n = len(order)
        self.nodes = np.concatenate([[self.n], order])
        self.place = np.empty_like(self.nodes)
        self.place[self.nodes] = np.arange(self.n + 1)

    def length(self) -> float:
        """The length of the path."""
        steps = self.distance(self.nodes, np.roll(self.nodes, -1))
        return float(steps.sum(dtype="float64"))

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The distances between nodes, elementwise with broadcasting."""
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
        """Makes moves until no move shortens the path.

        Args:
            progress: as for `order_vectors`. Defaults to `None`.

        Returns:
            int64 array `(n,)`, the order of the improved path.
        """
        nearest = nearest_neighbours(self.vectors, min(NEIGHBOURS, self.n - 1), self.metric)
        near = self.distance(np.arange(self.n)[:, None], nearest)
        tolerance = 1e-6 * self.length() / self.n  # smaller gains are rounding errors
        active = everything = np.arange(self.n)
        fewest = self.n
        while True:
            chunks = np.array_split(active, len(active) // CHUNK + 1)
            found = [self._best_moves(nodes, nearest[nodes], near[nodes]) for nodes in chunks]
            gains, moves = (np.concatenate(parts) for parts in zip(*found, strict=True))
            good = np.flatnonzero(gains > tolerance)
            good = good[np.argsort(-gains[good], kind="stable")]
            changed = np.zeros(self.n + 1, bool)
            for kind, *nodes in moves[good].tolist():
                if self._reverse(*nodes[:4]) if kind == 0 else self._shift(*nodes):
                    changed[nodes] = True
            if not changed.any():
                if len(active) == self.n:
                    break
                active = everything  # inactive vectors may have moves that gain
                continue
            places = self.place[np.flatnonzero(changed)]
            around = (places[:, None] + np.arange(-MAX_PIECE, MAX_PIECE + 1)) % (self.n + 1)
            active = np.setdiff1d(self.nodes[around], [self.n])
            if progress and len(active) < fewest:
                progress(fewest - len(active))
                fewest = len(active)
        if progress:
            progress(fewest)
        return self.nodes[1:].copy()

    def _best_moves(
        self, nodes: np.ndarray, nearest: np.ndarray, near: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds for each node a the best move that makes it adjacent to a neighbor c.

        Args:
            nodes: `(m,)`.
            nearest: the nodes' neighbors, `(m, count)`.
            near: the distances to the neighbors, `(m, count)`.

        Returns:
            `(gains, moves)`: `(m,)`, and `(m, 7)` with rows `(0, a, b, c, d, c, d)` for
            `_reverse` or `(1, a, e, p, q, c, d)` for `_shift`.
        """
        size = self.n + 1
        after, before, step = np.empty(size, "int64"), np.empty(size, "int64"), np.empty(size)
        after[self.nodes] = np.roll(self.nodes, -1)
        before[self.nodes] = np.roll(self.nodes, 1)
        step[self.nodes] = self.distance(self.nodes, np.roll(self.nodes, -1))
        # The next node in each direction and the distance to it.
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
            for count in range(1 if sign == 1 else 2, MAX_PIECE + 1):
                last = self.place[a] + sign * (count - 1)
                whole = (last >= 1) & (last <= self.n)  # the piece excludes the extra node
                e = self.nodes[np.where(whole, last, 1)]
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
        """Replaces the steps (a, b), (c, d) by (a, c), (b, d); `False` if one is not there."""
        if self._follows(b, a) and self._follows(d, c):
            a, b, c, d = b, a, d, c
        if not (self._follows(a, b) and self._follows(c, d)) or a == c:
            return False
        start, stop = (b, c) if self.place[a] < self.place[c] else (d, a)
        low, high = self.place[start], self.place[stop] + 1
        self._lay(low, self.nodes[low:high][::-1])
        return True

    def _shift(self, a: int, e: int, p: int, q: int, c: int, d: int) -> bool:
        """Moves the piece a ... e from between p and q to between c and d, with a next to c.

        Returns `False` and changes nothing if an earlier move has changed the steps or the piece.
        """
        low, high = sorted((self.place[a], self.place[e]))
        piece = self.nodes[low : high + 1]
        around = [self.nodes[low - 1], self.nodes[(high + 1) % (self.n + 1)]]
        ways = (([p, q], a), ([q, p], e))  # a single vector may lie either way
        if around not in [way for way, first in ways if self.place[first] == low]:
            return False
        if len(piece) > MAX_PIECE or c in piece or d in piece:
            return False
        if self._follows(c, d):
            first, forwards = self.place[c], self.place[a] == low
        elif self._follows(d, c):
            first, forwards = self.place[d], self.place[e] == low
        else:
            return False
        piece = piece if forwards else piece[::-1]
        if first > high:
            self._lay(low, np.concatenate([self.nodes[high + 1 : first + 1], piece]))
        else:
            self._lay(first + 1, np.concatenate([piece, self.nodes[first + 1 : low]]))
        return True

    def _lay(self, start: int, nodes: np.ndarray) -> None:
        """Writes nodes into the cycle, starting at the place `start`."""
        stop = start + len(nodes)
        self.nodes[start:stop] = nodes.copy()
        self.place[self.nodes[start:stop]] = np.arange(start, stop)
