"""Signals stop a fit with a correct message, and --resume ends with the same weights."""

import json
import os
import shlex
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from command_line import assert_same, kernels, run
from processes import ROOT

import keras_nern
from keras_nern.cli import runners
from keras_nern.cli.runners import StoppableBackup, Stopped
from keras_nern.training import settings
from keras_nern.utils.files import atomic_write

STEPS = 4


class Fit:
    """Calls a callback as a fit of four steps does, and sends signals at given moments.

    A backup is a file that holds the number of its step.
    """

    phase, reconstruction_steps = "reconstruction", STEPS
    built, optimizer = True, None

    def __init__(self, folder, signals=(), save_freq=3):
        self.callback = StoppableBackup(folder, save_freq, "keras-nern fit --resume", False)
        self.callback.set_model(self)
        self.signals = signals
        self.moments = 0
        self.step = 0

    def moment(self):
        self.moments += 1
        if self.moments in self.signals:
            self.callback.on_signal(signal.SIGTERM, None)

    @property
    def phase_iterations(self):
        self.moment()  # between the backup and the message that names its step
        return np.int64(self.step)

    def save_weights(self, filepath, overwrite):
        self.moment()
        with atomic_write(filepath) as path:
            path.write_text(str(self.step))
            self.moment()
        self.moment()

    def run(self):
        self.moment()
        self.callback.on_train_begin()
        for self.step in range(1, STEPS + 1):
            self.moment()
            self.callback.on_train_batch_begin(self.step - 1)
            self.moment()
            self.callback.on_train_batch_end(self.step - 1)
        self.moment()
        self.callback.on_train_end()
        self.moment()


def _opened(folder, *arguments, **options):
    fit = Fit(folder, *arguments, **options)
    fit.callback.is_own = True
    folder.mkdir()
    return fit


def test_messages_name_the_step_that_the_backup_contains(tmp_path):
    undisturbed = _opened(tmp_path / "undisturbed")
    undisturbed.run()
    told = set()
    for first in range(1, undisturbed.moments + 10):
        for second in [None, *range(first + 1, first + 8)]:
            folder = tmp_path / f"{first}-{second}"
            fit = _opened(folder, {first, second})
            weights = folder / "latest.weights.h5"
            stopped = _run(fit)
            if stopped is None:
                assert fit.step == STEPS
                continue
            text = str(stopped)
            assert stopped.code == 143
            assert (stopped.resume is not None) == weights.exists(), text
            if stopped.resume is None:
                assert text == "Stopped without a backup."
            elif "Backed up at" in text:
                assert f"Backed up at reconstruction step {weights.read_text()} of 4 in" in text
                assert fit.step == int(weights.read_text())
            else:
                assert f"The last backup is in {folder}; continue with\n  keras-nern" in text
            told.add(text.split(" of ")[0].split(" in ")[0])
    assert told == {
        "Stopped without a backup.",
        "Stopped. The last backup is",
        *(f"Stopped. Backed up at reconstruction step {step}" for step in range(1, STEPS + 1)),
    }


def _run(fit):
    try:
        fit.run()
    except Stopped as error:
        return error
    return None


def test_a_backup_of_another_fit_is_not_claimed(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "latest.weights.h5").write_text("7")
    fit = Fit(folder, {1})
    with pytest.raises(Stopped, match=r"^Stopped without a backup\.$"):
        fit.run()


def test_a_signal_during_a_print_does_not_raise(tmp_path, monkeypatch):
    class Busy:
        def write(self, text):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    fit = _opened(tmp_path / "backup", {3})
    monkeypatch.setattr(sys, "stderr", Busy())
    with pytest.raises(Stopped, match="Backed up at reconstruction step 1"):
        fit.run()


def _raise_signal_at(monkeypatch, number, step):
    """Raises a signal in the callbacks of a step, after the backup of that step."""
    original, calls = keras.callbacks.BackupAndRestore.on_train_batch_end, []

    def on_train_batch_end(self, batch, logs=None):
        original(self, batch, logs)
        calls.append(batch)
        if len(calls) == step:
            signal.raise_signal(number)

    monkeypatch.setattr(keras.callbacks.BackupAndRestore, "on_train_batch_end", on_train_batch_end)


LOCAL = ("--experts", 3, "--hidden-size", 4, "--num-layers", 3)
COMMANDS = {
    "fit": ("base.keras", (*LOCAL, "--epochs", 0)),
    "compress": ("nern.keras", ("--bits", 5, "--batch-size", 4, "--epochs", 2)),
}


