"""The command: help, exit codes, and the output on stdout and stderr."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from command_line import run
from processes import ROOT

import keras_nern
import keras_nern_command
from keras_nern.cli import commands
from keras_nern.cli.__main__ import main
from keras_nern_command import LEVEL

VERBS = ("fit", "compress", "info", "reconstruct", "evaluate", "export", "importance", "demo")


def test_the_command_runs_without_log_lines_of_tensorflow():
    assert '"keras-nern = keras_nern_command:main"' in (ROOT / "setup.py").read_text()
    environment = {name: value for name, value in os.environ.items() if name != LEVEL}
    done = subprocess.run(
        [sys.executable, "-m", "keras_nern_command", "fti"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: keras-nern")
    assert done.stderr.endswith("Error: No such command 'fti'. Did you mean 'fit'?\n")


def test_the_command_keeps_log_lines_if_the_user_has_set_their_level(monkeypatch):
    monkeypatch.setenv(LEVEL, "0")
    monkeypatch.setattr(sys, "argv", ["keras-nern", "fti"])
    assert keras_nern_command.main() == 2
    assert os.environ[LEVEL] == "0"


def test_what_is_held_back_is_printed_before_an_error(capfd):
    with keras_nern_command._held_back():
        os.write(2, b"a line of TensorFlow")

    def fail():
        os.write(2, b"undefined symbol")
        raise ImportError

    with pytest.raises(ImportError), keras_nern_command._held_back():
        fail()
    os.write(2, b", and more")
    assert capfd.readouterr().err == "undefined symbol, and more"


@pytest.mark.filterwarnings("always:The predictor has")
def test_shows_warnings_without_code(folder, tmp_path):
    # 4 (240 + 3 * 4 + 9) weights and 4 * 4 + 9 biases
    options = ("--hidden-size", 4, "--reconstruction-steps", 1, "--epochs", 0, "--quiet")
    code, out, err = run("fit", folder / "base.keras", tmp_path / "large.keras", *options)
    assert code == 0, err
    assert err.startswith("Warning: The predictor has 1,069 parameters for 324 weights, so the ")
    assert err.count("\n") == 1
    assert out.count("\n") == 1


def test_help_lists_the_verbs():
    code, out, _ = run("--help")
    assert code == 0
    assert set(commands.commands.commands) == set(VERBS)
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line]
    assert sorted(listed) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_use_options_that_exist(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"Usage: keras-nern {verb}" in out
    known = {name for one in commands.commands.commands[verb].params for name in one.opts}
    examples = [line for line in out.splitlines() if f"  keras-nern {verb}" in line]
    assert len(examples) >= 2
    for example in examples:
        options = {word for word in shlex.split(example, comments=True) if word[:2] == "--"}
        assert options <= known, example


def test_options_have_the_defaults_of_the_api(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run("fit", "--help")
    texts = {one.split()[0]: " ".join(one.split()) for one in out.split("\n  --")[1:]}
    assert "[default: auto]" in texts["view"]
    for name in ("experts", "reconstruction-steps"):
        assert "[default: auto]" in texts[name]
    for name in ("hidden-size", "num-layers", "include-dense", "exclude", "size"):
        assert "[default" not in texts[name]


@pytest.mark.parametrize(
    ("error", "message", "in_stderr"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", "Error: ["),
        (AttributeError("a bug"), "AttributeError: a bug", "Traceback"),
    ],
)
def test_a_failure_of_the_work_has_exit_code_1(
    folder, tmp_path, monkeypatch, error, message, in_stderr
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(keras_nern.NeRNModel, "export", fail)
    code, out, err = run("export", folder / "nern.keras", tmp_path / "full.nern", "--json")
    assert code == 1
    assert json.loads(out) == {"error": message, "exit_code": 1}
    assert in_stderr in err


def test_a_fit_that_diverges_fails(folder, tmp_path):
    options = ("--hidden-size", 4, "--reconstruction-steps", 2, "--backup-every", 1, "--quiet")
    images = ("--data", folder / "images.npy", "--scale", 8e37)  # finite, unlike its convolutions
    command = ("fit", folder / "base.keras", tmp_path / "out.keras", *options, *images)
    code, out, err = run(*command, "--json")
    assert code == 1, err
    error = json.loads(out)["error"]
    assert error.startswith(f"The fit diverged and {str(tmp_path / 'out.keras')!r} was not written")
    assert "NaN or infinity in" in error
    assert "of the distillation" in error
    assert not list(tmp_path.iterdir())  # and no backup, which would diverge again


def test_a_fit_that_ends_with_infinite_errors_fails(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(keras_nern.NeRNModel, "relative_error", lambda self: float("inf"))
    options = ("--hidden-size", 4, "--reconstruction-steps", 2, "--epochs", 0, "--quiet")
    code, out, err = run("fit", folder / "base.keras", tmp_path / "out.keras", *options, "--json")
    assert code == 1, err
    assert "a fit that ends with finite weights" in json.loads(out)["error"]
    assert not list(tmp_path.iterdir())


def test_names_the_extra_if_click_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["--help"]) == 2
    assert 'click is not installed: run `pip install "keras-nern[cli]"`' in capsys.readouterr().err


def test_names_the_extra_and_writes_no_scores_if_matplotlib_is_missing(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outputs = ("--scores", tmp_path / "no.npz", "--plot", tmp_path / "no.png")
    code, _, err = run("importance", folder / "nern.keras", *outputs)
    assert code == 2
    assert "keras-nern[plots]" in err
    assert not list(tmp_path.iterdir())


def test_raises_for_a_folder_that_is_not_writable(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, _, err = run("reconstruct", folder / "nern.keras", folder / "closed.keras")
    assert code == 2
    assert "is not writable" in err
