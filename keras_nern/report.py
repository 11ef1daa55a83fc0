"""The size of a representation, layer by layer.

Let R be the number of represented weights, K the number of weights that are kept unchanged, P the
size of the predictor in bytes, B the size of the permutation and of the residual in bits, and S the
number of layer scales. Weights and scales are 4-byte floats:

    ratio of the kernels  =  4 R / (P + 4 S + B / 8)
    ratio of the network  =  4 (R + K) / (P + 4 S + B / 8 + 4 K)

If a ratio is above 1, the representation is smaller. A predictor's weights are 4-byte floats unless
they are quantized (see `compress`). An exported file can be smaller still, because it is entropy
coded (see `artifact.codec`).
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from keras_nern.network.original import OriginalNetwork
from keras_nern.network.selection import SkippedLayer
from keras_nern.predictor.null import NullPredictor
from keras_nern.predictor.predictor import Predictor
from keras_nern.predictor.residual import Residual
from keras_nern.utils.tables import Printable, Table


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """Name, shape, blocks, weights, and bits of the permutation and the residual of a kernel."""

    name: str
    shape: tuple[int, ...]
    blocks: int
    weights: int
    permutation_bits: float
    residual_bits: float = 0.0


@dataclasses.dataclass(frozen=True)
class SummaryTable(Printable):
    """The sizes of a representation and of the network that it represents; prints as a table.

    Attributes:
        layers: list of `LayerRow`.
        skipped: list of `selection.SkippedLayer`: layers that are not represented, and why.
        experts, num_layers, hidden_size: shape of the predictor, see `NeRNModel`.
        predictor_parameters: number of weights of the predictor.
        predictor_bytes: size of the predictor, see `KernelPredictor.num_bytes`.
        scales: number of layer scales that are stored.
        kept_weights: number of all other weights of the base, such as batch normalizations and
            biases.
        left_out: dict from names of layers whose feature maps distillation does not compare to the
            reasons; empty until a fit or an evaluation has run the base on images.
        coarse: dict from names of kernels for which the curvature loss has no Kronecker factors to
            what it takes instead; empty until the curvature has been gathered.
    """

    layers: list[LayerRow]
    skipped: list[SkippedLayer]
    experts: int
    num_layers: int
    hidden_size: int
    predictor_parameters: int
    predictor_bytes: float
    scales: int
    kept_weights: int
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    coarse: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Number of represented blocks."""
        return sum(row.blocks for row in self.layers)

    @property
    def weights(self) -> int:
        """Number of represented weights."""
        return sum(row.weights for row in self.layers)

    @property
    def permutation_bits(self) -> float:
        """Bits of all permutations."""
        return sum(row.permutation_bits for row in self.layers)

    @property
    def residual_bits(self) -> float:
        """Entropy of the residual in bits; 0 if there is none."""
        return sum(row.residual_bits for row in self.layers)

    @property
    def representation_bytes(self) -> float:
        """Bytes of predictor, scales, permutations and residual."""
        bits = self.permutation_bits + self.residual_bits
        return self.predictor_bytes + 4 * self.scales + bits / 8

    @property
    def kernel_ratio(self) -> float:
        """Bytes of the represented weights, divided by the bytes of their representation."""
        size = self.representation_bytes
        return 4 * self.weights / size if size else math.inf

    @property
    def network_ratio(self) -> float:
        """Bytes of the network, divided by the bytes of representation and kept weights."""
        kept = 4 * self.kept_weights
        return (4 * self.weights + kept) / (self.representation_bytes + kept)

    def to_dict(self) -> dict[str, Any]:
        """All attributes and totals as JSON-serializable values."""
        counts = (
            "experts",
            "num_layers",
            "hidden_size",
            "predictor_parameters",
            "predictor_bytes",
            "scales",
            "kept_weights",
        )
        totals = ("blocks", "weights", "permutation_bits", "residual_bits", "representation_bytes")
        ratios = ("kernel_ratio", "network_ratio")
        return {
            "layers": [dataclasses.asdict(row) | {"shape": list(row.shape)} for row in self.layers],
            "skipped": [
                {
                    "name": one.name,
                    "kind": type(one.layer).__name__,
                    "weights": one.num_weights,
                    "reason": one.reason,
                }
                for one in self.skipped
            ],
            "left_out": dict(self.left_out),
            "coarse": dict(self.coarse),
            **{name: getattr(self, name) for name in (*counts, *totals, *ratios)},
        }

    def tables(self) -> list[Table]:
        columns = ["blocks", "weights", "permutation_bits"]
        if self.residual_bits:
            columns.append("residual_bits")
        rows = [
            (row.name, "x".join(map(str, row.shape)), *(getattr(row, name) for name in columns))
            for row in self.layers
        ]
        rows.append(("total", "", *(getattr(self, name) for name in columns)))
        tables = [
            Table(
                [[*row[:2], *(f"{count:,.0f}" for count in row[2:])] for row in rows],
                header=("layer", "kernel shape", *(name.replace("_", " ") for name in columns)),
                align="llr",
                footer=True,
            ),
            Table(
                [
                    ("predictors", f"{self.experts} of {self.num_layers} x {self.hidden_size}"),
                    ("predictor parameters", f"{self.predictor_parameters:,}"),
                    ("predictor bytes", f"{self.predictor_bytes:,.0f}"),
                    ("layer scales", f"{self.scales:,}"),
                    ("kept weights", f"{self.kept_weights:,}"),
                    ("representation bytes", f"{self.representation_bytes:,.0f}"),
                    ("ratio of the kernels", f"{self.kernel_ratio:.2f}"),
                    ("ratio of the network", f"{self.network_ratio:.2f}"),
                ],
                align="lr",
            ),
        ]
        kinds = collections.defaultdict(list)
        for one in self.skipped:
            kinds[type(one.layer).__name__, one.reason].append(one)
        if kinds:
            skipped = [
                (
                    kind,
                    layers[0].name if len(layers) == 1 else f"{len(layers)} layers",
                    f"{sum(one.num_weights for one in layers):,}",
                    reason,
                )
                for (kind, reason), layers in kinds.items()
            ]
            header = ("not represented", "layer", "weights", "reason")
            tables.append(Table(skipped, header=header, align="llrl"))
        if self.left_out:
            left_out = list(self.left_out.items())
            tables.append(Table(left_out, header=("feature map left out", "reason")))
        if self.coarse:
            names = ("curvature without factors", "taken instead")
            coarse = list(self.coarse.items())
            tables.append(Table(coarse, header=names))
        return tables


