"""The peak of the process's memory, as Linux measures it."""

import contextlib
import pathlib
import re

STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _kib(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1])


@contextlib.contextmanager
def grows_by_at_most(mib):
    """Asserts that the resident memory grows by at most `mib` MiB at any time within the block.

    Memory that an allocator has kept is reused without growth. On systems that do not measure
    peaks, nothing is asserted.
    """
    try:
        CLEAR.write_text("5")  # sets the peak to the current value
    except OSError:
        yield
        return
    before = _kib("VmRSS")
    yield
    growth = (_kib("VmHWM") - before) / 1024
    assert growth <= mib, f"memory grew by {growth:.0f} MiB"
