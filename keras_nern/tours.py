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

from keras_nern import checks
from keras_nern.hints import Progress
from keras_nern.local_search import Path
from keras_nern.nearest_neighbours import METRICS, directions, prepared, scores

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
