"""The package's callbacks, alone and together with callbacks of Keras."""

import csv
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.analysis.kernel_images import kernel_image
from keras_nern.callbacks import (
    EvaluateRebuilt,
    KernelSummaries,
    LossWarmup,
    SwitchPhase,
    _StepInterval,
)


def _call_after_steps(function):
    return keras.callbacks.LambdaCallback(on_train_batch_end=function)


def test_evaluate_rebuilt_adds_results_and_changes_nothing_else(base, images, labels):
    def fit(*callbacks):
        keras.utils.set_random_seed(3)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.compile(reconstruction_steps=3, run_eagerly=True)
        steps = {}

        def record(batch, logs):
            step = (nern.phase, int(nern.phase_iterations))
            steps[step] = (nern.get_weights(), dict(logs))

        callbacks = [*callbacks, _call_after_steps(record)]
        history = nern.fit(images, batch_size=6, epochs=2, verbose=0, callbacks=callbacks)
        return nern, history, steps

    watch = EvaluateRebuilt(images, labels, frequency=2)
    nern, history, steps = fit(watch)
    plain, plain_history, _ = fit()
    for weights in zip(nern.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(*weights)
    for logs, plain_logs in (
        (history.history, plain_history.history),
        (history.reconstruction, plain_history.reconstruction),
    ):
        for name, values in plain_logs.items():
            np.testing.assert_allclose(logs[name], values, rtol=1e-6)

    assert [(result["phase"], result["step"]) for result in watch.history] == [
        *(("reconstruction", 2), ("distillation", 2), ("distillation", 4)),
    ]
    for result in watch.history:
        weights, logs = steps[result["phase"], result["step"]]
        nern.set_weights(weights)
        expected = nern.evaluate(images, labels, verbose=0, return_dict=True)
        for name, value in expected.items():
            assert result[name] == pytest.approx(value, rel=1e-5)
            assert logs[f"val_{name}"] == result[name]
    assert "val_loss" not in steps["distillation", 1][1]


def test_model_checkpoint_keeps_the_best_evaluation(nern, images, tmp_path):
    watch = EvaluateRebuilt(images, frequency=2)
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_loss", mode="min", save_best_only=True, save_freq=2
    )
    nern.compile(reconstruction_steps=0, distillation_learning_rate=3e-2, run_eagerly=True)
    nern.fit(images, batch_size=6, epochs=4, verbose=0, callbacks=[watch, keep])
    best = min(result["loss"] for result in watch.history)
    loaded = keras.models.load_model(tmp_path / "best.keras")
    result = loaded.evaluate(images, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(best, rel=1e-5)


def test_evaluate_rebuilt_counts_steps_within_executions(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(reconstruction_steps=6, steps_per_execution=4)
    watch = EvaluateRebuilt(images, frequency=3)
    nern.fit(images, batch_size=2, verbose=0, callbacks=[watch])
    steps = [(result["phase"], result["step"]) for result in watch.history]
    assert steps == [
        (phase, step) for phase in ("reconstruction", "distillation") for step in (4, 6)
    ]


def test_step_interval_counts_executions_of_several_lengths():
    """By hand: epochs of three steps, in executions of two and one."""
    interval = _StepInterval(5)
    for _ in range(2):  # the second fit counts from 0 again
        interval.start()
        model = types.SimpleNamespace(phase="distillation", steps_per_execution=2)
        due = []
        for step in (2, 3, 5, 6, 8, 9, 11, 12):
            model.phase_iterations = np.int32(step)
            if interval.is_due(model):
                due.append(step)
        assert due == [5, 11]


def test_loss_warmup_increases_weights_linearly(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    weights = {"reconstruction_weight": 1.0, "logits_weight": 0.5, "feature_map_weight": 0.25}
    nern.compile(keras.optimizers.SGD(0.0), reconstruction_steps=2, run_eagerly=True, **weights)

    def fit(warmups, last=5):
        """The logs of every step, and the phases; interrupted at epoch `last`."""
        steps, phases = [], []

        def record(batch, logs):
            phases.append(nern.phase)
            # logs are running means, over one step per epoch of distillation
            steps.append({name: value * (batch + 1) for name, value in logs.items()})
            if phases.count("distillation") == last:
                raise KeyboardInterrupt

        callbacks = [*warmups, _call_after_steps(record)]
        with pytest.raises(KeyboardInterrupt):
            nern.fit(images, batch_size=12, epochs=9, verbose=0, callbacks=callbacks)
        return steps, phases

    def check(logs, logits, feature_maps):
        expected = logs["reconstruction_loss"]
        expected += 0.5 * logits * logs["logits_loss"]
        expected += 0.25 * feature_maps * logs["feature_map_loss"]
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)

    steps, phases = fit([LossWarmup(4)])
    assert phases == ["reconstruction"] * 2 + ["distillation"] * 5
    assert steps[0]["loss"] == pytest.approx(steps[0]["reconstruction_loss"], rel=1e-5)
    for logs, share in zip(steps[2:], (0.25, 0.5, 0.75, 1, 1), strict=True):
        check(logs, share, share)

    steps, _ = fit([LossWarmup(4, ["logits_loss"]), LossWarmup(8, ["feature_map_loss"])], last=3)
    for logs, share in zip(steps, (0.25, 0.5, 0.75), strict=True):
        check(logs, share, share / 2)
    (logs,), _ = fit([], last=1)  # the multipliers end with the fit
    check(logs, 1, 1)
    nern.scale_losses(logits_loss=0.0)
    check(nern.evaluate(images, verbose=0, return_dict=True), 1, 1)  # evaluation ignores them
    with pytest.raises(ValueError, match=r"must be among \('reconstruction_loss', .*: \['loss'\]"):
        nern.scale_losses(loss=1.0)
    with pytest.raises(ValueError, match="logits_loss must be a finite number of at least 0"):
        nern.scale_losses(logits_loss=-1.0)


def test_switch_phase_ends_the_reconstruction_at_the_given_error(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=32)
    nern.compile(optimizer=keras.optimizers.Adam(1e-2), reconstruction_steps=2000)
    assert nern.relative_error() > 0.5
    errors = []

    def note(batch, logs):
        if nern.phase == "reconstruction" and nern.phase_iterations % 10 == 0:
            errors.append(nern.relative_error())

    switch = SwitchPhase(relative_error=0.3, frequency=10)
    callbacks = [switch, keras.callbacks.LambdaCallback(on_train_batch_begin=note)]
    history = nern.fit(images, verbose=0, callbacks=callbacks)
    assert int(nern.reconstruction_iterations) == 10 * (len(errors) - 1) + 1 < 2000
    assert min(errors[:-1]) > 0.3
    assert errors[-1] <= 0.3  # at the check before the last step
    assert len(history.history["loss"]) == 1
    again = nern.fit(images, verbose=0)
    assert again.reconstruction == {}

    originals, predicted = nern.original_kernels(), nern.predict_kernels()
    squares = sum(np.sum((originals[name] - predicted[name]) ** 2) for name in originals)
    expected = squares / sum(np.sum(original**2) for original in originals.values())
    assert nern.relative_error() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EvaluateRebuilt(None, frequency=0),
            "frequency must be an integer of at least 1.*frequency=0",
        ),
        (
            lambda: EvaluateRebuilt(x for x in ()),
            "x must be data that can be read at every evaluation.* Received: a generator",
        ),
        (lambda: LossWarmup(0), "steps must be an integer of at least 1. Received: steps=0"),
        (lambda: LossWarmup(3, ["loss"]), r"losses must be among .* Received: losses=\['loss'\]"),
        (lambda: SwitchPhase(-1.0), "relative_error must be a finite number of at least 0.*-1.0"),
        (lambda: SwitchPhase(0.1, 0), "frequency must be an integer of at least 1"),
        (
            lambda: KernelSummaries("logs", frequency=0),
            "frequency must be an integer of at least 1. Received: frequency=0",
        ),
        (
            lambda: KernelSummaries("logs", frequency="batch"),
            "frequency must be \"epoch\" or a number of steps. Received: frequency='batch'",
        ),
        (
            lambda: KernelSummaries("logs", limit=0),
            "limit must be an integer of at least 1. Received: limit=0",
        ),
    ],
)
def test_raises_for_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_callbacks_of_keras_work_in_one_fit(nern, images, labels, tmp_path):
    pytest.importorskip("tensorboard", reason="install keras-nern[tensorboard]")
    nern.compile(reconstruction_steps=2, run_eagerly=True)
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


