import math

import numpy as np
import pytest

from keras_nern import permutations


def _cosine(u, v):
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return float(u @ v / norms) if norms > 0 else 0.0


def _negative_distance(u, v):
    return -float(np.linalg.norm(u - v))


NEAR = {"cosine": _cosine, "euclidean": _negative_distance}


def _slow_greedy(vectors, metric):
    order = [0]
    while len(order) < len(vectors):
        rest = [i for i in range(len(vectors)) if i not in order]
        order.append(max(rest, key=lambda i: (NEAR[metric](vectors[order[-1]], vectors[i]), -i)))
    return order


def _slow_kernels(kernel):
    _, _, cin, cout = kernel.shape
    return [[kernel[:, :, c, f].ravel() for c in range(cin)] for f in range(cout)]


def _slow_cross_filter(kernel, metric):
    return _slow_greedy([k for filter_ in _slow_kernels(kernel) for k in filter_], metric)


def _slow_in_filter(kernel, metric):
    filters = _slow_kernels(kernel)
    channels = [_slow_greedy(filter_, metric) for filter_ in filters]
    ordered = [
        np.concatenate([filter_[c] for c in order])
        for filter_, order in zip(filters, channels, strict=True)
    ]
    return [f * len(filters[0]) + c for f in _slow_greedy(ordered, metric) for c in channels[f]]


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (1, 1, 4, 3), (3, 1, 1, 6), (3, 3, 6, 1)])
@pytest.mark.parametrize(
    ("name", "oracle"), [("cross_filter", _slow_cross_filter), ("in_filter", _slow_in_filter)]
)
@pytest.mark.parametrize("metric", NEAR)
def test_orders_match_the_definition(name, oracle, shape, metric):
    kernel = np.random.default_rng(0).normal(size=shape)
    if shape[:2] == (1, 1):  # scalars have cosine 1 or -1: ties go to the lowest index
        kernel = np.sign(kernel)
    order = permutations.kernel_order(kernel, name, metric)
    np.testing.assert_array_equal(order, oracle(kernel, metric))


def test_greedy_by_hand():
    right, up, far_right, left = [1, 0], [0, 1], [5, 0.1], [-1, 0]
    vectors = [right, up, far_right, left]
    assert permutations.greedy_order(vectors, "cosine").tolist() == [0, 2, 1, 3]
    # distances from (1, 0): sqrt 2, 4.0, 2; from (0, 1): 5.1 and sqrt 2
    assert permutations.greedy_order(vectors, "euclidean").tolist() == [0, 1, 3, 2]


def test_zero_vectors_have_similarity_zero():
    # From (1, 0): the zero vector (0) comes before (-1, 0) (-1); no NaN on the way.
    assert permutations.greedy_order([[1, 0], [-1, 0], [0, 0]], "cosine").tolist() == [0, 2, 1]
    assert permutations.greedy_order(np.zeros((3, 2)), "cosine").tolist() == [0, 1, 2]


def test_in_filter_keeps_filters_together():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 7))
    filters = permutations.in_filter_order(kernel).reshape(7, 5) // 5
    assert (filters == filters[:, :1]).all()
    assert sorted(filters[:, 0]) == list(range(7))


def test_cross_filter_is_smoother_than_no_order():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 16))
    rows = kernel.transpose(3, 2, 0, 1).reshape(256, 9)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ordered = rows[permutations.cross_filter_order(kernel, "cosine")]
    before, after = (np.mean(np.sum(r[1:] * r[:-1], axis=1)) for r in (rows, ordered))
    assert after > before + 0.5


def test_inverse():
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(order[permutations.invert(order)], np.arange(20))
    np.testing.assert_array_equal(permutations.invert(order)[order], np.arange(20))


def test_bits_count_the_permutations():
    shape = (3, 3, 3, 2)
    assert permutations.permutation_bits(shape) == 0
    assert permutations.permutation_bits(shape, "cross_filter") == pytest.approx(math.log2(720))
    # 3! orders in each of 2 filters, and 2! of the filters
    assert permutations.permutation_bits(shape, "in_filter") == pytest.approx(math.log2(72))


def test_unknown_name():
    message = "permutation must be one of .*Received: permutation='smooth'"
    with pytest.raises(ValueError, match=message):
        permutations.kernel_order(np.zeros((3, 3, 1, 1)), "smooth")
    with pytest.raises(ValueError, match=message):
        permutations.permutation_bits((3, 3, 1, 1), "smooth")
    message = r"metric must be one of \('cosine', 'euclidean'\). Received: metric='angle'"
    with pytest.raises(ValueError, match=message):
        permutations.kernel_order(np.zeros((3, 3, 1, 1)), None, "angle")
