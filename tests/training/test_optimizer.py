import math

import pytest
import tensorflow as tf

from keras_nern.training.optimizer import PlannedCosineDecay


def test_matches_the_formula():
    schedule = PlannedCosineDecay(0.5, 100)
    for step in (0, 1, 50, 99):
        expected = 0.5 * (1 + math.cos(math.pi * step / 100)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)
    assert float(schedule(100)) == float(schedule(10_000)) == pytest.approx(0, abs=1e-7)


def test_a_new_plan_reaches_a_traced_step():
    schedule = PlannedCosineDecay(1.0, 10)
    traced = tf.function(lambda: schedule(tf.constant(5)))
    assert float(traced()) == pytest.approx(0.5)
    schedule.plan(4.0, 20)
    assert float(traced()) == pytest.approx(4 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("plan", [(0.1, 0), (-0.1, 1), (float("nan"), 1)])
def test_raises_for_invalid_plans(plan):
    message = f"Received: initial_learning_rate={plan[0]}, decay_steps={plan[1]}"
    with pytest.raises(ValueError, match=message):
        PlannedCosineDecay(*plan)
