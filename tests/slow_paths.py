"""Slow references for paths through vectors, one distance at a time."""

import itertools
import math

import numpy as np


def slow_distance(u, v, metric):
    if metric == "euclidean":
        return math.dist(u, v)
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return 1 - (float(u @ v / norms) if norms > 0 else 0.0)


def slow_greedy(vectors, metric):
    order = [0]
    while len(order) < len(vectors):
        rest = [i for i in range(len(vectors)) if i not in order]
        last = vectors[order[-1]]
        order.append(min(rest, key=lambda i: (slow_distance(last, vectors[i], metric), i)))
    return order


def slow_length(vectors, order, metric):
    pairs = itertools.pairwise(order)
    return sum(slow_distance(vectors[a], vectors[b], metric) for a, b in pairs)
