"""One file of named parts, with a hash: the outer layer of the compact file.

    [ length n of the header: 8 bytes ][ header: n bytes of JSON ][ the parts ]

This is a safetensors file (https://github.com/huggingface/safetensors), all of whose tensors
are one-dimensional and of unsigned bytes. The last of them, `sha256`, is the SHA-256 of all
bytes of the file before it. What the parts hold is in `coding` and `artifact`, and byte for
byte in docs/format.md.

A file comes from anywhere. Its header is read only up to a length that no file of ours has,
its parts only where the header accounts for every byte of the file, and their content is
given out only where the hash is right.
"""

import hashlib
import importlib
import json
import os
import types
import typing
from typing import Any

import numpy as np

from keras_nern.utils.files import atomic_write

VERSION = "1"  # of the format
MARK = "keras_nern"  # the key of the version in the header's metadata
HASH = "sha256"  # the last part: its name comes after all others'
HASH_BYTES = 32
Path = str | os.PathLike
LONGEST_HEADER = 65_536


def require(module: str) -> types.ModuleType:
    """A module of the extra `compact`.

    Args:
        module: its name.

    Raises:
        ImportError: where it is not installed, with what to do about it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The compact file needs {module.partition('.')[0]}: `pip install keras-nern[compact]`"
        ) from error


def write(path: Path, parts: dict[str, bytes]) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: where to; a file that is there is replaced.
        parts: dict from name to bytes.

    Raises:
        ValueError: for names that do not come before `"sha256"`, or too many parts.
        ImportError: where safetensors is not installed.
    """
    data = dump(parts)
    with atomic_write(path) as partial, open(partial, "wb") as file:
        file.write(data)


def dump(parts: dict[str, bytes]) -> bytes:
    """The bytes of a file; see `write`."""
    late = [name for name in parts if name >= HASH]
    if late:
        raise ValueError(f"Names of parts must come before {HASH!r}. Received: {late}")
    tensors = {name: np.frombuffer(part, "uint8") for name, part in parts.items()}
    tensors[HASH] = np.zeros(HASH_BYTES, "uint8")
    data = require("safetensors.numpy").save(tensors, {MARK: VERSION})
    if int.from_bytes(data[:8], "little") > LONGEST_HEADER:
        raise ValueError(f"Expected fewer parts. Received: {len(parts)}")
    return data[:-HASH_BYTES] + hashlib.sha256(data[:-HASH_BYTES]).digest()


def read(path: Path, most: int | None = None) -> dict[str, bytes]:
    """Reads a file that `write` wrote.

    Args:
        path: of the file.
        most: bytes that it may have; `None` for any number. Defaults to `None`.

    Returns:
        dict from name to bytes, `"sha256"` among them.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is none of ours, of another version, or damaged: the text says
            how.
        ImportError: where safetensors is not installed.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise invalid_file_error(path, f"it has {size:,} bytes, more than {most:,}")
        return read_from(file, size, path)


def read_from(file: typing.BinaryIO, size: int, name: Path) -> dict[str, bytes]:
    """The same, from a binary file of so many bytes; `name` is for the errors."""
    safetensors = require("safetensors.numpy")
    try:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"it begins with {start!r}, which is no length of a header")
        header = file.read(length)
        if len(header) < length:
            raise ValueError(f"it ends within its header of {length:,} bytes")
        expected = 8 + length + _length_of_parts(header)
        if size != expected:
            raise ValueError(f"it has {size:,} bytes where its header says {expected:,}")
        data = start + header + file.read(size - 8 - length)
        if hashlib.sha256(data[:-HASH_BYTES]).digest() != data[-HASH_BYTES:]:
            raise ValueError("it is damaged: its SHA-256 is not the one that it ends with")
        try:
            tensors = safetensors.load(data)
        except Exception as error:  # SafetensorError, and what NumPy says to odd shapes
            raise ValueError(f"safetensors cannot read it: {error}") from error
    except ValueError as error:
        raise invalid_file_error(name, error) from error
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def invalid_file_error(path: Path, reason: object) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(
        f"Expected a file that NeRNModel.export wrote. Received: {str(path)!r} ({reason})"
    )


def _length_of_parts(header: bytes) -> int:
    """Checks a header, and returns how many bytes it says follow it."""
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique)
        version = entries.pop("__metadata__")[MARK]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its header says nothing of {MARK!r}") from error
    if version != VERSION:
        raise ValueError(
            f"it is of format {version!r}, and this version of keras_nern reads {VERSION!r}"
        )
    end = 0
    for name, entry in sorted(entries.items()):
        length = _length_of_part(name, entry)
        expected = {"dtype": "U8", "shape": [length], "data_offsets": [end, end + length]}
        if entry != expected:
            raise ValueError(f"its part {name!r} must be {expected}, and is {entry}")
        end += length
    if max(entries, default="") != HASH or entries[HASH]["shape"] != [HASH_BYTES]:
        raise ValueError(f"its last part is not {HASH!r} of {HASH_BYTES} bytes")
    return end


def _length_of_part(name: str, entry: Any) -> int:
    try:
        (length,) = entry["shape"]
    except (KeyError, TypeError, ValueError):
        length = None
    if type(length) is not int or length < 0:
        raise ValueError(f"its part {name!r} has no length")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"its header names {twice} twice")
    return dict(pairs)
