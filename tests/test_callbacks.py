import csv

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.callbacks import EvaluateRebuilt, LossWarmup, SwitchPhase


def test_the_rebuilt_classifier_is_evaluated_every_so_many_steps(nern, images, labels):
    watch = EvaluateRebuilt(images, labels, frequency=2)
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(
            (nern.phase, int(nern.phase_iterations), nern.get_weights(), dict(logs))
        )
    )
    nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=[watch, keep])
    assert [(result["phase"], result["step"]) for result in watch.history] == [
        ("reconstruction", 2),
        ("reconstruction", 4),
        ("distillation", 2),
        ("distillation", 4),
        ("distillation", 6),
    ]
    by_step = {(phase, step): (values, logs) for phase, step, values, logs in weights}
    for result in watch.history:
        values, logs = by_step[result["phase"], result["step"]]
        nern.set_weights(values)
        expected = nern.evaluate(images, labels, verbose=0, return_dict=True)
        for name, value in expected.items():
            assert result[name] == pytest.approx(value, rel=1e-5)
            assert logs[f"val_{name}"] == result[name]
    assert "val_loss" not in by_step["distillation", 1][1]


def test_evaluating_in_between_changes_neither_training_nor_its_history(base, images):
    def fit(callbacks):
        keras.utils.set_random_seed(3)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.compile(reconstruction_steps=4)
        history = nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        return nern.get_weights(), history

    plain, history = fit([])
    watched, other = fit([EvaluateRebuilt(images, frequency=2)])
    for a, b in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, values in history.history.items():
        np.testing.assert_allclose(values, other.history[name], rtol=1e-6)
    np.testing.assert_allclose(
        history.reconstruction["loss"], other.reconstruction["loss"], rtol=1e-6
    )