def _read(folder):
    """The summaries in the event files of a run: {tag: {step: value}}, images as pixels."""
    found = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                if array.dtype == object:  # width, height and a PNG
                    array = tf.io.decode_png(array[2]).numpy()
                found.setdefault(value.tag, {})[event.step] = array
    return found


@pytest.fixture
def record(nern):
    """Errors and kernels after each step, recorded by a callback."""
    pytest.importorskip("tensorboard", reason="install keras-nern[tensorboard]")
    steps = {}

    def note(batch, logs):
        steps[nern.phase, int(nern.phase_iterations)] = nern.layer_errors(), nern.predict_kernels()

    callback = _call_after_steps(note)
    callback.steps = steps
    return callback


def test_kernel_summaries_at_steps(nern, images, record, tmp_path):
    nern.compile(reconstruction_steps=5, run_eagerly=True)
    summaries = KernelSummaries(tmp_path, frequency=2, layers=["conv"], limit=5)
    # Keras's callback comes first, and turns recording off except at every third step.
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=3)
    nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=[board, record, summaries])
    originals = nern.original_kernels()
    for phase, steps in (("reconstruction", [2, 4]), ("distillation", [2, 4, 6])):
        found = _read(tmp_path / phase)
        assert set(found) == {*(f"layer_error/{name}" for name in originals), "kernels/conv"}
        assert all(list(values) == steps for values in found.values())
        for step in steps:
            errors, kernels = record.steps[phase, step]
            for name, error in errors.items():
                assert found[f"layer_error/{name}"][step] == pytest.approx(error, rel=1e-6)
            expected = kernel_image(originals["conv"], kernels["conv"], limit=5)
            np.testing.assert_array_equal(found["kernels/conv"][step], expected)
    losses = _read(tmp_path / "train")
    # Keras counts the steps of both phases together: 5 of reconstruction, 6 of distillation
    assert list(losses["batch_reconstruction_loss"]) == [3, 6, 9]
    assert list(losses["batch_feature_map_loss"]) == [6, 9]


