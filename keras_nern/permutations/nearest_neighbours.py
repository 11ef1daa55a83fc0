"""Nearest neighbors of vectors by cosine or euclidean distance.

The distance of u and v is

    cosine      1 - <u, v> / (|u| |v|),    or 1 if a norm is 0
    euclidean   |u - v|

The paper uses cosine distance. Euclidean distance also makes the norms of neighbors similar.

Under both metrics, the nearest neighbor v of u has the largest score <u', v'> + b(v), where u' and
v' are *prepared* vectors:

    cosine      u' = u / |u|,        b = 0
    euclidean   u' = (u - m) / r,    b = -|v'|^2 / 2,    m the mean of all vectors, r a scale

One matrix product therefore compares many vectors. It is computed in float32: scores that differ by
less than about 1e-7 of the squared spread of the vectors count as equal.
"""

from collections.abc import Iterator

import numpy as np

METRICS = ("cosine", "euclidean")
EXACT_LIMIT = 16_384  # up to this many vectors, each is compared with all others
CHUNK = 65_536  # vectors that are processed at once
# Beyond the exact limit:
CANDIDATES = 16_384  # largest number of vectors that a vector is compared with
PROBES = 12  # nearest centers whose vectors a vector is compared with


def prepare(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Computes the prepared vectors of the module's formula.

    Args:
        vectors: array `(n, d)`.
        metric: `"cosine"` or `"euclidean"`.

    Returns:
        float32 array `(n, d)`. Zero vectors stay zero under `"cosine"`.

    Raises:
        ValueError: if a vector is not finite.
    """
    vectors = np.asarray(vectors, "float64")
    if not np.isfinite(vectors).all():
        raise ValueError("Expected finite weights to order. Received: some NaN or infinite")
    if metric == "cosine":
        vectors = _divide(vectors, np.abs(vectors).max(axis=1, keepdims=True))  # against overflow
        return _divide(vectors, np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")
    vectors = vectors - vectors.mean(axis=0)
    return (vectors / (np.abs(vectors).max(initial=0) or 1.0)).astype("float32")


def _divide(vectors: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(vectors, by, out=np.zeros_like(vectors), where=by > 0)


def score_bias(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Computes b, the term that is added to inner products to rank neighbors.

    Args:
        vectors: prepared vectors `(n, d)`.
        metric: `"cosine"` or `"euclidean"`.

    Returns:
        float32 array `(n,)`.
    """
    if metric == "cosine":
        return np.zeros(len(vectors), "float32")
    return -np.einsum("nd,nd->n", vectors, vectors) / 2


def nearest_neighbours(vectors: np.ndarray, count: int, metric: str = "euclidean") -> np.ndarray:
    """Finds the nearest neighbors of each vector.

    The search is exact for up to `EXACT_LIMIT` vectors. For more vectors, it is approximate and
    misses a few neighbors: about sqrt(n) of the vectors are drawn as centers, every vector is
    assigned to its nearest center, and it is compared with the vectors of that center and of the
    centers nearest to it.

    Args:
        vectors: array `(n, d)`.
        count: neighbors per vector, from 1 to n - 1.
        metric: `"cosine"` or `"euclidean"`. Defaults to `"euclidean"`.

    Returns:
        int64 array `(n, count)` of indices, in no particular order.

    Raises:
        ValueError: if `count` is out of range, or if a vector is not finite.
    """
    vectors = prepare(vectors, metric)
    n = len(vectors)
    if not 1 <= count < n:
        raise ValueError(f"count must be at least 1 and below {n}. Received: count={count!r}")
    bias = score_bias(vectors, metric)
    nearest = np.empty((n, count), "int64")
    for members, candidates in _neighbourhoods(vectors, bias, count):
        for rows in np.array_split(members, max(1, len(members) * len(candidates) >> 24)):
            score = vectors[rows] @ vectors[candidates].T + bias[candidates]
            score[rows[:, None] == candidates] = -np.inf
            best = np.argpartition(score, -count, axis=1)[:, -count:]
            nearest[rows] = candidates[best]
    return nearest


def _neighbourhoods(
    vectors: np.ndarray, bias: np.ndarray, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs of vectors and their candidates; each vector is in one pair."""
    n = len(vectors)
    if n <= EXACT_LIMIT:
        yield np.arange(n), np.arange(n)
        return
    drawn = np.sort(np.random.default_rng(0).choice(n, round(n**0.5), replace=False))
    centers, bias = vectors[drawn], bias[drawn]
    assigned = np.concatenate(
        [
            (vectors[start : start + CHUNK] @ centers.T + bias).argmax(axis=1)
            for start in range(0, n, CHUNK)
        ]
    )
    sizes = np.bincount(assigned, minlength=len(drawn))
    members = np.split(np.argsort(assigned, kind="stable"), np.cumsum(sizes)[:-1])
    for center, score in enumerate(centers @ centers.T + bias):
        score[center] = np.inf
        by_nearness = np.argsort(-score)
        enough = np.searchsorted(np.cumsum(sizes[by_nearness]), count + 1) + 1
        probed = by_nearness[: max(PROBES, enough)]
        if sizes[center]:
            candidates = np.concatenate([members[index] for index in probed])
            # If there are many candidates, because many vectors are alike, a subset is enough.
            limit = max(CANDIDATES, count + 1)
            yield members[center], candidates[:: -(-len(candidates) // limit)]
