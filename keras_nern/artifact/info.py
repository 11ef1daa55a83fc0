"""A description of a compact file, made without building the classifier."""

import dataclasses
import math
import os
from typing import Any

from keras_nern.artifact import container
from keras_nern.artifact.reader import MAX_CONFIG_BYTES, read_config
from keras_nern.utils.tables import Printable, Table
from keras_nern.utils.types import Path


def inspect(path: Path) -> "ArtifactInfo":
    """Describes a compact file. Memory is only allocated for its config.

    Args:
        path: path of a file that `NeRNModel.export` wrote.

    Returns:
        An `ArtifactInfo`, which prints as a table.

    Raises:
        OSError, ValueError, ImportError: as `load` does.
    """
    lengths = container.lengths(path)
    if lengths.get("config", 0) > MAX_CONFIG_BYTES:
        raise container.invalid_file_error(path, f"its config has {lengths['config']:,} bytes")
    parts = container.read(path, names=("config",))
    try:
        config = read_config(parts)
    except ValueError as error:
        raise container.invalid_file_error(path, error) from error
    sizes = {"predictor": 0, "permutation": 0, "residual": 0, "kept": 0, "config": 0}
    for name, length in lengths.items():
        kind = name.partition(".")[0]
        if kind in sizes:
            sizes[kind] += length
    total = os.stat(path).st_size
    sizes["container"] = total - sum(sizes.values())
    predictor = {k: v for k, v in config["predictor"].items() if k not in ("encoding", "precision")}
    return ArtifactInfo(
        file_bytes=total,
        format_version=container.VERSION,
        versions=config["versions"],
        name=str(config["architecture"]["config"].get("name")),
        precision=config["predictor"]["precision"],
        kept_precision=config["kept_precision"],
        permutation=config["permutation"],
        blocks=config["blocks"],
        predictor=predictor,
        layers=[(one["name"], tuple(one["shape"])) for one in config["kernels"]],
        part_bytes=sizes,
        sha256=parts[container.HASH].hex(),
        base_sha256=config["base_sha256"],
    )


@dataclasses.dataclass(frozen=True)
class ArtifactInfo(Printable):
    """The contents of a compact file; prints as a table.

    Attributes:
        file_bytes: size of the file.
        format_version: version of the format, see docs/format.md.
        versions: dict from library to the version that wrote the file.
        name: name of the classifier.
        precision, kept_precision: precisions of the predictor's kernels and of the kept weights.
        permutation: kind of the permutation.
        blocks: dict of arguments of `Blocks`.
        predictor: dict of arguments of `KernelPredictor` or `LocalPredictor`.
        layers: list of `(name, shape)` of the represented kernels.
        part_bytes: dict from part of the file to its bytes.
        sha256: SHA-256 of the file's content, in hexadecimal.
        base_sha256: SHA-256 of the weights of the represented classifier.
    """

    file_bytes: int
    format_version: str
    versions: dict[str, str]
    name: str
    precision: str
    kept_precision: str
    permutation: str | None
    blocks: dict[str, Any]
    predictor: dict[str, Any]
    layers: list[tuple[str, tuple[int, ...]]]
    part_bytes: dict[str, int]
    sha256: str
    base_sha256: str

    @property
    def represented_weights(self) -> int:
        """The number of weights that the predictor represents."""
        return sum(math.prod(shape) for _, shape in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Converts all attributes, and `represented_weights`, to a dict of JSON values."""
        layers = [{"name": name, "shape": list(shape)} for name, shape in self.layers]
        counts = {"represented_weights": self.represented_weights}
        return {**dataclasses.asdict(self), "layers": layers, **counts}

    def tables(self) -> list[Table]:
        predictor = dict(self.predictor)
        if "run_lengths" in predictor:
            predictor = {"experts": len(predictor.pop("run_lengths")), **predictor}
        rows = [
            ("classifier", self.name),
            ("format", f"{self.format_version} ({_listed(self.versions, ' ')})"),
            ("predictor", f"{_listed(predictor)}, precision={self.precision}"),
            ("blocks", f"permutation={self.permutation}, {_listed(self.blocks)}"),
            ("precision of kept weights", self.kept_precision),
            ("represented", f"{len(self.layers)} kernels, {self.represented_weights:,} weights"),
            ("sha256", self.sha256),
            ("sha256 of the base", self.base_sha256),
            *((f"bytes of {part}", f"{size:,}") for part, size in self.part_bytes.items()),
            ("bytes of the file", f"{self.file_bytes:,}"),
        ]
        layers = [(name, "x".join(map(str, shape))) for name, shape in self.layers]
        return [Table(rows), Table(layers, header=("represented kernel", "shape"))]


def _listed(values: dict[str, Any], sign: str = "=") -> str:
    return ", ".join(f"{name}{sign}{value}" for name, value in values.items())
