"""Checks the contents of an sdist and a wheel; --lowest prints a wheel's lowest requirements."""

import pathlib
import re
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]


def main(arguments):
    """Checks the given archives, or prints `name==version` for each requirement of a wheel."""
    if arguments[0] == "--lowest":
        print(*lowest(arguments[1]))
        return
    wanted = {
        str(path.relative_to(ROOT))
        for pattern in (
            "keras_nern/**/*.py",
            "keras_nern_command.py",
            "keras_nern/py.typed",
            "keras_nern/zoo/*",
        )
        for path in ROOT.glob(pattern)
    }
    for archive in arguments:
        missing = wanted - names(archive)
        if missing:
            sys.exit(f"{archive} has no {sorted(missing)}")
        print(f"{pathlib.Path(archive).name}: all of {len(wanted)} files")


def names(archive):
    """The paths of the files of an archive, relative to the top folder of an sdist."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as file:
            return set(file.namelist())
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def lowest(wheel):
    """`name==version` for each requirement `name>=version` outside of extras."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        text = file.read(metadata).decode()
    required = re.findall(r"^Requires-Dist: ([\w-]+)>=([\d.]+)$", text, re.MULTILINE)
    # the first release of version 2.18 is 2.18.0
    return [f"{name}=={version}{'.0' * (version.count('.') < 2)}" for name, version in required]


if __name__ == "__main__":
    main(sys.argv[1:])
