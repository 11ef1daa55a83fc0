"""One file of named parts with a hash: the outer layer of the compact file.

    [ length n of the header: 8 bytes ][ header: n bytes of JSON ][ the parts ]

This is a safetensors file (https://github.com/huggingface/safetensors) whose tensors are all
one-dimensional and of unsigned bytes. The last one, `sha256`, is the SHA-256 of all bytes of the
file before it. docs/format.md specifies the file byte by byte; `codec` documents the parts.

A file whose last parts refine the others, as a residual does, has the part `prefix` before them,
the SHA-256 of all bytes before it. The parts before it can be read from the start of the file.

Files are not trusted. The header is read only if its length is within bounds, the parts are read
only if the header accounts for every byte of the file, and they are returned only if the hash
matches.
"""

import hashlib
import json
import os
import typing
from collections.abc import Collection
from typing import Any

import numpy as np

from keras_nern.utils.files import atomic_write
from keras_nern.utils.optional import require
from keras_nern.utils.types import Path

VERSION = "1"  # of the format
MARK = "keras_nern"  # key of the version in the header's metadata
HASH = "sha256"  # the last part: its name sorts after all others
HASH_BYTES = 32
PREFIX = "prefix"  # its name sorts before those of the parts that refine the others
MAX_HEADER_BYTES = 65_536
CHUNK_BYTES = 2**20  # bytes read at once


def write(path: Path, parts: dict[str, bytes]) -> None:
    """Writes a file atomically.

    Args:
        path: path of the file; a previous file is replaced.
        parts: dict from name to bytes.

    Raises:
        ValueError: if a name does not sort before `"sha256"`, or if there are too many parts.
        ImportError: if safetensors is not installed.
    """
    data = dump(parts)
    with atomic_write(path) as partial, open(partial, "wb") as file:
        file.write(data)


def dump(parts: dict[str, bytes]) -> bytes:
    """Returns the bytes of a file; see `write`."""
    late = [name for name in parts if name >= HASH]
    if late:
        raise ValueError(f"Names of parts must sort before {HASH!r}. Received: {late}")
    tensors = {name: np.frombuffer(part, "uint8") for name, part in parts.items()}
    tensors[HASH] = np.zeros(HASH_BYTES, "uint8")
    if any(name > PREFIX for name in parts):
        tensors[PREFIX] = np.zeros(HASH_BYTES, "uint8")
    data = require("safetensors.numpy", "compact").save(tensors, {MARK: VERSION})
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError(f"Expected fewer parts. Received: {len(parts)}")
    if PREFIX in tensors:
        later = sum(tensor.size for name, tensor in tensors.items() if name > PREFIX)
        start = len(data) - later - HASH_BYTES
        digest = hashlib.sha256(data[:start]).digest()
        data = data[:start] + digest + data[start + HASH_BYTES :]
    return data[:-HASH_BYTES] + hashlib.sha256(data[:-HASH_BYTES]).digest()


