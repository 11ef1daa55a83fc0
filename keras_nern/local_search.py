"""Shortening a path through vectors by moves, until none helps.

A move joins a vector a to one of its nearest neighbours c. It either

* reverses a piece of the path (2-opt: Croes, "A method for solving traveling-salesman
  problems", Operations Research 6, 1958): steps (a, b) and (c, d) become (a, c) and
  (b, d); or
* shifts a piece a ... e of up to three vectors from between p and q to between c and d
  (Or-opt: Or, PhD thesis, Northwestern University, 1976).

The path is kept as a cycle through an extra node, number n, at the distance 0 from all:
its neighbours are the path's ends. Gains are computed for all nodes at once, then moves
are made from the largest gain down, each only if the steps it takes away are still
there; then again around what has changed, and at last once more around all.
"""

import numpy as np

from keras_nern.hints import Progress
from keras_nern.nearest_neighbours import CHUNK, nearest_neighbours

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