@pytest.mark.parametrize(
    ("verb", "number", "phase"),
    [
        ("fit", signal.SIGINT, "reconstruction"),
        ("compress", signal.SIGTERM, "distillation"),
    ],
)
def test_a_resumed_fit_ends_with_the_same_weights(
    folder, tmp_path, monkeypatch, verb, number, phase
):
    monkeypatch.setattr(settings, "EPOCHS", {False: 6, True: 6})  # of the automatic steps
    source, options = COMMANDS[verb]
    options = (*options, "--data", folder / "images.npz", "--seed", 5, "--backup-every", 5)

    def command(output):
        return [str(one) for one in (verb, folder / source, tmp_path / output, *options)]

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    backup = tmp_path / "stopped.keras.backup"
    with monkeypatch.context() as patch:
        _raise_signal_at(patch, number, 3)
        code, out, err = run(*command("stopped.keras"), "--json")
    assert code == 128 + number, err
    document = json.loads(out)
    assert document["exit_code"] == 128 + number
    assert f"  {document['resume']}\n" in err
    # the signal came when the third step had passed its backup
    assert f"Backed up at {phase} step 4 of 6 in {backup}; continue with" in document["error"]
    assert not (tmp_path / "stopped.keras").exists()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers

    code, _, err = run(*command("stopped.keras"))
    assert code == 2
    assert "holds the backup of a stopped fit: continue it with --resume" in err
    code, _, err = run(*command("stopped.keras"), "--resume", "--seed", 6)
    assert code == 2
    assert "Received: other ones (seed=5, now 6)" in " ".join(err.split())

    name, *resume = shlex.split(document["resume"])
    assert (name, resume) == ("keras-nern", [*command("stopped.keras"), "--json", "--resume"])
    with monkeypatch.context() as patch:
        _raise_signal_at_save(patch, number)
        code, _, err = run(*resume)
    assert code == 0, err
    assert "The fit is done and is being saved." in err
    if phase == "reconstruction":  # whose steps count from the start of the stopped fit
        assert "6/6 " in err
        assert "2/2 " not in err
    assert not backup.exists()
    assert run(*command("undisturbed.keras"))[0] == 0
    assert_same(kernels(tmp_path / "stopped.keras"), kernels(tmp_path / "undisturbed.keras"))


def _raise_signal_at_save(monkeypatch, number):
    original = keras_nern.NeRNModel.save

    def save(*arguments, **options):
        for _ in range(2):
            signal.raise_signal(number)
        original(*arguments, **options)

    monkeypatch.setattr(keras_nern.NeRNModel, "save", save)


def test_a_fit_that_cannot_be_saved_keeps_its_backup(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras_nern.NeRNModel, "save", full)
    small = ("--hidden-size", 4, "--reconstruction-steps", 2, "--epochs", 0, "--quiet")
    command = ("fit", folder / "base.keras", tmp_path / "out.keras", *small)
    assert run(*command, "--backup-every", 2)[0] == 1
    names = [path.name for path in (tmp_path / "out.keras.backup").iterdir()]
    assert {"settings.json", "latest.weights.h5"} <= set(names)


def test_a_signal_before_the_fit_stops_at_once_and_changes_no_file(folder, tmp_path, monkeypatch):
    def stop(self, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(keras_nern.NeRNModel, "compile", stop)
    output, backup = tmp_path / "out.keras", tmp_path / "out.keras.backup"
    backup.mkdir()
    for name in ("settings.json", "latest.weights.h5"):  # of a fit with other options
        (backup / name).write_text("{}")
    code, out, _ = run("fit", folder / "base.keras", output, "--epochs", 0, "--force", "--json")
    assert code == 143
    assert json.loads(out) == {"error": "Stopped without a backup.", "exit_code": 143}
    assert len(list(backup.iterdir())) == 2
    assert not output.exists()


def test_a_signal_while_resuming_names_the_last_backup(folder, tmp_path, monkeypatch):
    def stop(self, **options):
        signal.raise_signal(signal.SIGINT)

    command = [str(one) for one in ("fit", folder / "base.keras", tmp_path / "out.keras")]
    monkeypatch.setattr(runners, "_check_resumed", lambda options: None)
    monkeypatch.setattr(keras_nern.NeRNModel, "compile", stop)
    backup = tmp_path / "out.keras.backup"
    backup.mkdir()
    for name in ("settings.json", "latest.weights.h5"):
        (backup / name).write_text("{}")
    code, out, _ = run(*command, "--epochs", 0, "--resume", "--json")
    assert code == 130
    document = json.loads(out)
    assert document["error"].startswith(f"Stopped. The last backup is in {backup}; continue")
    assert shlex.split(document["resume"])[1:] == [*command, "--epochs", "0", "--resume", "--json"]


def test_a_folder_of_a_fit_killed_at_once_is_replaced(folder, tmp_path):
    small = ("--hidden-size", 4, "--reconstruction-steps", 2, "--epochs", 0, "--quiet")
    backup = tmp_path / "out.keras.backup"
    backup.mkdir()
    (backup / "partial.0123.settings.json").write_text("{")
    code, _, err = run("fit", folder / "base.keras", tmp_path / "out.keras", *small)
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["out.keras"]


def test_raises_for_resuming_with_another_file_of_the_same_name(folder, tmp_path):
    backup = tmp_path / "out.keras.backup"
    backup.mkdir()
    (backup / "settings.json").write_text(json.dumps({"content": "0" * 64}))
    (backup / "latest.weights.h5").write_text("")
    command = ("fit", folder / "base.keras", tmp_path / "out.keras", "--epochs", 0, "--resume")
    code, _, err = run(*command)
    assert code == 2
    assert f"content='{'0' * 64}', now '" in "".join(err.split("\n"))


def test_ctrl_c_stops_a_process(folder, tmp_path):
    output = tmp_path / "out.keras"
    options = ("--hidden-size", 8, "--reconstruction-steps", 10**6, "--json")
    command = ("fit", folder / "base.keras", output, "--data", folder / "images.npz", *options)
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_nern.cli", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = next((line for line in process.stderr if "Reconstruction" in line), None)
        assert line is not None, "the fit has not begun"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    base = keras.models.load_model(folder / "base.keras")
    nern = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    nern.optimizer.build(nern.trainable_variables)
    nern.load_weights(tmp_path / "out.keras.backup" / "latest.weights.h5")
    step = int(nern.phase_iterations)
    text = f"Backed up at reconstruction step {step:,} of 1,000,000 in"
    assert text in json.loads(out)["error"]
