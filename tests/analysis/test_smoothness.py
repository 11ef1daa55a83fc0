import math

import keras
import numpy as np
import pytest

from keras_nern import Permutation, smoothness_report
from keras_nern.analysis.smoothness import neighbour_cosines

RNG = np.random.default_rng(0)


def _cosine(u, v):
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return float(u.ravel() @ v.ravel()) / norms if norms > 0 else 0.0


def test_neighbour_cosines_match_the_definition():
    kernel = RNG.normal(size=(3, 2, 4, 5))
    kernel[:, :, 1, 2] = 0
    channels = [
        _cosine(kernel[:, :, c, f], kernel[:, :, c + 1, f]) for f in range(5) for c in range(3)
    ]
    filters = [
        _cosine(kernel[:, :, c, f], kernel[:, :, c, f + 1]) for f in range(4) for c in range(4)
    ]
    expected = np.mean(channels), np.mean(filters)
    assert neighbour_cosines(kernel) == pytest.approx(expected)


def test_neighbors_are_taken_in_the_given_order():
    kernel = np.zeros((1, 2, 2, 2))
    right, up = [1.0, 0.0], [0.0, 1.0]
    for (c, f), vector in {(0, 0): right, (1, 0): up, (0, 1): up, (1, 1): right}.items():
        kernel[0, :, c, f] = vector
    assert neighbour_cosines(kernel) == (0.0, 0.0)
    assert neighbour_cosines(kernel, [0, 3, 1, 2]) == pytest.approx((1.0, 0.0))
    assert neighbour_cosines(kernel, [0, 1, 3, 2]) == pytest.approx((0.0, 1.0))


def test_an_axis_of_length_one_has_no_neighbors():
    channels, filters = neighbour_cosines(RNG.normal(size=(3, 3, 1, 4)))
    assert math.isnan(channels)
    assert not math.isnan(filters)


def test_report_contains_the_cosines_and_bits_of_every_order(base):
    report = smoothness_report(base, methods=("greedy", "two_opt"))
    assert list(report.cosines) == [
        "as trained",
        *("in_filter, greedy", "in_filter, two_opt"),
        *("cross_filter, greedy", "cross_filter, two_opt"),
    ]
    permutation = Permutation.from_model(base, "in_filter", "two_opt", "euclidean")
    assert report.permutations["in_filter, two_opt"] == permutation
    for index, name in enumerate(report.layers):
        kernel = base.get_layer(name).kernel.numpy()
        assert report.shapes[index] == kernel.shape
        np.testing.assert_allclose(
            report.cosines["in_filter, two_opt"][index],
            neighbour_cosines(kernel, permutation.orders[index]),
        )
        np.testing.assert_allclose(report.cosines["as trained"][index], neighbour_cosines(kernel))
    assert report.bits["as trained"] == 0
    assert report.bits["in_filter, two_opt"] == permutation.bits
    assert report.mean("cross_filter, greedy")[0] > report.mean("as trained")[0]


def test_report_measures_given_permutations(base):
    by_cosine = Permutation.from_model(base, "cross_filter", "greedy", "cosine")
    reverse = Permutation(by_cosine.grids, [order[::-1] for order in by_cosine.orders])
    report = smoothness_report(base, kinds=["cross_filter", by_cosine, reverse])
    assert list(report.cosines) == [
        *("as trained", "cross_filter, given", "cross_filter, given (2)"),
        "cross_filter, greedy",
    ]
    assert report.permutations["cross_filter, given"] is by_cosine
    expected = smoothness_report(base, "cross_filter", metric="cosine")
    np.testing.assert_array_equal(
        report.cosines["cross_filter, given"], expected.cosines["cross_filter, greedy"]
    )
    with pytest.raises(ValueError, match=r"Received: .* \[\(2, 2\)\]"):
        smoothness_report(base, Permutation([(2, 2)]))


def test_report_prints_and_draws_every_layer(base):
    report = smoothness_report(base)
    text = str(report)
    title, *lines = text.splitlines()
    assert "along channels / along filters; orders searched for by euclidean distance" in title
    for name, (channels, filters) in zip(
        report.layers, report.cosines["cross_filter, greedy"], strict=True
    ):
        row = next(line for line in lines if line.startswith(name + " "))
        assert row.endswith(f"{channels:.3f} / {filters:.3f}")
    assert lines[-1].split() == [
        *("cross_filter,", "greedy"),
        f"{report.bits['cross_filter, greedy']:,.0f}",
    ]
    pytest.importorskip("matplotlib")
    (axes,) = report.plot().axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(drawn) == ["as trained", "in_filter, greedy", "cross_filter, greedy"]
    for order, values in drawn.items():
        np.testing.assert_array_equal(values, report.cosines[order][:, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == report.layers


def test_raises_before_any_search(base, monkeypatch):
    monkeypatch.setattr(Permutation, "from_model", None)
    with pytest.raises(ValueError, match=r"kinds must be one of .*'smooth'"):
        smoothness_report(base, kinds=("cross_filter", "smooth"))
    without_kernels = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="dense")
    with pytest.raises(ValueError, match=r"Received: 'dense'"):
        smoothness_report(without_kernels)
