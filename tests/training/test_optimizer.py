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


def test_a_fixed_rate_replaces_the_decay_until_it_is_removed():
    schedule = PlannedCosineDecay(1.0, 10)
    traced = tf.function(lambda: schedule(tf.constant(5)))
    schedule.fix(0.125)
    assert float(traced()) == 0.125
    schedule.plan(4.0, 10)
    assert float(traced()) == 0.125
    copy = PlannedCosineDecay.from_config(schedule.get_config())
    assert float(copy(7)) == 0.125
    schedule.fix(0.0)
    assert float(traced()) == 0.0
    schedule.fix(None)
    assert float(traced()) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"learning_rate must be a finite .*Received: .*=-0.1"):
        schedule.fix(-0.1)


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


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), tf.constant(0.25)])
def test_a_rate_can_be_assigned_to_the_default_optimizer(value):
    optimizer = default_optimizer(PlannedCosineDecay(0.1, 7))
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    optimizer.learning_rate = value
    assert float(optimizer.learning_rate) == 0.25
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    scaled.learning_rate = 0.5
    assert float(scaled.learning_rate) == float(optimizer.learning_rate) == 0.5
    plain = Muon(0.1)  # with a variable in place of a schedule
    plain.learning_rate = value
    assert float(plain.learning_rate) == 0.25
    with pytest.raises(ValueError, match="learning_rate must be a finite number of at least 0"):
        optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 7)


class _Rates(keras.callbacks.Callback):
    """Records the learning rate of each step, by phase."""

    def __init__(self):
        super().__init__()
        self.seen = {"reconstruction": [], "distillation": []}

    def on_train_batch_begin(self, batch, logs=None):
        self.seen[self.model.phase].append(float(self.model.optimizer.learning_rate))


@pytest.fixture
def small(base):
    model = keras_nern.NeRNModel(base, hidden_size=4, num_layers=2)
    model.compile(reconstruction_steps=2, run_eagerly=True)
    return model


def test_an_assigned_rate_holds_in_all_phases_and_fits_until_the_schedule_restarts(
    small, images, tmp_path
):
    small.optimizer.learning_rate = 1e-4
    rates = _Rates()
    small.fit(images, epochs=2, verbose=0, callbacks=[rates])
    small.fit(images, epochs=1, verbose=0, callbacks=[rates])
    assert rates.seen["reconstruction"] == pytest.approx([1e-4] * 2)
    assert rates.seen["distillation"] == pytest.approx([1e-4] * 3)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(1e-4)
    loaded.restart_schedule()
    rates.seen["distillation"].clear()
    loaded.fit(images, epochs=2, verbose=0, callbacks=[rates])
    assert rates.seen["distillation"] == pytest.approx([2.5e-4, 1.25e-4])


def test_callbacks_set_the_rate_of_the_default_optimizer_until_the_fit_ends(small, images):
    rates = _Rates()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 1e-3 * 0.5**epoch)
    history = small.fit(images, epochs=3, batch_size=6, verbose=0, callbacks=[scheduler, rates])
    assert rates.seen["reconstruction"] == pytest.approx([1e-2, 5e-3])
    expected = pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert rates.seen["distillation"][::2] == rates.seen["distillation"][1::2] == expected
    assert history.history["learning_rate"] == expected
    rates.seen["distillation"].clear()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    small.fit(images, epochs=4, verbose=0, callbacks=[plateau, rates])
    peak, second = rates.seen["distillation"][:2]  # the cosine until the first reduction
    assert peak == pytest.approx(2.5e-4)
    assert second == pytest.approx(2.5e-4 * (1 + math.cos(math.pi / 4)) / 2)
    third = 0.5 * 2.5e-4 * (1 + math.cos(math.pi / 2)) / 2
    assert rates.seen["distillation"][2:] == pytest.approx([third, third / 2])
    rates.seen["distillation"].clear()
    small.fit(images, epochs=1, verbose=0, callbacks=[rates])
    assert rates.seen["distillation"] == pytest.approx([2.5e-4])


def test_callbacks_cannot_set_the_rate_of_a_users_schedule(small, images):
    decay = keras.optimizers.schedules.CosineDecay(0.1, 100)
    small.compile(keras.optimizers.Adam(decay), reconstruction_steps=1)
    for callback in (
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    ):
        message = f"adam has a learning rate schedule.*Received: {type(callback).__name__}"
        with pytest.raises(ValueError, match=message):
            small.fit(images, verbose=0, callbacks=[callback])
    assert int(small.reconstruction_iterations) == 0


def test_muon_is_restored_from_its_config():
    copy = assert_config_round_trip(default_optimizer(PlannedCosineDecay(0.1, 7), experts=3))
    assert copy.exclude_layers == [OUTPUT_LAYER]
    assert copy.adam_lr_ratio == 0.5