def read(
    path: Path, max_bytes: int | None = None, names: Collection[str] | None = None
) -> dict[str, bytes]:
    """Reads a file that `write` wrote.

    Args:
        path: path of the file.
        max_bytes: largest size of the file; `None` for any. Defaults to `None`.
        names: names of the parts to return; `None` for all. The whole file is checked, but memory
            is only allocated for these parts. Defaults to `None`.

    Returns:
        A dict from name to bytes, including `"sha256"`.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file has another format or version, or is damaged; the message names
            the defect.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise invalid_file_error(path, f"it has {size:,} bytes, more than {max_bytes:,}")
        return read_from(file, size, path, names)


def read_from(
    file: typing.BinaryIO, size: int, path: Path, names: Collection[str] | None = None
) -> dict[str, bytes]:
    """Reads `size` bytes from an open file; `path` is used in errors. See `read`."""
    try:
        header = _read_header(file)
        sizes = _lengths_of_parts(header)
        expected = 8 + len(header) + sum(sizes.values())
        if size != expected:
            reason = f"it has {size:,} bytes, but its header describes {expected:,}"
            if _prefix_bytes(header, sizes) <= size < expected:
                reason += ": its residual is cut off, and load(path, residual=False) reads the rest"
            raise ValueError(reason)
        sha = hashlib.sha256(len(header).to_bytes(8, "little") + header)
        parts = {}
        for name, count in sizes.items():
            wanted = names is None or name in names or name == HASH
            kept = bytearray()
            for begin in range(0, count, CHUNK_BYTES):
                chunk = file.read(min(CHUNK_BYTES, count - begin))
                if name != HASH:
                    sha.update(chunk)
                if wanted:
                    kept += chunk
            if wanted:
                parts[name] = bytes(kept)
        if sha.digest() != parts[HASH]:
            raise ValueError("it is damaged: its content does not match its SHA-256")
    except ValueError as error:
        raise invalid_file_error(path, error) from error
    return parts


def read_prefix(path: Path, max_bytes: int | None = None) -> dict[str, bytes]:
    """Reads the parts before `"prefix"` from a file that may be cut off after them.

    Args:
        path: path of the file.
        max_bytes: largest size of these parts; `None` for any. Defaults to `None`.

    Returns:
        A dict from name to bytes.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file has no part `"prefix"`, ends before it or is damaged before it.
    """
    with open(path, "rb") as file:
        try:
            header = _read_header(file)
            sizes = _lengths_of_parts(header)
            if PREFIX not in sizes:
                raise ValueError("it has no residual")
            end = _prefix_bytes(header, sizes)
            if max_bytes is not None and end > max_bytes:
                raise ValueError(f"it has {end:,} bytes before its residual, over {max_bytes:,}")
            data = file.read(end - 8 - len(header))
            if len(data) < end - 8 - len(header):
                raise ValueError("it ends before its residual begins")
            content = data[:-HASH_BYTES]
            sha = hashlib.sha256(len(header).to_bytes(8, "little") + header + content)
            if sha.digest() != data[-HASH_BYTES:]:
                raise ValueError("it is damaged: its content does not match its SHA-256")
        except ValueError as error:
            raise invalid_file_error(path, error) from error
    parts, start = {}, 0
    for name, count in sizes.items():
        if name < PREFIX:
            parts[name] = data[start : start + count]
            start += count
    return parts


def _prefix_bytes(header: bytes, sizes: dict[str, int]) -> int:
    """The bytes of a file up to the end of the part `"prefix"`; of a whole file without it."""
    if PREFIX not in sizes:
        return 8 + len(header) + sum(sizes.values())
    return 8 + len(header) + sum(size for name, size in sizes.items() if name <= PREFIX)


def lengths(path: Path) -> dict[str, int]:
    """Reads the bytes of each part from a file's header, without checking the parts."""
    with open(path, "rb") as file:
        try:
            return _lengths_of_parts(_read_header(file))
        except ValueError as error:
            raise invalid_file_error(path, error) from error


def invalid_file_error(path: Path, reason: object) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(
        f"Expected a file that NeRNModel.export wrote. Received: {str(path)!r} ({reason})"
    )


def _read_header(file: typing.BinaryIO) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if start.startswith((b"PK\x03\x04", b"\x89HDF")):
        raise ValueError(
            "it is a zip archive or an HDF5 file: keras.models.load_model loads those of Keras"
        )
    if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f"it begins with {start!r}, which is not the length of a header")
    header = file.read(length)
    if len(header) < length:
        raise ValueError(f"it ends within its header of {length:,} bytes")
    return header


def _lengths_of_parts(header: bytes) -> dict[str, int]:
    """Checks a header and returns the bytes of each part, in the order of the file."""
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique)
        version = entries.pop("__metadata__")[MARK]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its header does not mention {MARK!r}") from error
    if version != VERSION:
        raise ValueError(
            f"it has format {version!r}, and this version of keras_nern reads {VERSION!r}"
        )
    end, lengths = 0, {}
    for name, entry in sorted(entries.items()):
        length = _length_of_part(name, entry)
        expected = {"dtype": "U8", "shape": [length], "data_offsets": [end, end + length]}
        if entry != expected:
            raise ValueError(f"its part {name!r} must be {expected}, but is {entry}")
        end += length
        lengths[name] = length
    if max(entries, default="") != HASH or entries[HASH]["shape"] != [HASH_BYTES]:
        raise ValueError(f"its last part is not {HASH!r} of {HASH_BYTES} bytes")
    if lengths.get(PREFIX, HASH_BYTES) != HASH_BYTES:
        raise ValueError(f"its part {PREFIX!r} does not have {HASH_BYTES} bytes")
    return lengths


def _length_of_part(name: str, entry: Any) -> int:
    try:
        (length,) = entry["shape"]
    except (KeyError, TypeError, ValueError):
        length = None
    if type(length) is not int or length < 0:
        raise ValueError(f"its part {name!r} has no length")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object, and raises a ValueError if a name occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its header names {name!r} twice")
        found[name] = value
    return found
