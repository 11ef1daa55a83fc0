"""How much memory something takes at its height, whatever was taken before it."""

import contextlib
import pathlib
import re

STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _kib(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1])


@contextlib.contextmanager
def grows_by_at_most(mib):
    """Asserts it of the resident memory, where the system (Linux) tells."""
    try:
        CLEAR.write_text("5")  # the peak starts anew
    except OSError:
        yield
        return
    before = _kib("VmRSS")
    yield
    grown = (_kib("VmHWM") - before) / 1024
    assert grown <= mib, f"{grown:.0f} MiB"
