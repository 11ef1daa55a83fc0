"""The events that callbacks receive, and the restart of killed fits."""

import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import start

import keras_nern


class _Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events = []

    def on_train_begin(self, logs=None):
        self.events.append("train begin")

    def on_train_end(self, logs=None):
        self.events.append("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(f"epoch {epoch} begin")

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(f"epoch {epoch} end")

    def on_train_batch_begin(self, batch, logs=None):
        self.events.append(f"{self.model.phase} {batch} begin")

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(f"{self.model.phase} {batch} end")


def _batches(phase, count):
    return [f"{phase} {batch} {what}" for batch in range(count) for what in ("begin", "end")]


def test_callbacks_receive_one_sequence_of_events_for_both_phases(nern, images):
    record = _Record()
    history = nern.fit(
        images, epochs=3, initial_epoch=1, batch_size=6, verbose=0, callbacks=[record]
    )
    assert record.events == [
        "train begin",
        *_batches("reconstruction", 5),
        "epoch 1 begin",
        *_batches("distillation", 2),
        "epoch 1 end",
        "epoch 2 begin",
        *_batches("distillation", 2),
        "epoch 2 end",
        "train end",
    ]
    assert history.epoch == [1, 2]
    assert nern.history is history
    assert record.params == {"verbose": 0, "epochs": 3, "steps": 2}


def test_callbacks_receive_the_events_of_keras_in_a_single_phase(nern, images):
    record = _Record()
    nern.fit(steps_per_epoch=2, epochs=2, verbose=0, callbacks=record)
    epochs = [
        [f"epoch {epoch} begin", *_batches("reconstruction", 2), f"epoch {epoch} end"]
        for epoch in range(2)
    ]
    assert record.events == ["train begin", *epochs[0], *epochs[1], "train end"]
    nern.compile(reconstruction_steps=0)
    record.events.clear()
    nern.fit(images, batch_size=6, verbose=0, callbacks=keras.callbacks.CallbackList([record]))
    batches = _batches("distillation", 2)
    assert record.events == ["train begin", "epoch 0 begin", *batches, "epoch 0 end", "train end"]


def test_a_callback_that_stops_the_reconstruction_stops_the_fit(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(reconstruction_steps=50, optimizer=keras.optimizers.SGD(1e20))
    history = nern.fit(images, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert history.history == {}
    assert int(nern.reconstruction_iterations) == 0  # when the weights were last finite
    assert nern.phase == "reconstruction"


def test_steps_per_execution_does_not_change_the_number_of_steps(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(reconstruction_steps=5, steps_per_execution=3)
    nern.fit(images, batch_size=3, epochs=2, verbose=0)
    assert int(nern.reconstruction_iterations) == 5
    assert int(nern.phase_iterations) == int(nern.optimizer.iterations) == 8


def test_a_failed_save_keeps_the_previous_file(nern, tmp_path, monkeypatch):
    for name, save in (("a.weights.h5", nern.save_weights), ("a.keras", nern.save)):
        save(tmp_path / name)
        before = (tmp_path / name).read_bytes()

        def full(store):
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(nern, "save_own_variables", full)
            with pytest.raises(OSError, match="no space left"):
                save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "a.weights.h5"]


# Killed fits. Each fit is a process, as if a user started the same program several times.

FIT = """
import sys
import keras, numpy as np, tensorflow as tf, keras_nern
from processes import classifier

folder, data, frequency = sys.argv[1:]
keras.utils.set_random_seed(4)
images = np.random.default_rng(2).normal(size=(24, 8, 8, 1)).astype("float32")
nern = keras_nern.NeRNModel(classifier(), 16, permutation="cross_filter")
nern.compile(
    reconstruction_steps=40,
    distillation_learning_rate=1e-2,  # so that the images and their order count
    kernel_sampling=keras_nern.MagnitudeSampling(20),
    distillation_sampling=keras_nern.UniformSampling(9),
)

def count(batch, logs):
    with open(folder + "/steps", "a") as file:
        file.write("x")

arguments = {"x": images, "batch_size": 4}
if data == "dataset":
    generator = tf.random.Generator.from_seed(1)
    dataset = tf.data.Dataset.from_tensor_slices(images).shuffle(24, seed=5).batch(4)
    arguments = {"x": dataset.map(lambda x: x + generator.normal(tf.shape(x)))}
if data == "endless":
    dataset = tf.data.Dataset.from_tensor_slices(images).shuffle(24, seed=5).repeat().batch(5)
    arguments = {"x": dataset, "steps_per_epoch": 6}
nern.fit(
    **arguments,
    epochs=8,
    verbose=0,
    validation_data=(images,),
    callbacks=[
        keras.callbacks.BackupAndRestore(
            folder + "/backup", save_freq=frequency if frequency == "epoch" else int(frequency)
        ),
        keras.callbacks.LambdaCallback(on_train_batch_end=count),
        keras.callbacks.CSVLogger(folder + "/log.csv", append=True),
    ],
)
np.savez(folder + "/kernels.npz", **nern.predict_kernels())
"""


def _steps(folder):
    path = folder / "steps"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(
    ("data", "frequency", "kills"),
    [
        ("array", 7, (60,)),
        pytest.param("dataset", "epoch", (61, 20), marks=pytest.mark.slow),
        pytest.param("endless", 1, (25, 50), marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_resumes_and_ends_with_the_same_kernels(tmp_path, data, frequency, kills):
    """`kills` are the steps between a start and its kill; a whole fit has 40 + 8 * 6 steps."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert start(FIT, whole, data, frequency).wait() == 0
    assert _steps(whole) == 88
    for kill in kills:
        process, before = start(FIT, killed, data, frequency), _steps(killed)
        while _steps(killed) < before + kill:
            assert process.poll() is None, "the fit ended before it was killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (killed / "kernels.npz").exists()
    before = _steps(killed)
    assert start(FIT, killed, data, frequency).wait() == 0
    assert _steps(killed) - before < 88  # it did not start again
    with np.load(whole / "kernels.npz") as a, np.load(killed / "kernels.npz") as b:
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-7)
    if frequency == "epoch":  # each epoch is logged once
        assert (killed / "log.csv").read_text() == (whole / "log.csv").read_text()
    assert not (killed / "backup").exists()


class _Kill(keras.callbacks.Callback):
    """Raises a KeyboardInterrupt, as Ctrl-C does, after a step of a phase."""

    def __init__(self, phase, step):
        super().__init__()
        self.place = phase, step

    def on_train_batch_end(self, batch, logs=None):
        if (self.model.phase, int(self.model.phase_iterations)) == self.place:
            raise KeyboardInterrupt


def _model(base, optimizer=None, experts=1, **compile_arguments):
    keras.utils.set_random_seed(4)
    nern = keras_nern.NeRNModel(base, hidden_size=8, experts=experts)
    if optimizer:
        compile_arguments["optimizer"] = keras.optimizers.deserialize(optimizer)
    nern.compile(
        **{
            "reconstruction_steps": 6,
            "curvature_steps": 0 if experts == 1 else 4,
            "distillation_learning_rate": 1e-2,
            **compile_arguments,
        }
    )
    return nern


def _fit(nern, images, folder, frequency, kill=(), callbacks=(), epochs=3):
    """Fits three epochs of five batches, the last of which is a single image."""
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=frequency)
    dataset = tf.data.Dataset.from_tensor_slices(np.concatenate([images, images[:1]]))
    dataset = dataset.shuffle(13, seed=3).batch(3)
    return nern.fit(
        dataset,
        epochs=epochs,
        verbose=0,
        validation_data=(images,),
        callbacks=[backup, *callbacks, *kill],
    )


def _optimizer(name, **arguments):
    return keras.optimizers.serialize(getattr(keras.optimizers, name)(**arguments))


RESTORED = {
    "in the reconstruction": (2, ("reconstruction", 5), {}),
    "at its last step": (6, ("distillation", 1), {}),
    "at its last step, averaged": (
        6,
        ("distillation", 1),
        {"optimizer": _optimizer("SGD", learning_rate=0.1, use_ema=True, ema_momentum=0.5)},
    ),
    "with a user's optimizer": (
        4,
        ("distillation", 9),
        {"optimizer": _optimizer("Adam", learning_rate=1e-2)},
    ),
    "two steps at once": (2, ("distillation", 7), {"steps_per_execution": 2, "run_eagerly": False}),
    "with local predictors": (
        2,
        ("distillation", 7),
        {
            "experts": 3,
            "kernel_sampling": keras_nern.MagnitudeSampling(20),
            "distillation_sampling": keras_nern.UniformSampling(9),
        },
    ),
    "after the last batch of an epoch": (1, ("distillation", 10), {}),
    "after the last batch of the fit": (1, ("distillation", 15), {}),
}


VARIANTS = (
    *("at its last step", "with a user's optimizer", "two steps at once"),
    "after the last batch of the fit",
)


@pytest.mark.parametrize(
    ("frequency", "place", "arguments"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in VARIANTS))
        for name, case in RESTORED.items()
    ],
)
def test_a_restored_fit_ends_with_the_same_kernels(
    base, images, tmp_path, frequency, place, arguments
):
    whole = _model(base, **arguments)
    _fit(whole, images, tmp_path / "whole", frequency)
    killed = _model(base, **arguments)
    with pytest.raises(KeyboardInterrupt):
        _fit(killed, images, tmp_path / "killed", frequency, [_Kill(*place)])
    again = _model(base, **arguments)
    history = _fit(again, images, tmp_path / "killed", frequency)
    assert int(again.reconstruction_iterations) == 6
    assert int(again.phase_iterations) == 15
    kernels = whole.predict_kernels().values(), again.predict_kernels().values()
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # epochs that the killed fit had completed are not logged again
    assert history.epoch == list(range(3))[place[1] // 5 if place[0] == "distillation" else 0 :]
    for values in history.history.values():
        assert len(values) == len(history.epoch)
    # curves continue at the restored step
    assert history.steps["distillation"] == [5 * epoch + 5 for epoch in history.epoch]
    restored = place[1] - place[1] % frequency if place[0] == "reconstruction" else 6
    assert history.steps["reconstruction"] == list(range(restored + 1, 7))


def test_restores_a_fit_with_damaged_metadata(base, images, tmp_path):
    whole = _model(base)
    _fit(whole, images, tmp_path / "whole", 2)
    expected = whole.predict_kernels().values()
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(base), images, tmp_path / "killed", 2, [_Kill("distillation", 9)])
    for number, content in enumerate(["", '{"epoch": 1, "ba', "{}"]):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "killed", folder)
        assert (folder / "training_metadata.json").exists()
        (folder / "training_metadata.json").write_text(content)
        again = _model(base)
        _fit(again, images, folder, 2)
        for a, b in zip(expected, again.predict_kernels().values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "steps", "epochs"),
    [(("reconstruction", 3), 10, 1), (("distillation", 3), 6, 5), (("distillation", 10), 6, 4)],
)
def test_the_learning_rate_is_positive_in_a_longer_restored_fit(
    base, images, tmp_path, place, steps, epochs
):
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(base), images, tmp_path, 1, [_Kill(*place)], epochs=2)
    nern, rates = _model(base, reconstruction_steps=steps), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(float(nern.optimizer.learning_rate))
    )
    _fit(nern, images, tmp_path, 1, callbacks=[record], epochs=epochs)
    phase, done = place
    assert len(rates) == 5 * epochs - done + (steps if phase == "reconstruction" else 0)
    assert min(rates) > 0
    end = rates[-1]  # the smallest of the cosine decay
    assert end == min(rates[-5:])


@pytest.mark.parametrize(("frequency", "expected"), [(2, [1, 3]), ((2, 3), [1, 2])])
def test_validation_freq_holds_in_a_restored_fit(base, images, tmp_path, frequency, expected):
    def epochs(nern, kill=()):
        seen = []
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append((epoch, "val_agreement" in logs))
        )
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1, delete_checkpoint=False)
        nern.fit(
            images,
            batch_size=6,
            epochs=4,
            verbose=0,
            validation_data=(images,),
            validation_freq=frequency,
            callbacks=[backup, note, *kill],
        )
        return [epoch for epoch, validated in seen if validated]

    with pytest.raises(KeyboardInterrupt):
        epochs(_model(base), [_Kill("distillation", 3)])
    assert epochs(_model(base)) == expected


@pytest.mark.parametrize(
    ("frequency", "kill"),
    [(5, 11), *(pytest.param(*one, marks=pytest.mark.slow) for one in [(6, 13), (21, 21)])],
)
def test_callbacks_act_at_the_same_steps_in_a_restored_fit(base, images, tmp_path, frequency, kill):
    settings = {"reconstruction_steps": 125, "reconstruction_learning_rate": 2e-2}
    errors = []  # after 5, 10, 15 and 20 steps

    def look(batch, logs):
        if probe.phase_iterations.numpy() % 5 == 0:
            errors.append(probe.relative_error())
            probe.stop_training = len(errors) == 4

    probe = _model(base, **settings)
    probe.fit(
        images, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=look)]
    )
    assert errors[3] < min(errors[:3])
    enough = (errors[3] + min(errors[:3])) / 2

    def run(name, *kill):
        nern = _model(base, **settings)
        watch = keras_nern.callbacks.EvaluateRebuilt(images, frequency=5)
        switch = keras_nern.callbacks.SwitchPhase(relative_error=enough, frequency=5)
        try:
            _fit(nern, images, tmp_path / name, frequency, kill, [watch, switch])
        except KeyboardInterrupt:
            assert kill
        return nern, [(result["phase"], result["step"]) for result in watch.history]

    whole, seen = run("whole")
    assert int(whole.reconstruction_iterations) == 21
    run("killed", _Kill("reconstruction", kill))
    again, seen_again = run("killed")
    assert int(again.reconstruction_iterations) == 21
    assert set(seen_again) < set(seen)
    kernels = whole.predict_kernels().values(), again.predict_kernels().values()
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_raises_for_data_that_end_before_the_backup(base, images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(base), images, tmp_path, 4, [_Kill("distillation", 9)])
    nern = _model(base)
    with pytest.raises(ValueError, match=r"x must give at least 6 batches.*Received: 5 batches"):
        _fit(nern, images, tmp_path, 4, epochs=1)
    nern.fit(images, verbose=0)  # the next fit skips no batches
    assert int(nern.phase_iterations) == 1


def test_a_fit_interrupted_while_skipping_batches_can_be_restored(base, images, tmp_path):
    """Interrupts a fit twice and runs it again, as in a notebook."""
    whole = _model(base)
    _fit(whole, images, tmp_path / "whole", 2)
    nern = _model(base)
    with pytest.raises(KeyboardInterrupt):
        _fit(nern, images, tmp_path / "again", 2, [_Kill("distillation", 9)])

    def interrupted(iterator):
        raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path / "again", save_freq=2)
    dataset = tf.data.Dataset.from_generator(
        lambda: (interrupted(None) if i else images[:3] for i in range(2)),
        output_signature=tf.TensorSpec((3, 8, 8, 1)),
    )
    with pytest.raises(Exception, match="KeyboardInterrupt"):
        nern.fit(dataset, steps_per_epoch=5, epochs=3, verbose=0, callbacks=[backup])
    history = _fit(nern, images, tmp_path / "again", 2)
    assert history.epoch == [1, 2]
    for name, kernel in nern.predict_kernels().items():
        np.testing.assert_allclose(kernel, whole.predict_kernels()[name], rtol=1e-5, atol=1e-7)


# Callbacks of Keras that would fail, or do nothing, at the end of the first epoch.


def _unlogged(name):
    return rf"callbacks must read values that an epoch logs: \[.*\]. Received: .* \['{name}'\]"


REFUSED = {
    "a misspelled monitor": (
        lambda folder: keras.callbacks.EarlyStopping("val_acuracy"),
        "labels",
        _unlogged("val_acuracy"),
    ),
    "accuracy without labels": (
        lambda folder: keras.callbacks.EarlyStopping("val_accuracy", mode="max"),
        "images",
        _unlogged("val_accuracy"),
    ),
    "validation without data": (
        lambda folder: keras.callbacks.EarlyStopping(),
        "none",
        _unlogged("val_loss") + " but no validation_data",
    ),
    "a monitor of the best weights": (
        lambda folder: keras.callbacks.ModelCheckpoint(
            folder / "a.keras", monitor="val_top1", save_best_only=True
        ),
        "labels",
        _unlogged("val_top1"),
    ),
    "a name in a path": (
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "{epoch}-{val_top1:.2f}.keras"),
        "labels",
        _unlogged("val_top1"),
    ),
    "a metric without a direction": (
        lambda folder: keras.callbacks.EarlyStopping("val_spread"),
        "labels",
        "monitor=val_spread, but Keras isn't able to automatically determine",
    ),
    "a path below a file": (
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "file" / "a.keras"),
        "labels",
        "file' is no folder",
    ),
    "a path that is a folder": (
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "folder.keras"),
        "labels",
        "Expected the path of a file",
    ),
    "a path with epochs below a file": (
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "file" / "{epoch}.keras"),
        "labels",
        "file' is no folder",
    ),
    "HDF5": (
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "a.h5"),
        "labels",
        "filepath of ModelCheckpoint must end in .keras",
    ),
    "a backup in a file": (
        lambda folder: keras.callbacks.BackupAndRestore(folder / "file"),
        "labels",
        "file' is no folder",
    ),
    "logs in a file": (
        lambda folder: keras.callbacks.TensorBoard(folder / "file"),
        "labels",
        "file' is no folder",
    ),
    "averages that the optimizer has not": (
        lambda folder: keras.callbacks.SwapEMAWeights(),
        "labels",
        "SwapEMAWeights needs an optimizer with use_ema=True",
    ),
    "no callback": (
        lambda folder: "EarlyStopping",
        "labels",
        "callbacks must be a keras.callbacks",
    ),
}


@pytest.mark.parametrize(("make", "validation", "message"), REFUSED.values(), ids=REFUSED)
def test_raises_before_training_for_callbacks_that_would_fail(
    base, images, labels, tmp_path, make, validation, message
):
    (tmp_path / "file").touch()
    (tmp_path / "folder.keras").mkdir()
    nern = _model(base, metrics=[keras.metrics.MeanMetricWrapper(lambda y, p: 0.0, "spread")])
    data = {"labels": (images, labels), "images": (images,), "none": None}[validation]
    with pytest.raises((ValueError, OSError), match=message):
        nern.fit(images, verbose=0, validation_data=data, callbacks=[make(tmp_path)])
    assert int(nern.reconstruction_iterations) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.keras"}


def test_a_callback_may_log_values_for_others(base, images):
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mine=1.0))
    stop = keras.callbacks.EarlyStopping("mine", mode="min", patience=0)
    nern = _model(base, reconstruction_steps=1)
    assert len(nern.fit(images, epochs=4, verbose=0, callbacks=[log, stop]).epoch) == 2


def test_metrics_have_the_direction_that_callbacks_look_for(base, images, labels):
    up = ["val_agreement", "val_accuracy", "val_compiled_accuracy"]
    down = ["loss", "relative_error", "feature_map_loss", "val_loss", "val_relative_error"]
    down += ["val_logits_loss", "val_apart"]
    callbacks = [
        (
            keras.callbacks.EarlyStopping(monitor),
            keras.callbacks.ModelCheckpoint("never.keras", monitor=monitor, save_best_only=True),
            keras.callbacks.ReduceLROnPlateau(monitor),
        )
        for monitor in [*up, *down]
    ]
    nern = keras_nern.NeRNModel(base, hidden_size=4, num_layers=2)
    metrics = ["accuracy", keras.metrics.MeanSquaredError("apart")]
    nern.compile(keras.optimizers.SGD(1e-3), reconstruction_steps=0, metrics=metrics)
    validation = (images, np.eye(3)[labels])
    nern.fit(images, epochs=0, verbose=0, validation_data=validation, callbacks=callbacks)
    for three in callbacks:
        rises = three[0].monitor in up
        expected = keras.ops.greater if rises else keras.ops.less
        assert [callback.monitor_op for callback in three] == [expected] * 3
        assert np.sign(three[2].min_delta) == (1 if rises else -1)


def test_model_checkpoint_saves_between_epochs_of_both_phases(base, images, tmp_path):
    watch = keras_nern.callbacks.EvaluateRebuilt(images, frequency=2)
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.keras", monitor="val_agreement", save_best_only=True, save_freq=2
    )
    _model(base).fit(images, batch_size=6, verbose=0, callbacks=[watch, keep])
    assert keep.best == max(result["agreement"] for result in watch.history)
    assert [path.name for path in tmp_path.iterdir()] == ["1.keras"]
