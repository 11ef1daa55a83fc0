"""What a command line names, looked at before any work: no TensorFlow is needed for it."""

import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import click

NERN, CLASSIFIER, HDF5, COMPACT = "a NeRN", "a Keras model", "an HDF5 file", "a compact file"
IMAGES = (".npz", ".npy")
SETTINGS = "settings.json"  # of a backup: the options of its fit
MOST_CONFIG_BYTES = 2**26  # of a Keras file, unpacked
# What zipfile, zlib and json raise for files that are damaged, or none of theirs.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError),
    *(NotImplementedError, RuntimeError),
)


class Model(click.ParamType):
    """A file that holds a model of some kind, told by its content.

    Args:
        *kinds: of `NERN`, `CLASSIFIER`, `HDF5` and `COMPACT`, those that will do.
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
        if not path.is_file():
            self.fail(f"{str(path)!r} is no file.", param, ctx)
        try:
            kind = kind_of(path)
        except OSError as error:
            self.fail(f"{str(path)!r} cannot be read: {error.strerror}.", param, ctx)
        if kind not in self.kinds:
            self.fail(
                f"Expected {' or '.join(self.kinds)}. Received: {str(path)!r}, which is "
                f"{kind or 'neither'}.",
                param,
                ctx,
            )
        return path


class Output(click.ParamType):
    """A file to be written.

    Args:
        *suffixes: that its name may have.
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
        if path.is_dir():
            self.fail(f"{str(path)!r} is a folder.", param, ctx)
        folder = path.absolute().parent
        if not folder.is_dir():
            self.fail(f"The folder {str(folder)!r} does not exist.", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"The folder {str(folder)!r} cannot be written to.", param, ctx)
        return path


def kind_of(path: pathlib.Path) -> str | None:
    """What a file is by its content: one of the kinds above, or `None`."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length <= 2**16 and b'"keras_nern"' in file.read(length):
            return COMPACT
    if start == b"\x89HDF\r\n\x1a\n":
        return HDF5
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MOST_CONFIG_BYTES:
                return None
            config = json.loads(archive.read("config.json"))
        name = config["registered_name"]
    except DAMAGED:
        return None
    return NERN if name == "keras_nern>NeRNModel" else CLASSIFIER


def backup_of(output: pathlib.Path) -> pathlib.Path:
    """The folder that keeps a fit until its output is written."""
    return output.with_name(f"{output.name}.backup")


def check_backup(backup: pathlib.Path) -> None:
    """Refuses to use, or to delete, what is in the backup's place and is none."""
    if backup.exists() and not (backup / SETTINGS).is_file() and not _is_begun(backup):
        raise click.UsageError(
            f"Expected a backup of keras-nern, or nothing. Received: {str(backup)!r}, which has no "
            f"{SETTINGS}: move it away."
        )


def _is_begun(backup: pathlib.Path) -> bool:
    """Whether it is as a writer leaves it that was killed before its settings were there."""
    return backup.is_dir() and all(one.name.startswith("partial.") for one in backup.iterdir())


def no_overwriting(
    force: bool, *outputs: pathlib.Path | None, inputs: Sequence[pathlib.Path] = ()
) -> None:
    """Refuses outputs that are there, unless with --force, and those that are inputs."""
    for path in outputs:
        if path is None:
            continue
        if any(path.exists() and path.samefile(one) for one in inputs):
            raise click.UsageError(f"{str(path)!r} is the input.")
        if path.exists() and not force:
            raise click.UsageError(f"{str(path)!r} exists: give --force to replace it.")
    named = [path.absolute() for path in outputs if path is not None]
    if len(set(named)) < len(named):
        raise click.UsageError(f"Expected outputs of different names. Received: {named[0]} twice.")


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Checks that a number is finite."""
    if not math.isfinite(value):
        raise click.BadParameter(f"Expected a finite number. Received: {value}.", ctx, param)
    return value


def data_source(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Checks `--data`: `noise`, a file of images, or else the name of a TFDS dataset."""
    if value == "noise":
        return value
    if pathlib.Path(value).suffix in IMAGES:
        if not pathlib.Path(value).is_file():
            raise click.BadParameter(f"{value!r} does not exist.", ctx, param)
        if not os.access(value, os.R_OK):
            raise click.BadParameter(f"{value!r} cannot be read.", ctx, param)
    elif pathlib.Path(value).exists():
        raise click.BadParameter(
            f"Expected noise, a file {' or '.join(IMAGES)}, or a dataset of TFDS. "
            f"Received: {value!r}, another file.",
            ctx,
            param,
        )
    return value
