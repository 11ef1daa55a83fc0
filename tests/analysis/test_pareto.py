"""The Pareto front and its table."""

import dataclasses
import math

import pytest

from keras_nern.analysis.pareto import ParetoFront, ParetoPoint


def _point(size, score, trial_id):
    return ParetoPoint(size, score, {"hidden_size": size // 100, "permutation": None}, trial_id)


TRIALS = [
    _point(4000, 0.9, "a"),
    _point(1000, 0.5, "b"),
    _point(1000, 0.6, "c"),  # better than b in as many bytes
    _point(2000, 0.6, "d"),  # no better than c
    _point(3000, 0.8, "e"),
    _point(5000, 0.85, "f"),  # worse than a
    _point(4000, 0.9, "g"),  # equal to a, which comes first
]


def _ids(points):
    return [point.trial_id for point in points]


def test_front_by_hand():
    front = ParetoFront.from_trials(TRIALS, "val_accuracy")
    assert _ids(front.points) == ["c", "e", "a"]
    assert _ids(front.trials) == ["c", "b", "d", "e", "a", "g", "f"]
    errors = [dataclasses.replace(trial, score=1 - trial.score) for trial in TRIALS]
    assert _ids(ParetoFront.from_trials(errors, "error", "min").points) == ["c", "e", "a"]


@pytest.mark.parametrize(("direction", "sign"), [("max", 1), ("min", -1)])
def test_front_matches_the_definition(direction, sign):
    def dominates(a, b):
        gain = sign * (a.score - b.score)
        return a.bytes <= b.bytes and gain >= 0 and (a.bytes < b.bytes or gain > 0)

    expected = {
        (trial.bytes, trial.score)
        for trial in TRIALS
        if not any(dominates(other, trial) for other in TRIALS)
    }
    points = ParetoFront.from_trials(TRIALS, "score", direction).points
    assert {(point.bytes, point.score) for point in points} == expected
    assert len(points) == len(expected)


def test_best_within_a_budget():
    front = ParetoFront.from_trials(TRIALS, "val_accuracy")
    assert front.best().trial_id == "a"
    assert front.best(3999).trial_id == "e"
    assert front.best(1000).trial_id == "c"
    assert front.best("1 kB").trial_id == "c"
    message = "at most 999 bytes among 7 trials. Received: 1,000 bytes for the smallest"
    with pytest.raises(ValueError, match=message):
        front.best(999)
    with pytest.raises(ValueError, match="Received: no trial with a score"):
        ParetoFront.from_trials([], "val_accuracy").best()


def test_a_score_of_nan_is_not_on_the_front():
    diverged = _point(500, math.nan, "n")
    front = ParetoFront.from_trials([diverged, *TRIALS], "val_accuracy")
    assert _ids(front.points) == ["c", "e", "a"]
    assert diverged in front.trials
    assert front.best().trial_id == "a"


def test_prints_a_row_for_each_point():
    lines = str(ParetoFront.from_trials(TRIALS, "val_accuracy")).splitlines()
    assert lines[0].split() == ["bytes", "val_accuracy", "hidden_size", "permutation", "trial"]
    assert [line.split() for line in lines[2:5]] == [
        ["1,000", "0.6", "10", "None", "c"],
        ["3,000", "0.8", "30", "None", "e"],
        ["4,000", "0.9", "40", "None", "a"],
    ]
    assert lines[-1] == "3 of 7 trials are on the front"


def test_raises_for_an_unknown_direction():
    with pytest.raises(ValueError, match=r"direction must be one of .* Received: direction='up'"):
        ParetoFront.from_trials(TRIALS, "val_accuracy", "up")