def test_the_best_of_the_evaluations_can_be_kept(nern, images, tmp_path):
    watch = EvaluateRebuilt(images, frequency=2)
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_loss", mode="min", save_best_only=True, save_freq=2
    )
    nern.compile(reconstruction_steps=0, distillation_learning_rate=3e-2)
    nern.fit(images, batch_size=4, epochs=4, verbose=0, callbacks=[watch, keep])
    best = min(result["loss"] for result in watch.history)
    loaded = keras.models.load_model(tmp_path / "best.keras")
    result = loaded.evaluate(images, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(best, rel=1e-5)


def test_steps_in_one_execution_are_not_missed(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(reconstruction_steps=6, steps_per_execution=4)
    watch = EvaluateRebuilt(images, frequency=3)
    nern.fit(images, batch_size=2, verbose=0, callbacks=[watch])
    steps = [(result["phase"], result["step"]) for result in watch.history]
    assert steps == [
        (phase, step) for phase in ("reconstruction", "distillation") for step in (4, 6)
    ]


def test_short_executions_pass_nothing_twice(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(reconstruction_steps=0, steps_per_execution=2)
    watch = EvaluateRebuilt(images, frequency=5)
    epoch = np.concatenate([images, images])[:12]  # three batches, two of them at once
    for _ in range(2):  # the second fit counts anew
        nern.fit(epoch, batch_size=4, epochs=4, verbose=0, callbacks=[watch])
        assert [result["step"] for result in watch.history] == [5, 11]


def test_losses_warm_up_in_equal_steps(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(
        reconstruction_steps=2,
        optimizer=keras.optimizers.SGD(0.0),
        reconstruction_weight=1.0,
        logits_weight=0.5,
        feature_map_weight=0.25,
    )
    seen = []

    def record(batch, logs):
        full = logs["reconstruction_loss"] * (batch + 1), logs["loss"] * (batch + 1)
        seen.append((nern.phase, *full, logs.get("logits_loss"), logs.get("feature_map_loss")))

    nern.fit(
        images,
        batch_size=12,
        epochs=5,
        verbose=0,
        callbacks=[LossWarmup(4), keras.callbacks.LambdaCallback(on_train_batch_end=record)],
    )
    assert [row[0] for row in seen] == ["reconstruction"] * 2 + ["distillation"] * 5
    for phase, reconstruction, loss, *_ in seen[:2]:
        assert loss == pytest.approx(reconstruction, rel=1e-5), phase
    for (_, reconstruction, loss, logits, maps), share in zip(
        seen[2:], (0.25, 0.5, 0.75, 1.0, 1.0), strict=True
    ):
        expected = reconstruction + share * (0.5 * logits + 0.25 * maps)
        assert loss == pytest.approx(expected, rel=1e-5)
    # an evaluation has the full weights at all times
    nern.scale_losses(logits_loss=0.0)
    result = nern.evaluate(images, verbose=0, return_dict=True)
    expected = (
        result["reconstruction_loss"]
        + 0.5 * result["logits_loss"]
        + 0.25 * result["feature_map_loss"]
    )
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


def test_reconstruction_ends_when_the_kernels_are_near_enough(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=32)
    nern.compile(optimizer=keras.optimizers.Adam(1e-2), reconstruction_steps=2000)
    assert nern.relative_error() > 0.5
    ends = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: ends.append((nern.phase, nern.relative_error()))
    )
    history = nern.fit(
        images, verbose=0, callbacks=[SwitchPhase(relative_error=0.3, frequency=10), note]
    )
    steps = [error for phase, error in ends if phase == "reconstruction"]
    assert len(steps) == int(nern.reconstruction_iterations) < 2000
    assert len(steps) % 10 == 1  # the step after the look
    assert min(steps[:-1:10]) > 0.3
    assert steps[-1] <= 0.3
    assert len(history.history["loss"]) == 1
    again = nern.fit(images, verbose=0)
    assert again.reconstruction == {}


def test_warm_ups_of_two_losses_go_side_by_side_and_end_with_the_fit(nern, images):
    seen = []

    def record(batch, logs):
        seen.append(nern._runtime.multipliers.numpy().tolist())
        if batch == 2 and nern.phase == "distillation":
            raise KeyboardInterrupt

    callbacks = [
        LossWarmup(4, ["logits_loss"]),
        LossWarmup(8, ["feature_map_loss"]),
        keras.callbacks.LambdaCallback(on_train_batch_end=record),
    ]
    with pytest.raises(KeyboardInterrupt):
        nern.fit(images, batch_size=3, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(
        seen[-3:], [[1, 0.25, 0.125, 1], [1, 0.5, 0.25, 1], [1, 0.75, 0.375, 1]]
    )
    assert nern._runtime.multipliers.numpy().tolist() == [1, 1, 1, 1]


def test_the_error_is_that_of_the_kernels(nern, images):
    kernels = nern.predict_kernels()
    originals = {name: nern.base.get_layer(name).kernel.numpy() for name in kernels}
    error = sum(np.sum((originals[name] - kernels[name]) ** 2) for name in kernels)
    expected = error / sum(np.sum(original**2) for original in originals.values())
    assert nern.relative_error() == pytest.approx(expected, rel=1e-5)


def test_keras_callbacks_work_beside_each_other(nern, images, labels, tmp_path):
    pytest.importorskip("tensorboard", reason="install keras-nern[dev]")
    nern.fit(
        images,
        epochs=3,
        validation_data=(images, labels),
        verbose=0,
        callbacks=[
            EvaluateRebuilt(images, frequency=2),
            keras.callbacks.TensorBoard(tmp_path / "board", update_freq=2, histogram_freq=1),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "{epoch:02d}.weights.h5", save_weights_only=True
            ),
            keras.callbacks.EarlyStopping(
                monitor="val_loss", restore_best_weights=True, patience=5
            ),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {"val_agreement", "val_accuracy", "feature_map_loss"} <= set(rows[0])
    assert sorted(path.name for path in tmp_path.glob("*.weights.h5")) == [
        f"0{epoch}.weights.h5" for epoch in (1, 2, 3)
    ]
    assert list((tmp_path / "board" / "train").iterdir())
    assert list((tmp_path / "board" / "validation").iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EvaluateRebuilt(None, frequency=0),
            "frequency must be an integer of at least 1.*frequency=0",
        ),
        (lambda: EvaluateRebuilt(x for x in ()), "x must give its images .* Received: a generator"),
        (lambda: LossWarmup(0), "steps must be an integer of at least 1. Received: steps=0"),
        (lambda: LossWarmup(3, ["loss"]), r"losses must be among .* Received: losses=\['loss'\]"),
        (lambda: SwitchPhase(-1.0), "relative_error must not be negative.*-1.0"),
        (lambda: SwitchPhase(0.1, 0), "frequency must be an integer of at least 1"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("multipliers", [{"loss": 1.0}, {"logits_loss": -1.0}])
def test_only_losses_can_be_scaled(nern, multipliers):
    with pytest.raises(ValueError, match="Expected multipliers of at least 0"):
        nern.scale_losses(**multipliers)


def test_early_stopping_restores_the_best_epoch(nern, images):
    nern.compile(keras.optimizers.SGD(0.5), reconstruction_steps=0, logits_weight=1.0)
    stop = keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True, patience=2)
    history = nern.fit(
        images, epochs=60, validation_data=(images,), verbose=0, callbacks=[stop]
    ).history["val_loss"]
    assert stop.stopped_epoch == len(history) - 1 < 59
    result = nern.evaluate(images, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(min(history), rel=1e-5)
    assert min(history) < history[-1]
