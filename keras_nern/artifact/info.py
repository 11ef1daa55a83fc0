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

from keras_nern.artifact import container
from keras_nern.artifact.reader import read_config


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
        raise container.invalid_file_error(path, error) from error
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
        num_layers=config["predictor"]["num_layers"],
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
        permutation, view, hidden_size, num_layers: as for `NeRNModel`.
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
    num_layers: int
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
        predictor = f"{self.num_layers} layers of width {self.hidden_size}, {self.precision}"
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
