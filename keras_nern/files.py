"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(filepath: str | os.PathLike, applies: bool = True) -> Iterator[str | os.PathLike]:
    """A path to write to that takes the place of `filepath` when all is written.

    Until then, and where writing fails, the file that was there stays as it was. The path is
    in the same folder and ends in the same name; no other writer has it. Where the process
    is killed, what it had written stays behind under that name.

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
    partial = final.with_name(f"partial.{secrets.token_hex(4)}.{final.name}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name without content
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
