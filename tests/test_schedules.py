import math

import keras
import pytest

from keras_nern import PhaseSchedule


def test_matches_the_formula_in_both_phases():
    schedule = PhaseSchedule((10, 100, 0.5), (110, 40, 0.25))
    for step in (10, 11, 60, 109):
        expected = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)
    for step in (110, 111, 130, 149):
        expected = 0.25 * (1 + math.cos(math.pi * (step - 110) / 40)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)
    assert float(schedule(150)) == float(schedule(10_000)) == pytest.approx(0, abs=1e-7)


def test_a_new_plan_reaches_a_traced_step():
    tf = pytest.importorskip("tensorflow")
    schedule = PhaseSchedule((0, 10, 1.0), (10, 10, 0.0))
    traced = tf.function(lambda: schedule(tf.constant(5)))
    assert float(traced()) == pytest.approx(0.5)
    schedule.plan((0, 10, 4.0), (10, 10, 0.0))
    assert float(traced()) == pytest.approx(2.0)


def test_serialises_its_plan():
    schedule = PhaseSchedule()
    schedule.plan((3, 10, 0.125), (13, 5, 0.0625))
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    for step in (3, 8, 13, 15, 18):
        assert float(again(step)) == float(schedule(step))


def test_refuses_a_phase_without_steps():
    with pytest.raises(ValueError, match=r"A phase is .*Received: \(0, 0, 0.1\)"):
        PhaseSchedule((0, 0, 0.1))
