"""What a fit shows and records while it runs."""

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.training import fit_callbacks
from keras_nern.training.fit_progress import MovingMeans
from keras_nern.utils import progress


@pytest.fixture(autouse=True)
def _without_running_lines(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 1e9)  # of a slow machine


def _moving_mean(values):
    weights = 0.98 ** np.arange(len(values))[::-1]
    return np.sum(weights * values) / np.sum(weights)


def test_moving_means_follow_the_formula():
    means, losses = MovingMeans(), np.random.default_rng(0).uniform(1, 2, 120)
    assert means.read("curvature") == {}
    for loss in losses:
        means.update({"loss": loss, "curvature_loss": loss, "relative_error": 2 * loss})
    expected = _moving_mean(losses)
    found = means.read("curvature")
    assert list(found) == ["loss", "curvature_loss", "relative_error"]
    assert found["loss"] == found["curvature_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["relative_error"] == pytest.approx(2 * expected, rel=1e-5)
    means.reset()
    means.update({"loss": 7.0})
    assert means.read("reconstruction")["loss"] == 7.0


class _Steps(keras.callbacks.Callback):
    """Records the logs of each step, by phase."""

    def __init__(self):
        super().__init__()
        self.logs = {"reconstruction": [], "curvature": [], "distillation": []}

    def on_train_batch_end(self, batch, logs=None):
        self.logs[self.model.phase].append(dict(logs))


def _model(base, **settings):
    nern = keras_nern.NeRNModel(base, hidden_size=8, **settings.pop("model", {}))
    nern.compile(**{"reconstruction_steps": 5, **settings})
    return nern


def test_the_curve_holds_moving_means_and_ends_with_the_error_of_all_kernels(
    base, images, monkeypatch
):
    monkeypatch.setattr(fit_callbacks, "POINTS", 4)
    steps = _Steps()
    nern = _model(base, reconstruction_steps=11, curvature_steps=3)
    before = nern.relative_error()
    history = nern.fit(images, epochs=0, verbose=0, callbacks=[steps])
    assert history.steps["reconstruction"] == [3, 6, 9, 11]
    assert history.steps["curvature"] == [1, 2, 3]
    curve = history.reconstruction
    assert curve["loss"] == curve["reconstruction_loss"]
    for step, loss in zip(history.steps["reconstruction"], curve["loss"], strict=True):
        assert loss == pytest.approx(steps.logs["reconstruction"][step - 1]["loss"])
    assert curve["relative_error"][0] == pytest.approx(before, rel=0.1)
    assert history.curvature["relative_error"][-1] == nern.relative_error()
    assert history.history == {}


def test_the_logs_of_a_step_are_moving_means_before_the_epochs_and_means_within(base, images):
    """At a rate of 0, each step has the same loss, which is multiplied by the step's number."""
    nern = _model(base, optimizer=keras.optimizers.SGD(0.0), reconstruction_steps=3)
    loss = nern.evaluate(images, verbose=0, return_dict=True)["reconstruction_loss"]

    class Scale(keras.callbacks.Callback):
        step = 0

        def on_train_batch_begin(self, batch, logs=None):
            self.step += 1
            self.model.scale_losses(
                reconstruction_loss=self.step, logits_loss=0.0, feature_map_loss=0.0
            )

    steps = _Steps()
    history = nern.fit(images, batch_size=4, verbose=0, callbacks=[Scale(), steps])
    found = [logs["loss"] for logs in steps.logs["reconstruction"]]
    expected = [_moving_mean(loss * np.arange(1, n + 1)) for n in (1, 2, 3)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert history.reconstruction["loss"] == pytest.approx(expected, rel=1e-4)
    found = [logs["loss"] for logs in steps.logs["distillation"]]
    assert found == pytest.approx([4 * loss, 4.5 * loss, 5 * loss], rel=1e-4)
    assert history.history["loss"] == pytest.approx([5 * loss], rel=1e-4)
    assert history.steps["distillation"] == [3]


def test_the_error_of_draws_counts_all_kernels_equally(base):
    """Runs have equally many draws, so that the blocks of short runs are drawn more often."""
    nern = keras_nern.NeRNModel(base, hidden_size=8, experts=3)
    lengths = nern.predictor.run_lengths
    assert len(set(lengths)) > 1
    every = keras_nern.AllKernels()

    class EachOften(keras_nern.AllKernels):
        """Draws each block of a run of length L `lcm / L` times."""

        def sample(self, count, seed, cumulative=None, runs=None):
            number, length = np.lcm.reduce(runs), count // len(runs)
            slots = [i * length + np.arange(number) % run for i, run in enumerate(runs)]
            return keras.ops.convert_to_tensor(np.concatenate(slots).astype("int32"))

    errors = []
    for sampling in (every, EachOften()):
        nern.compile(keras.optimizers.SGD(0.0), kernel_sampling=sampling, reconstruction_steps=1)
        errors.append(nern.fit(steps_per_epoch=1, verbose=0).history["relative_error"][0])
    assert errors[0] == pytest.approx(nern.relative_error(), rel=1e-5)
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


@pytest.mark.parametrize("verbose", ["auto", 2])
def test_a_fit_shows_its_phases_and_epochs(base, images, labels, capsys, verbose):
    watch = keras_nern.callbacks.EvaluateRebuilt(images, labels, frequency=2)
    nern = _model(base, curvature_steps=3)
    history = nern.fit(images, epochs=2, batch_size=6, verbose=verbose, callbacks=[watch])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79
    assert lines[0] == "Curvature of the losses, from up to 512 images:"
    assert lines[1].startswith("12/12 ")
    assert lines[2] == "Reconstruction, 5 steps without images:"
    assert lines[4] == "Curvature, 3 steps without images:"
    assert lines[6] == "Distillation:"
    assert len(lines) == 9
    agreement = watch.history[-1]["agreement"]
    for line, phase in ((lines[3], "reconstruction"), (lines[5], "curvature")):
        curve = getattr(history, phase)
        assert f"/step - loss: {curve['loss'][-1]:#.4g}" in line
        assert f" - relative_error: {curve['relative_error'][-1]:#.4g}" in line
        assert f"{phase}_loss" not in line
    assert lines[3].startswith("5/5 ")
    assert lines[7].startswith("Epoch 1/2: 2/2 ")
    assert lines[8].startswith("Epoch 2/2: 2/2 ")
    assert f" - val_agreement: {agreement:#.4g}" in lines[8]


def test_a_fit_of_verbose_0_shows_nothing(base, images, capsys):
    _model(base, curvature_steps=1).fit(images, verbose=0)
    assert capsys.readouterr().out == ""


def test_a_progress_bar_of_keras_shows_the_epochs(base, images, capsys):
    nern = _model(base)
    nern.fit(images, epochs=2, verbose=1, callbacks=[keras.callbacks.ProgbarLogger()])
    out = capsys.readouterr().out
    assert out.startswith("Reconstruction, 5 steps without images:\n5/5 ")
    assert out.count("Epoch 1/2") == out.count("Epoch 2/2") == 1
    assert "Epoch 1/2:" not in out


def test_gather_curvature_shows_its_progress(base, images, capsys):
    nern = _model(base)
    nern.gather_curvature(images, images=12, batch_size=4)
    title, line = capsys.readouterr().out.splitlines()
    assert title == "Curvature of the losses, from up to 12 images:"
    assert line.startswith("12/12 ")
    nern.gather_curvature(images, images=12, batch_size=4, verbose=0)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"verbose must be one of .*Received: verbose=3"):
        nern.gather_curvature(images, verbose=3)


def test_only_callbacks_that_look_at_steps_wait_for_them(base, images, monkeypatch):
    read = []
    original = keras.callbacks.CallbackList._on_train_batch_end

    def look(self, batch, logs=None):
        read.append(batch)
        original(self, batch, logs)

    monkeypatch.setattr(keras.callbacks.CallbackList, "_on_train_batch_end", look)
    stop = keras.callbacks.EarlyStopping("loss")
    _model(base).fit(images, batch_size=6, verbose=0, callbacks=[stop])
    assert read == []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)
    _model(base).fit(images, batch_size=6, verbose=0, callbacks=[watch])
    assert read == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("verbose", ["auto", 2])
def test_evaluate_shows_its_results(base, images, labels, capsys, verbose):
    nern = _model(base, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")])
    results = nern.evaluate(images, labels, 5, verbose=verbose, return_dict=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= 79
    assert line.startswith("3/3 ")
    shown = [f"{name}: {results[name]:#.4g}" for name in ("agreement", "accuracy", "top2")]
    assert line.split(" - ", 1)[1] == " - ".join(shown)
    nern.evaluate(images, verbose=0)
    assert capsys.readouterr().out == ""
    nern.evaluate(images, callbacks=[keras.callbacks.ProgbarLogger()])
    assert "feature_map_loss" in capsys.readouterr().out
