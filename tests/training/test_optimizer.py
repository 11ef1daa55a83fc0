import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from roundtrips import assert_config_round_trip

import keras_nern
from keras_nern.predictor.predictor import OUTPUT_LAYER
from keras_nern.training.optimizer import Muon, PlannedCosineDecay, default_optimizer


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


def _after(optimizer, start, gradients, name="kernel"):
    """The value of a variable after one step for each gradient."""
    variable = keras.Variable(start, name=name)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


@pytest.mark.parametrize("rms_rate", [0.2, None])
@pytest.mark.parametrize("shape", [(4, 9, 3), (4, 3, 9), (2, 5, 5)])
def test_each_matrix_of_a_stack_is_updated_as_by_a_muon_of_its_own(shape, rms_rate):
    generator = np.random.default_rng(0)
    start, *gradients = generator.normal(size=(4, *shape)).astype("float32")
    gradients *= generator.uniform(0.01, 100, (shape[0], 1, 1)).astype("float32")
    arguments = {"learning_rate": 0.1, "rms_rate": rms_rate, "weight_decay": None}
    together = _after(Muon(**arguments), start, gradients)
    for index in range(shape[0]):
        one = _after(
            keras.optimizers.Muon(**arguments), start[index], [g[index] for g in gradients]
        )
        assert np.abs(one - start[index]).max() > 0.01
        np.testing.assert_allclose(together[index], one, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_output_layer_is_updated_by_adam_and_hidden_layers_are_not(experts):
    share = 0.2 if experts == 1 else 0.5
    shape = (5, 9) if experts == 1 else (experts, 5, 9)
    start, *gradients = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    schedule = PlannedCosineDecay(0.1, 10**6)

    def after(layer):
        with keras.name_scope(layer):
            return _after(default_optimizer(schedule, experts), start, gradients)

    adam = _after(keras.optimizers.Adam(0.1 * share), start, gradients)
    np.testing.assert_allclose(after(OUTPUT_LAYER), adam, atol=1e-6)
    assert np.abs(after("hidden_0") - adam).max() > 0.01


@pytest.mark.parametrize("experts", [1, 3])
def test_only_hidden_kernels_of_a_model_are_for_muon(base, experts):
    nern = keras_nern.NeRNModel(base, hidden_size=4, num_layers=3, experts=experts)
    assert type(nern.optimizer) is Muon
    by_adam = {
        variable.path
        for variable in nern.trainable_variables
        if nern.optimizer._should_use_adamw(variable)
    }
    hidden = {layer.kernel.path for layer in nern.predictor.hidden}
    assert by_adam == {variable.path for variable in nern.trainable_variables} - hidden
    assert nern.predictor.output_layer.kernel.path in by_adam


def test_muon_is_restored_from_its_config():
    copy = assert_config_round_trip(default_optimizer(PlannedCosineDecay(0.1, 7), experts=3))
    assert copy.exclude_layers == [OUTPUT_LAYER]
    assert copy.adam_lr_ratio == 0.5
