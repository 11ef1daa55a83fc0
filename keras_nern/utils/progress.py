"""The progress of long work, on lines of at most `WIDTH` columns.

A line tells how much is done, how long the rest will take, and the current values:

    1200/6000 [===............] 1:38 left - loss: 0.03125 - relative_error: 0.04107

A terminal and a notebook show one line, which changes in place. Elsewhere, as in a file or a pipe,
lines are printed at growing intervals: the first after `PAUSE` seconds, the next ones when the work
has taken `GROWTH` times as long. Hours of work thereby have about thirty lines.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

WIDTH = 79
REFRESH = 0.3  # seconds between changes of a line in place
PAUSE = 5.0  # seconds between lines that are printed
GROWTH = 1.3
BAR = 20  # largest width of a bar


class Screen:
    """Standard output, whose last line can be replaced if it is a terminal or a notebook.

    Attributes:
        is_live: whether lines can be replaced.
    """

    def __init__(self) -> None:
        self._in_notebook = type(sys.stdout).__module__.startswith("ipykernel.")
        is_terminal = hasattr(sys.stdout, "isatty") and sys.stdout.isatty()
        self.is_live = self._in_notebook or is_terminal
        self._open = ""  # the line that can be replaced
        self._finished: list[str] = []  # lines above it, in a notebook
        self._output: Any = None  # IPython's handle of the notebook's output

    def show(self, line: str) -> None:
        """Shows a line in place of the open one, and keeps it open."""
        if self._in_notebook:
            self._display("\n".join([*self._finished, line]))
        elif self.is_live:
            print("\r" + line.ljust(len(self._open)), end="", flush=True)
        else:
            print(line, flush=True)
        self._open = line

    def end(self, line: str) -> None:
        """Shows a line in place of the open one, and ends it."""
        self.show(line)
        self._finished.append(line)
        self.close()

    def close(self) -> None:
        """Ends the open line, if there is one."""
        if self._open and self.is_live and not self._in_notebook:
            print(flush=True)
        self._open = ""

    def _display(self, text: str) -> None:
        from IPython import display  # a notebook has it

        data = {"text/plain": text}
        if self._output is None:
            self._output = display.display(data, raw=True, display_id=True)
        else:
            self._output.update(data, raw=True)


class Part(NamedTuple):
    """A part of some work whose steps a line counts, such as an epoch."""

    title: str
    done: int
    total: int | None


class Progress:
    """The progress of one long work.

    Args:
        total: number of steps; `None` if unknown.
        unit: name of a step. Defaults to `"step"`.
        verbose: 1 to show lines while the work is done, 2 for lines of what has ended only.
            Defaults to `1`.
        screen: where to show lines; `None` for a new `Screen`. Defaults to `None`.
        done: number of steps that were done before. Defaults to `0`.

    Example:

    >>> progress = Progress(total=3, unit="layer")
    >>> for layer in range(3):
    ...     progress.update(layer + 1)
    >>> progress.end(3)
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "step",
        verbose: int = 1,
        screen: Screen | None = None,
        done: int = 0,
    ) -> None:
        self.screen = Screen() if screen is None else screen
        self._total = total
        self._unit = unit
        self._verbose = verbose
        self._start = self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None  # steps at the first call, and its time
        self._ended = done, self._start  # steps and time at the end of the last part

    def is_due(self, done: int) -> bool:
        """Whether `update` would show a line; called often, it makes the time left precise."""
        now = time.monotonic()
        if (
            self._first is None and done > self._ended[0]
        ):  # the first step, which TensorFlow traces, is not typical
            self._first = done, now
        if self._verbose != 1:
            return False
        printed = max(PAUSE, (now - self._start) * (1 - 1 / GROWTH))
        return now - self._shown >= (REFRESH if self.screen.is_live else printed)

    def update(
        self, done: int, values: Mapping[str, float] | None = None, part: Part | None = None
    ) -> None:
        """Shows a line if it is time.

        Args:
            done: number of steps that are done.
            values: dict from names to numbers, the most important first; those that do not fit
                are left out. Defaults to `None`.
            part: the part of the work to count, `None` for the whole. Defaults to `None`.
        """
        if not self.is_due(done):
            return
        left, now = self._left(done), time.monotonic()
        self._shown = now
        note = f"{_duration(now - self._start)}" if left is None else f"{_duration(left)} left"
        part = Part("", done, self._total) if part is None else part
        self.screen.show(format_line(part, note, values or {}, with_bar=self.screen.is_live))

    def end(
        self, done: int, values: Mapping[str, float] | None = None, part: Part | None = None
    ) -> None:
        """Shows the line of the whole work, or of a part, that has ended.

        Args:
            done, values, part: as for `update`.
        """
        before, since = self._ended
        now = self._shown = time.monotonic()
        self._ended = done, now
        note = f"{_duration(now - since)} {_per_step((now - since) / max(1, done - before))}"
        part = Part("", done, self._total) if part is None else part
        live = self.screen.is_live and self._verbose == 1
        self.screen.end(format_line(part, f"{note}/{self._unit}", values or {}, with_bar=live))

    def _left(self, done: int) -> float | None:
        """Seconds until the end of the work; `None` if they cannot be estimated."""
        if self._total is None or self._first is None or done <= self._first[0]:
            return None
        first, since = self._first
        return (self._total - done) * (time.monotonic() - since) / (done - first)


def level_of(verbose: int | str) -> int:
    """The number that an argument `verbose` of Keras stands for."""
    return 1 if verbose == "auto" else int(verbose)


def format_line(part: Part, note: str, values: Mapping[str, float], with_bar: bool = False) -> str:
    """One line of at most `WIDTH` columns.

    Args:
        part: what to count.
        note: the time.
        values: dict from names to numbers; those that do not fit are left out.
        with_bar: whether to fill free columns with a bar. Defaults to `False`.
    """
    title, done, total = part
    start = f"{title}{done}" if total is None else f"{title}{done:{len(str(total))}}/{total}"
    end = f" {note}"
    for name, value in values.items():
        text = f" - {name}: {value:#.4g}"  # of constant width
        if len(start) + len(end) + len(text) <= WIDTH:
            end += text
    room = min(BAR, WIDTH - len(start) - len(end) - len(" []"))
    if with_bar and total and room >= 5:
        filled = min(room, room * done // total)
        start += f" [{'=' * filled}{'.' * (room - filled)}]"
    return start + end


def _duration(seconds: float) -> str:
    """Seconds as `5s`, `1:05` or `1:00:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"


def _per_step(seconds: float) -> str:
    """Seconds as `2s`, `20ms` or `200us`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1e6:.0f}us"
