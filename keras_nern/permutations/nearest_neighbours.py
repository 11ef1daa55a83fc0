"""Which vectors are near each other, and what near means.

The distance of u and v is

* by *cosine*, as in the paper:  1 - <u, v> / (|u| |v|),  1 where a norm is 0;
* by *euclidean* distance:  |u - v|,  which keeps the norms smooth as well as the
  directions.

Both order the v around a u as  <u', v'> + b(v)  does, from the largest down, with vectors
*prepared* for it: for the one u' = u / |u| and b = 0; for the other, with the mean m of all
and some scale r, u' = (u - m) / r and b = -|v'|^2 / 2. So a product of matrices compares many
at once. It is computed in float32: distances that differ by less than about 1e-7 of the
squared spread of the vectors count as equal.
"""

from collections.abc import Iterator

import numpy as np

METRICS = ("cosine", "euclidean")
EXACT_LIMIT = 16_384  # vectors up to which neighbours are looked for among all
CHUNK = 65_536  # vectors looked at together
CANDIDATES = 16_384  # compared with a vector beyond it, at most
PROBES = 12  # centres whose vectors are looked at beyond the exact limit


def prepared(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Vectors `(n, d)` as they are compared, float32; those without direction are zeros.

    Raises:
        ValueError: where they are not finite.
    """
    vectors = np.asarray(vectors, "float64")
    if not np.isfinite(vectors).all():
        raise ValueError("Expected finite weights to order. Received: some NaN or infinite")
    if metric == "euclidean":
        vectors = vectors - vectors.mean(axis=0)
        return (vectors / (np.abs(vectors).max(initial=0) or 1.0)).astype("float32")
    return directions(vectors).astype("float32")


def directions(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(n, d)` at norm 1, float64; those that have none are zeros."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    vectors = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=vectors, where=norms > 0)


def scores(metric: str, vectors: np.ndarray) -> np.ndarray:
    """What to add to <u, v> so that it is largest for the v nearest to u: `(n,)`."""
    if metric == "cosine":
        return np.zeros(len(vectors), "float32")
    return -np.einsum("nd,nd->n", vectors, vectors) / 2  # of -|u - v|^2 / 2


def nearest_neighbours(vectors: np.ndarray, count: int, metric: str = "euclidean") -> np.ndarray:
    """The nearest vectors of each.

    Among up to `EXACT_LIMIT` vectors all are compared. Of more, each belongs to the
    nearest of about sqrt(n) centres drawn from among them, and is compared with those
    of its own centre and of the centres nearest to that one: a few are missed.

    Args:
        vectors: array `(n, d)`.
        count: how many of each, below n.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(n, count)`, in no order.

    Raises:
        ValueError: where there are too few vectors.
    """
    vectors = prepared(vectors, metric)
    n = len(vectors)
    if not 1 <= count < n:
        raise ValueError(f"count must be at least 1 and below {n}. Received: count={count!r}")
    bias = scores(metric, vectors)
    near = np.empty((n, count), "int64")
    for members, candidates in _neighbourhoods(vectors, bias, count):
        for rows in np.array_split(members, max(1, len(members) * len(candidates) >> 24)):
            score = vectors[rows] @ vectors[candidates].T + bias[candidates]
            score[rows[:, None] == candidates] = -np.inf
            best = np.argpartition(score, -count, axis=1)[:, -count:]
            near[rows] = candidates[best]
    return near


def _neighbourhoods(
    vectors: np.ndarray, bias: np.ndarray, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (vectors, those they are compared with), each vector once among the first."""
    n = len(vectors)
    if n <= EXACT_LIMIT:
        yield np.arange(n), np.arange(n)
        return
    drawn = np.sort(np.random.default_rng(0).choice(n, round(n**0.5), replace=False))
    centres, bias = vectors[drawn], bias[drawn]
    own = np.concatenate(
        [
            (vectors[start : start + CHUNK] @ centres.T + bias).argmax(axis=1)
            for start in range(0, n, CHUNK)
        ]
    )
    sizes = np.bincount(own, minlength=len(drawn))
    members = np.split(np.argsort(own, kind="stable"), np.cumsum(sizes)[:-1])
    for centre, score in enumerate(centres @ centres.T + bias):
        score[centre] = np.inf
        by_nearness = np.argsort(-score)
        enough = np.searchsorted(np.cumsum(sizes[by_nearness]), count + 1) + 1
        around = by_nearness[: max(PROBES, enough)]
        if sizes[centre]:
            candidates = np.concatenate([members[one] for one in around])
            # where very many vectors are alike, some of them are as good as all
            most = max(CANDIDATES, count + 1)
            yield members[centre], candidates[:: -(-len(candidates) // most)]
