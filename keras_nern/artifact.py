"""The compact file: one file that rebuilds the classifier.

It holds all that `NeRNModel.reconstruct` starts from, and not the represented kernels:

    config        the architecture, which kernels are represented and how, versions
    permutation   the orders of the blocks, near log2(n!) bits
    predictor     levels and steps, or floats, of its Dense kernels; its biases
    scales        of the layers, where there are any
    kept          all other weights of the classifier

`NeRNModel.export` writes it (see `exporting`), `load` rebuilds (see `rebuilding`), `inspect`
tells what a file holds. How numbers are coded is in `coding`, what keeps a file from doing harm
in `container` and `architecture`; docs/format.md specifies all of it byte by byte.
"""

import dataclasses
import math
import os

import keras

from keras_nern import checks, container
from keras_nern.rebuilding import MAX_BYTES, MOST_CONFIG_BYTES, Rebuilding, read_config

PARTS = 3  # that may each take max_bytes: classifier, predictor, orders


def load(
    path: container.Path, custom_objects: dict | None = None, max_bytes: int = MAX_BYTES
) -> keras.Model:
    """Rebuilds the classifier from a compact file.

    Args:
        path: of a file that `NeRNModel.export` wrote.
        custom_objects: dict from name to class or function, for layers that are neither
            Keras's nor registered. Defaults to `None`.
        max_bytes: what the weights of the classifier, or of the predictor, or the order of
            the blocks may take; a file that asks for more, or is larger than all of these
            together, is refused before they are allocated. Defaults to 2 GiB.

    Returns:
        A Keras model of the original's class and config: predicted kernels, everything else
        as it was. Not compiled.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is no such file, is damaged, or asks for what it must not; the
            text says which. For a `max_bytes` that is no integer of at least 1.
        ImportError: where the extra `compact` is not installed.

    Example:

    >>> nern.export("classifier.nern")
    >>> rebuilt = keras_nern.load("classifier.nern")
    """
    checks.integer("max_bytes", max_bytes, least=1)
    if not isinstance(custom_objects, dict | None):
        raise ValueError(
            "custom_objects must be a dict from name to class or function, or None. "
            f"Received: custom_objects={custom_objects!r}"
        )
    parts = container.read(path, PARTS * max_bytes + MOST_CONFIG_BYTES)
    try:
        return Rebuilding(parts, custom_objects, max_bytes).classifier()
    except ValueError as error:
        raise container.refusal(path, error) from error


def inspect(path: container.Path) -> "ArtifactInfo":
    """Tells what a compact file holds, without building anything.

    Args:
        path: of a file that `NeRNModel.export` wrote.

    Returns:
        An `ArtifactInfo`; printed, it is a table.

    Raises:
        OSError, ValueError, ImportError: as `load` does.
    """
    parts = container.read(path)
    try:
        config = read_config(parts)
    except ValueError as error:
        raise container.refusal(path, error) from error
    sizes = {"predictor": 0, "permutation": 0, "kept": 0, "config": 0}
    for name, part in parts.items():
        kind = name.partition(".")[0]
        if kind in ("predictor", "scales"):
            sizes["predictor"] += len(part)
        elif kind in sizes:
            sizes[kind] += len(part)
    total = os.stat(path).st_size
    sizes["container"] = total - sum(sizes.values())
    return ArtifactInfo(
        file_bytes=total,
        format_version=container.VERSION,
        versions=config["versions"],
        name=str(config["architecture"]["config"].get("name")),
        precision=config["predictor"]["precision"],
        kept_precision=config["kept_precision"],
        permutation=config["permutation"],
        view=config["view"],
        hidden_size=config["predictor"]["hidden_size"],
        num_blocks=config["predictor"]["num_blocks"],
        layers=[(one["name"], tuple(one["shape"])) for one in config["kernels"]],
        part_bytes=sizes,
        sha256=parts[container.HASH].hex(),
        base_sha256=config["base_sha256"],
    )


@dataclasses.dataclass(frozen=True)
class ArtifactInfo:
    """What a compact file holds; prints as a table.

    Attributes:
        file_bytes: its size.
        format_version: of the format, see docs/format.md.
        versions: dict from library to the version that wrote it.
        name: the classifier's.
        precision, kept_precision: of the predictor's and of the kept weights.
        permutation, view, hidden_size, num_blocks: as for `NeRNModel`.
        layers: list of `(name, shape)` of the represented kernels.
        part_bytes: dict from part of the file to its bytes.
        sha256: of the file's content, in hexadecimal.
        base_sha256: of the weights of the classifier that it represents.
    """

    file_bytes: int
    format_version: str
    versions: dict
    name: str
    precision: str
    kept_precision: str
    permutation: str | None
    view: str
    hidden_size: int
    num_blocks: int
    layers: list
    part_bytes: dict
    sha256: str
    base_sha256: str

    @property
    def represented_weights(self) -> int:
        """How many weights the predictor stands for."""
        return sum(math.prod(shape) for _, shape in self.layers)

    def to_dict(self) -> dict:
        """All of it as JSON has it."""
        layers = [{"name": name, "shape": list(shape)} for name, shape in self.layers]
        counts = {"represented_weights": self.represented_weights}
        return {**dataclasses.asdict(self), "layers": layers, **counts}

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        predictor = f"{self.num_blocks} layers of width {self.hidden_size}, {self.precision}"
        rows = [
            ("classifier", self.name),
            ("format", f"{self.format_version} ({versions})"),
            ("predictor", predictor),
            ("permutation", f"{self.permutation}, view {self.view}"),
            ("kept weights", self.kept_precision),
            ("represented", f"{len(self.layers)} kernels, {self.represented_weights:,} weights"),
            ("sha256", self.sha256),
            ("base sha256", self.base_sha256),
            *((f"bytes, {part}", f"{size:,}") for part, size in self.part_bytes.items()),
            ("bytes, all", f"{self.file_bytes:,}"),
            *((name, "x".join(map(str, shape))) for name, shape in self.layers),
        ]
        rows = [(_printable(name), _printable(str(value))) for name, value in rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _printable(text: str) -> str:
    """Names come from the file, and could tell a terminal what to do."""
    return text if text.isprintable() else ascii(text)
