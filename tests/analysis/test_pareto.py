"""The Pareto front, its table and its plot."""

import dataclasses
import math

import pytest

from keras_nern.analysis import plots
from keras_nern.analysis.pareto import ParetoFront, ParetoPoint


def _row(size, score, trial_id):
    return ParetoPoint(size, score, {"hidden_size": size // 100, "permutation": None}, trial_id)


@pytest.fixture
def rows():
    return [
        _row(4000, 0.9, "a"),
        _row(1000, 0.5, "b"),
        _row(1000, 0.6, "c"),  # better than b in as many bytes
        _row(2000, 0.6, "d"),  # no better than c
        _row(3000, 0.8, "e"),
        _row(5000, 0.85, "f"),  # worse than a
        _row(4000, 0.9, "g"),  # equal to a, which is first
    ]


def test_front_by_hand(rows):
    front = ParetoFront.from_trials(rows, "val_accuracy")
    assert [row.trial_id for row in front.points] == ["c", "e", "a"]
    assert [row.trial_id for row in front.trials] == ["c", "b", "d", "e", "a", "g", "f"]


def test_a_point_is_on_the_front_where_nothing_dominates_it(rows):
    """By the definition, pair by pair."""
    for direction, sign in (("max", 1), ("min", -1)):

        def dominates(a, b, sign=sign):
            gain = sign * (a.score - b.score)
            return a.bytes <= b.bytes and gain >= 0 and (a.bytes < b.bytes or gain > 0)

        expected = {
            (row.bytes, row.score)
            for row in rows
            if not any(dominates(other, row) for other in rows)
        }
        points = ParetoFront.from_trials(rows, "score", direction).points
        assert {(row.bytes, row.score) for row in points} == expected
        assert len(points) == len(expected)


def test_where_less_is_better(rows):
    front = ParetoFront.from_trials(
        [dataclasses.replace(r, score=1 - r.score) for r in rows], "e", "min"
    )
    assert [row.trial_id for row in front.points] == ["c", "e", "a"]


def test_best_in_so_many_bytes(rows):
    front = ParetoFront.from_trials(rows, "val_accuracy")
    assert front.best().trial_id == "a"
    assert front.best(3999).trial_id == "e"
    assert front.best(1000).trial_id == "c"
    with pytest.raises(ValueError, match=r"at most 999 bytes among 7.*the smallest takes 1,000"):
        front.best(999)
    with pytest.raises(ValueError, match="Received: no trial"):
        ParetoFront.from_trials([], "val_accuracy").best()


def test_a_score_that_is_no_number_is_not_on_the_front(rows):
    diverged = _row(500, math.nan, "n")
    front = ParetoFront.from_trials([diverged, *rows], "val_accuracy")
    assert [row.trial_id for row in front.points] == ["c", "e", "a"]
    assert diverged in front.trials
    assert front.best().trial_id == "a"


def test_prints_a_row_for_each_point(rows):
    lines = str(ParetoFront.from_trials(rows, "val_accuracy")).splitlines()
    assert lines[0].split() == ["bytes", "val_accuracy", "hidden_size", "permutation", "trial"]
    assert [line.split() for line in lines[2:5]] == [
        ["1,000", "0.6", "10", "None", "c"],
        ["3,000", "0.8", "30", "None", "e"],
        ["4,000", "0.9", "40", "None", "a"],
    ]
    assert lines[-1] == "3 of 7 trials"


def test_refuses_another_direction(rows):
    with pytest.raises(ValueError, match="Received: direction='up'"):
        ParetoFront.from_trials(rows, "val_accuracy", "up")


def test_plot_shows_all_trials_over_logarithmic_bytes(rows, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plots.plot_pareto_front(ParetoFront.from_trials(rows, "val_accuracy"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bytes", "val_accuracy")
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[1000, 0.6], [3000, 0.8], [4000, 0.9]]
    dots = axes.collections[0].get_offsets().tolist()
    assert dots == [[1000, 0.5], [2000, 0.6], [4000, 0.9], [5000, 0.85]]
    figure.savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="Received: none"):
        plots.plot_pareto_front(ParetoFront.from_trials([], "val_accuracy"))