def test_kernel_summaries_at_epochs(nern, images, record, tmp_path):
    nern.compile(reconstruction_steps=5, run_eagerly=True)
    callbacks = [record, KernelSummaries(tmp_path), keras.callbacks.TensorBoard(tmp_path)]
    history = nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distillation", "train"]
    for name, values in history.items():
        written = _read(tmp_path / "train")[f"epoch_{name}"]
        assert written == pytest.approx(dict(enumerate(values)), rel=1e-6)
    found = _read(tmp_path / "distillation")
    names = list(nern.original_kernels())
    assert set(found) == {f"{kind}/{name}" for kind in ("layer_error", "kernels") for name in names}
    # step 0 of the distillation is the end of the reconstruction
    recorded = {0: ("reconstruction", 5), 3: ("distillation", 3), 6: ("distillation", 6)}
    for name in names:
        expected = {step: record.steps[key][0][name] for step, key in recorded.items()}
        assert found[f"layer_error/{name}"] == pytest.approx(expected, rel=1e-6)
    # a reconstruction without distillation has epochs of its own
    nern.fit(steps_per_epoch=2, epochs=2, verbose=0, callbacks=[KernelSummaries(tmp_path)])
    assert list(_read(tmp_path / "reconstruction")["layer_error/stem"]) == [0, 2, 4]


def test_kernel_summaries_raise_for_unknown_layers_before_training(nern, images, tmp_path):
    pytest.importorskip("tensorboard", reason="install keras-nern[tensorboard]")
    summaries = KernelSummaries(tmp_path, layers=["stem", "fc"])
    message = r"layers must be among \['stem', .*\]. Received: \['fc'\]"
    with pytest.raises(ValueError, match=message):
        nern.fit(images, verbose=0, callbacks=[summaries])
    assert int(nern.reconstruction_iterations) == 0
    assert not list(tmp_path.iterdir())


def test_missing_tensorboard_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "keras-nern\[tensorboard\]"'):
        KernelSummaries(tmp_path)
