"""The time of training steps and the memory of this process (Linux)."""

import itertools
import pathlib
import resource
import time

import keras


def step_seconds(nern, **fit_arguments):
    """Fits a `NeRNModel` and times its training steps.

    Args:
        nern: a compiled `NeRNModel`.
        **fit_arguments: arguments of `NeRNModel.fit`.

    Returns:
        A list of the seconds of every step, except the first, which traces the graph.
    """
    ends = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    nern.fit(verbose=0, callbacks=[record], **fit_arguments)
    return [end - start for start, end in itertools.pairwise(ends)]


def resident_mb():
    """Megabytes of resident memory now."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def peak_mb():
    """Megabytes of resident memory at the peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
