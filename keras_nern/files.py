"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(filepath: str | os.PathLike, applies: bool = True) -> Iterator[str | os.PathLike]:
    """A path to write to that takes the place of `filepath` when all is written.

    Until then, and where writing fails, the file that was there stays as it was.

    Args:
        filepath: path of the file, or an address that is no local path, which is
            written to as it stands.
        applies: `False` to write to `filepath` itself. Defaults to `True`.

    Example:

    >>> with whole_file("order.npz") as path:
    ...     np.savez(path, order=np.arange(9))
    """
    if not applies or "://" in str(filepath):
        yield filepath
        return
    final = pathlib.Path(filepath).resolve()  # where a link leads to
    partial = final.with_name(f"partial.{final.name}")
    try:
        yield partial
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