def summary_table(
    original: OriginalNetwork,
    predictor: Predictor | NullPredictor,
    permutation_bits: Sequence[float],
    scales: int,
    coarse: dict[str, str] | None = None,
    residual: Residual | None = None,
) -> SummaryTable:
    """Counts the weights, bits and bytes of a representation.

    Args:
        original: the base.
        predictor: a built predictor.
        permutation_bits: bits of each kernel's permutation.
        scales: number of layer scales that are stored.
        coarse: see `SummaryTable`. Defaults to `None`.
        residual: the residual, or `None`. Defaults to `None`.

    Returns:
        A `SummaryTable`.
    """
    blocks = original.blocks
    residual_bits = [0.0] * len(blocks.kernels) if residual is None else residual.layer_bits()
    layers = [
        LayerRow(kernel.name, kernel.shape, math.prod(grid), kernel.num_weights, *bits)
        for kernel, grid, *bits in zip(
            blocks.kernels, blocks.grids, permutation_bits, residual_bits, strict=True
        )
    ]
    return SummaryTable(
        layers=layers,
        skipped=original.blocks.skipped,
        experts=predictor.experts,
        num_layers=predictor.num_layers,
        hidden_size=predictor.hidden_size,
        predictor_parameters=predictor.num_parameters,
        predictor_bytes=predictor.num_bytes,
        scales=scales,
        kept_weights=original.base.count_params() - sum(row.weights for row in layers),
        left_out=original.left_out,
        coarse=coarse or {},
    )
