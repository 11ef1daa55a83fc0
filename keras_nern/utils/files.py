"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_write(filepath: str | os.PathLike, applies: bool = True) -> Iterator[str | os.PathLike]:
    """A path to write to that takes the place of `filepath` when all is written.

    Until then, and where writing fails, the file that was there stays as it was. The path is
    in the same folder and ends in the same name; no other writer has it. Where the process
    is killed, what it had written stays behind under that name.

    Args:
        filepath: path of the file, or an address that is no local path, which is
            written to as it stands.
        applies: `False` to write to `filepath` itself. Defaults to `True`.

    Raises:
        OSError: as `writable` does.

    Example:

    >>> with atomic_write("order.npz") as path:
    ...     np.savez(path, order=np.arange(9))
    """
    if not applies or "://" in str(filepath):
        yield filepath
        return
    final = writable(filepath)
    partial = final.with_name(f"partial.{secrets.token_hex(4)}.{final.name}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name without content
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def writable(filepath: str | os.PathLike) -> pathlib.Path:
    """Sees whether a file can be written at a path.

    Args:
        filepath: the path.

    Returns:
        A `pathlib.Path`: where that file would be, links followed.

    Raises:
        OSError: where its folder is not there, or something that is no file is in its place: a
            folder, or a device, which a new file would take the place of.

    Example:

    >>> place = writable("order.npz")
    """
    final = pathlib.Path(filepath).resolve()
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Expected the path of a file", str(filepath))
    if not final.parent.is_dir():
        message = "Expected a path in a folder that exists"
        raise FileNotFoundError(errno.ENOENT, message, str(filepath))
    if final.exists() and not final.is_file():
        message = "Expected the path of a file, not of a device or pipe"
        raise FileExistsError(errno.EEXIST, message, str(filepath))
    return final
