"""The size of a representation, layer by layer.

With P bytes of predictor, B bits of permutation, S layer scales and K weights that are kept
as they are, each of these a 4-byte float, against R represented weights:

    ratio of the kernels  =  4 R / (P + 4 S + B / 8)
    ratio of the network  =  4 (R + K) / (P + 4 S + B / 8 + 4 K)

above 1 where the representation is the smaller one. A predictor's weights are 4-byte floats,
too, unless they are quantised (see `compression`). An exported file is smaller still where
its weights can be coded in fewer bits than they have (see `artifact`).
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from keras_nern.network.original import OriginalNetwork
from keras_nern.predictor.predictor import KernelPredictor


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One kernel: its name and shape, its blocks and weights, its permutation's bits."""

    name: str
    shape: tuple
    blocks: int
    weights: int
    permutation_bits: float


@dataclasses.dataclass(frozen=True)
class SummaryTable:
    """What is represented, by what, and how the sizes compare; prints as a table.

    Attributes:
        layers: list of `LayerRow`.
        skipped: list of `selection.SkippedLayer`: layers that are not represented, and why.
        predictor_parameters: weights of the predictor.
        predictor_bytes: what these take, see `predictor.KernelPredictor.num_bytes`.
        scales: layer scales that are kept beside it.
        kept_weights: all other weights of the base (BN, biases, Dense, ...).
    """

    layers: list
    skipped: list
    predictor_parameters: int
    predictor_bytes: float
    scales: int
    kept_weights: int

    @property
    def blocks(self) -> int:
        """Represented blocks of all layers."""
        return sum(row.blocks for row in self.layers)

    @property
    def weights(self) -> int:
        """Represented weights of all layers."""
        return sum(row.weights for row in self.layers)

    @property
    def permutation_bits(self) -> float:
        """Bits of all permutations."""
        return sum(row.permutation_bits for row in self.layers)

    @property
    def representation_bytes(self) -> float:
        """Bytes of predictor, scales and permutations."""
        return self.predictor_bytes + 4 * self.scales + self.permutation_bits / 8

    @property
    def kernel_ratio(self) -> float:
        """Bytes of the represented weights over those of their representation."""
        return 4 * self.weights / self.representation_bytes

    @property
    def network_ratio(self) -> float:
        """Bytes of the whole network over those of representation and kept weights."""
        kept = 4 * self.kept_weights
        return (4 * self.weights + kept) / (self.representation_bytes + kept)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        skipped = [
            {"name": one.name, "kind": type(one.layer).__name__, "weights": one.num_weights}
            | {"reason": one.reason}
            for one in self.skipped
        ]
        counts = ("predictor_parameters", "predictor_bytes", "scales", "kept_weights")
        totals = ("blocks", "weights", "permutation_bits", "representation_bytes")
        ratios = ("kernel_ratio", "network_ratio")
        return {
            "layers": [dataclasses.asdict(row) | {"shape": list(row.shape)} for row in self.layers],
            "skipped": skipped,
            **{name: getattr(self, name) for name in (*counts, *totals, *ratios)},
        }

    def __str__(self) -> str:
        header = ("layer", "kernel shape", "blocks", "weights", "permutation bits")
        rows = [
            (
                row.name,
                "x".join(map(str, row.shape)),
                row.blocks,
                row.weights,
                row.permutation_bits,
            )
            for row in self.layers
        ]
        rows.append(("total", "", self.blocks, self.weights, self.permutation_bits))
        cells = [header, *([*row[:2], *(f"{n:,.0f}" for n in row[2:])] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines = []
        for row in cells:
            text = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join([*text, *numbers]).rstrip())
        rule = "-" * max(map(len, lines))
        lines.insert(1, rule)
        lines.insert(-1, rule)
        lines += [
            "",
            f"predictor parameters      {self.predictor_parameters:,}",
            f"predictor                 {self.predictor_bytes:,.0f} bytes",
            f"layer scales              {self.scales:,}",
            f"weights kept as they are  {self.kept_weights:,}",
            f"representation            {self.representation_bytes:,.0f} bytes",
            f"ratio of the kernels      {self.kernel_ratio:.2f}",
            f"ratio of the network      {self.network_ratio:.2f}",
        ]
        kinds = collections.defaultdict(list)
        for one in self.skipped:
            kinds[type(one.layer).__name__, one.reason].append(one)
        lines += [""] * bool(kinds)
        for (kind, reason), kept in kinds.items():
            names = kept[0].name if len(kept) == 1 else f"{len(kept)} layers"
            weights = sum(one.num_weights for one in kept)
            lines.append(f"kept: {kind}, {names}, {weights:,} weights ({reason})")
        return "\n".join(lines)


def summary_table(
    original: OriginalNetwork,
    predictor: KernelPredictor,
    permutation_bits: Sequence[float],
    scales: int,
) -> SummaryTable:
    """Counts a representation.

    Args:
        original: an `original.OriginalNetwork`.
        predictor: a built `KernelPredictor`.
        permutation_bits: bits of each kernel's permutation.
        scales: number of layer scales that are kept.

    Returns:
        A `SummaryTable`.
    """
    layers = [
        LayerRow(kernel.name, kernel.shape, math.prod(grid), kernel.num_weights, bits)
        for kernel, grid, bits in zip(
            original.blocks.kernels, original.blocks.grids, permutation_bits, strict=True
        )
    ]
    represented = sum(row.weights for row in layers)
    return SummaryTable(
        layers=layers,
        skipped=original.blocks.skipped,
        predictor_parameters=predictor.num_parameters,
        predictor_bytes=predictor.num_bytes,
        scales=scales,
        kept_weights=original.base.count_params() - represented,
    )
