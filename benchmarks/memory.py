"""The memory of this process, for the benchmarks; Linux."""

import pathlib
import resource


def resident_mb():
    """Megabytes in memory now."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def peak_mb():
    """The most megabytes that were ever in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
