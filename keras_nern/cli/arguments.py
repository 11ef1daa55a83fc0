"""Checks of the arguments of a command line, made before any work."""

import contextlib
import difflib
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence

import click

from keras_nern.predictor.size import size_bytes
from keras_nern.utils.files import DAMAGED, check_writable

NERN, CLASSIFIER, HDF5, COMPACT = "a NeRN", "a Keras model", "an HDF5 file", "a compact file"
IMAGES = (".npz", ".npy")
MAX_CONFIG_BYTES = 2**26  # of a Keras file, uncompressed

# Files of a backup folder: the options of the fit, and the weights as
# keras.callbacks.BackupAndRestore names them (Keras 3.15; undocumented).
SETTINGS = "settings.json"
WEIGHTS = "latest.weights.h5"


class ModelFile(click.ParamType):
    """A file that holds a model; its kind is read from its content.

    Args:
        *kinds: the allowed kinds: `NERN`, `CLASSIFIER`, `HDF5`, `COMPACT`.
    """

    name = "file"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def convert(
        self,
        value: str | pathlib.Path,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> pathlib.Path:
        path = pathlib.Path(value)
        if not path.exists():
            self.fail(f"{str(path)!r} does not exist.", param, ctx)
        try:
            kind = "a folder" if path.is_dir() else kind_of(path) or "a file of another kind"
        except OSError as error:
            self.fail(f"{str(path)!r} cannot be read: {error.strerror}.", param, ctx)
        if kind not in self.kinds:
            self.fail(
                f"Expected {' or '.join(self.kinds)}. Received: {str(path)!r}, {kind}.", param, ctx
            )
        return path


class OutputFile(click.ParamType):
    """A file to write.

    Args:
        *suffixes: the allowed suffixes of its name.
    """

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(
        self,
        value: str | pathlib.Path,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> pathlib.Path:
        path = pathlib.Path(value)
        if path.suffix not in self.suffixes:
            self.fail(
                f"Expected a name that ends in {' or '.join(self.suffixes)}. "
                f"Received: {str(path)!r}.",
                param,
                ctx,
            )
        try:
            folder = check_writable(path).parent
        except OSError as error:
            self.fail(f"{error.strerror}. Received: {str(path)!r}.", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"The folder {str(folder)!r} is not writable.", param, ctx)
        return path


class AutoInteger(click.ParamType):
    """An integer of at least 1, or `auto`."""

    name = "auto or integer"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        if value == "auto":
            return value
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(
                f"Expected auto or an integer of at least 1. Received: {value!r}.", param, ctx
            )
        return number


class Size(click.ParamType):
    """The argument `size` of `NeRNModel`: a share of the weights, or bytes with a unit."""

    name = "size"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | float:
        with contextlib.suppress(ValueError):
            value = float(value)
        try:
            size_bytes(value, num_weights=1)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


def kind_of(path: pathlib.Path) -> str | None:
    """The kind of a file by its content: one of the constants above, or `None`."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length <= 2**16 and b'"keras_nern"' in file.read(length):
            return COMPACT
    if start == b"\x89HDF\r\n\x1a\n":
        return HDF5
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                return None
            config = json.loads(archive.read("config.json"))
        name = config["registered_name"]
    except DAMAGED:
        return None
    return NERN if name == "keras_nern>NeRNModel" else CLASSIFIER


def backup_of(output: pathlib.Path) -> pathlib.Path:
    """The folder that backs up a fit until its output is written."""
    return output.with_name(f"{output.name}.backup")


def has_backup(folder: pathlib.Path) -> bool:
    """Whether a folder contains a backup from which a fit can continue."""
    return (folder / WEIGHTS).is_file()


def check_backup(output: pathlib.Path, resume: bool, force: bool) -> None:
    """Raises a UsageError if a backup is missing, would be replaced, or was not made by a fit."""
    folder = backup_of(output)
    if folder.exists() and not _is_backup(folder):
        raise click.UsageError(
            f"Expected a folder made by keras-nern, or none. Received: {str(folder)!r} "
            f"without a {SETTINGS}; rename it."
        )
    if resume and not has_backup(folder):
        raise click.UsageError(f"--resume needs a backup. Received: none in {str(folder)!r}.")
    if has_backup(folder) and not (resume or force):
        raise click.UsageError(
            f"{str(folder)!r} holds the backup of a stopped fit: continue it with --resume, or "
            "start over with --force."
        )


def _is_backup(folder: pathlib.Path) -> bool:
    """Whether a fit made a folder, which has no settings if the fit was killed at once."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    return SETTINGS in names or all(name.startswith("partial.") for name in names)


def check_overwriting(
    force: bool, *outputs: pathlib.Path | None, inputs: Sequence[pathlib.Path] = ()
) -> None:
    """Raises a UsageError if an output is an input, or exists and `force` is false."""
    for path in outputs:
        if path is None or not path.exists():
            continue
        if any(path.samefile(one) for one in inputs):
            raise click.UsageError(f"{str(path)!r} is the input.")
        if not force:
            raise click.UsageError(f"{str(path)!r} exists: replace it with --force.")


def did_you_mean(value: str, names: Iterable[str]) -> str:
    """The end of an error for an unknown name, in the words of click; empty without a guess."""
    found = difflib.get_close_matches(value, names, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Checks that the number of an option is finite."""
    if not math.isfinite(value):
        raise click.BadParameter(f"Expected a finite number. Received: {value}.", ctx, param)
    return value


def data_source(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Checks `--data`: `noise`, a file of images, or else the name of a TFDS dataset."""
    if value is None:
        return None
    path = pathlib.Path(value)
    if value == "noise":
        return value
    if path.suffix in IMAGES:
        if not path.is_file():
            names = [str(one) for one in path.parent.glob("*") if one.suffix in IMAGES]
            text = f"{value!r} does not exist.{did_you_mean(value, names)}"
            raise click.BadParameter(text, ctx, param)
        if not os.access(path, os.R_OK):
            raise click.BadParameter(f"{value!r} cannot be read.", ctx, param)
    elif path.exists():
        raise click.BadParameter(
            f"Expected noise, a file that ends in {' or '.join(IMAGES)}, or the name of a TFDS "
            f"dataset. Received: the file {value!r}.",
            ctx,
            param,
        )
    return value
