"""The command `keras-nern`, without TensorFlow's log lines.

TensorFlow prints some lines when it is imported, before any setting of its log level has an effect.
Importing any part of `keras_nern` imports TensorFlow, so this module is not a part of it.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def main() -> int:
    """Runs the command.

    Returns:
        The exit code; see `keras_nern.cli.__main__`.
    """
    if LEVEL in os.environ:
        from keras_nern.cli.__main__ import main as run
    else:
        os.environ[LEVEL] = "3"
        logging.getLogger("absl").setLevel(logging.ERROR)
        with _held_back():
            from keras_nern.cli.__main__ import main as run
    return run()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Holds back what this process writes to stderr, and prints it if an exception is raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    sys.exit(main())
