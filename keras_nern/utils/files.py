"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
import zipfile
import zlib
from collections.abc import Iterator

from keras_nern.utils.types import Path

# Errors that zipfile, zlib, json and NumPy raise for a damaged file or another kind of file.
DAMAGED = (
    *(ValueError, KeyError, IndexError, TypeError, EOFError, OSError, OverflowError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def atomic_write(filepath: Path, applies: bool = True) -> Iterator[Path]:
    """Provides a temporary path that replaces `filepath` when the block ends without an error.

    The temporary file is in the same folder and has a unique name with the same suffix. The
    previous file is unchanged until it is replaced, and if writing fails. If the process is
    killed, the temporary file remains.

    Args:
        filepath: path of the file. An address that is not a local path (`gs://...`) is written
            to directly.
        applies: `False` to write to `filepath` directly. Defaults to `True`.

    Yields:
        The path to write to.

    Raises:
        OSError: as `check_writable` does.

    Example:

    >>> with atomic_write("order.npz") as path:
    ...     np.savez(path, order=np.arange(9))
    """
    if not applies or "://" in str(filepath):
        yield filepath
        return
    final = check_writable(filepath)
    partial = final.with_name(f"partial.{secrets.token_hex(4)}.{final.name}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file at `final`
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(filepath: Path) -> pathlib.Path:
    """Checks that a file can be written at a path, before its content is computed.

    Args:
        filepath: the path.

    Returns:
        The absolute path with links resolved.

    Raises:
        OSError: if the folder does not exist, or if the path is a folder, a device or a pipe.

    Example:

    >>> path = check_writable("order.npz")
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


def check_creatable(path: Path, is_folder: bool) -> None:
    """Checks that a file or folder can be created at a path, with the folders that it lies in.

    Args:
        path: the path, or an address that is not a local path (`gs://...`), which is not checked.
        is_folder: whether a folder is meant; one that exists is allowed.

    Raises:
        OSError: if something else is in the way, or if a folder is not writable.
    """
    if "://" in str(path):
        return
    final = pathlib.Path(path).absolute()
    if final.is_dir() and not is_folder:
        raise IsADirectoryError(errno.EISDIR, "Expected the path of a file", str(path))
    existing = next(one for one in (final, *final.parents) if one.exists())
    if existing.is_dir():
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Expected a folder that is writable", str(path))
    elif is_folder or existing != final:
        raise NotADirectoryError(errno.ENOTDIR, f"{str(existing)!r} is no folder", str(path))
