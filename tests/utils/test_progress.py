"""The lines of long work, on a terminal, in a file and in a notebook."""

import itertools
import sys
import types

import pytest

from keras_nern.utils import progress
from keras_nern.utils.progress import Part, Progress, Screen, format_line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            (Part("", 120, 600), "1:38 left", {"loss": 0.03125, "relative_error": 2e-6}),
            "120/600 [===............] 1:38 left - loss: 0.03125 - relative_error: 2.000e-06",
        ),
        (
            (Part("Epoch 2/10: ", 7, 10), "3s left", {}),
            "Epoch 2/10:  7/10 [==============......] 3s left",
        ),
        ((Part("", 7, None), "3s", {"loss": float("nan")}), "7 3s - loss: nan"),
    ],
)
def test_a_line_shows_steps_time_and_values(arguments, line):
    assert format_line(*arguments, with_bar=True) == line


def test_a_line_has_at_most_79_columns():
    names = ["loss", "val_agreement", "val_accuracy", "feature_map_loss", "relative_error"]
    for count in range(len(names)):
        values = {name: 0.123456 for name in names[:count]}
        line = format_line(Part("Epoch 12/20: ", 30, 1563), "12:05 left", values, with_bar=True)
        assert len(line) <= 79
        assert ("[" in line) == (count < 2)
    assert "loss: 0.1235 - val_agreement: 0.1235" in line  # the first ones are kept
    short = format_line(Part("", 1, 9), "1s", {"a_name_of_sixty_letters" * 4: 1.0, "loss": 2.0})
    assert short == "1/9 1s - loss: 2.000"  # what fits follows what does not


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.6, "5s"), (65, "1:05"), (3600, "1:00:00"), (36_061, "10:01:01")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text


class _Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: self.now))


def _run(clock, steps, seconds, **arguments):
    work = Progress(steps, **arguments)
    for step in range(1, steps + 1):
        clock.now += seconds
        work.update(step, {"loss": 1 / step})
    work.end(steps, {"loss": 1 / steps})


def test_a_file_gets_few_lines_at_growing_intervals(monkeypatch, capsys):
    _run(_Clock(monkeypatch), 10_000, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "   10/10000 1:23:15 left - loss: 0.1000"  # after 5 s
    seconds = [int(line.split("/")[0]) / 2 for line in lines]
    assert all(b >= 1.3 * a or b == 5000 for a, b in itertools.pairwise(seconds))
    assert len(lines) == 25
    assert lines[-1] == "10000/10000 1:23:20 500ms/step - loss: 0.0001000"


def test_short_work_has_one_line(monkeypatch, capsys):
    _run(_Clock(monkeypatch), 4, 1.0, unit="image")
    assert capsys.readouterr().out == "4/4 4s 1s/image - loss: 0.2500\n"
    _run(_Clock(monkeypatch), 10_000, 0.5, verbose=2)
    assert capsys.readouterr().out == "10000/10000 1:23:20 500ms/step - loss: 0.0001000\n"


def test_the_first_step_does_not_count_for_the_time_left(monkeypatch, capsys):
    clock = _Clock(monkeypatch)
    work = Progress(101)
    clock.now = 60.0  # of tracing
    work.is_due(1)
    clock.now = 160.0
    work.update(51)
    assert capsys.readouterr().out == " 51/101 1:40 left\n"


def test_steps_that_were_done_before_do_not_count(monkeypatch, capsys):
    clock = _Clock(monkeypatch)
    work = Progress(100, done=90)
    clock.now = 5.0
    work.end(100)
    assert capsys.readouterr().out == "100/100 5s 500ms/step\n"


def test_a_terminal_shows_one_line_that_changes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _run(_Clock(monkeypatch), 3, 1.0)
    first, second, third, last = capsys.readouterr().out[1:].split("\r")
    assert first == "1/3 [======..............] 1s - loss: 1.000"
    assert second.startswith("2/3 [=============.......] 1s left - loss: 0.5")
    assert third.startswith("3/3 [====================] 0s left")
    assert last == "3/3 [====================] 3s 1s/step - loss: 0.3333\n"


def test_a_shorter_line_covers_the_one_before(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = Screen()
    screen.show("abcdef")
    screen.show("xyz")
    screen.close()
    screen.close()  # there is no open line
    assert capsys.readouterr().out == "\rabcdef\rxyz   \n"


def test_a_notebook_has_one_output_that_changes(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        assert raw is display_id is True
        shown.append(data["text/plain"])
        return Handle()

    stream = type("OutStream", (), {"__module__": "ipykernel.iostream"})()
    fake = types.SimpleNamespace(display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(sys, "stdout", stream)
    screen = Screen()
    assert screen.is_live
    for line in ("Reconstruction", "Distillation"):
        screen.show("...")
        screen.end(line)
    assert shown == [
        "...",
        "Reconstruction",
        "Reconstruction\n...",
        "Reconstruction\nDistillation",
    ]
