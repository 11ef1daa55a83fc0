"""The size of a predictor: from its shape to bytes, and from a budget to its shape.

A predictor with d features, width h, n Dense layers and blocks of B weights has

    kernel weights   d h + (n - 2) h^2 + h B
    units            (n - 1) h + B

Each unit has a bias of 4 bytes. A kernel weight takes 4 bytes as a float, or b / 8 bytes if it is
quantized to b bits; each unit then has a step size of 2 bytes. E local predictors have E times as
many kernel weights. They have no biases, and one step size per expert and layer.
"""

import bisect
import re
from typing import Any, NamedTuple

from keras_nern.predictor.quantization import largest_level
from keras_nern.predictor.runs import NUM_FREQUENCIES
from keras_nern.utils import checks

EXPERT_WIDTHS = range(28, 37)  # of the experts, if their number is chosen
NUM_LAYERS = {False: 5, True: 9}  # of one predictor, and of each of several experts
DEFAULT_SIZE = 0.4
DEFAULT_FEATURES = 240  # of PositionalEncoding
MIN_WIDTH = 8  # of a predictor of the default size
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def predictor_bytes(
    hidden_size: int,
    num_layers: int,
    block_length: int,
    features: int,
    bits: int | None = None,
    experts: int = 1,
) -> float:
    """Counts the bytes of a predictor's Dense layers.

    Args:
        hidden_size: h, width of the hidden layers.
        num_layers: n, number of Dense layers, at least 2.
        block_length: B, weights per block.
        features: d, features per coordinate or place.
        bits: bits per kernel weight; `None` for floats. Defaults to `None`.
        experts: E, number of experts. Defaults to `1`.

    Returns:
        The number of bytes, a float, excluding weights of the encoding.

    Example:

    >>> predictor_bytes(hidden_size=160, num_layers=5, block_length=9, features=240)
    469156.0
    """
    weights = experts * hidden_size * (features + (num_layers - 2) * hidden_size + block_length)
    units = (num_layers - 1) * hidden_size + block_length
    biases, step_sizes = (units, units) if experts == 1 else (0, experts * num_layers)
    if bits is None:
        return 4.0 * (weights + biases)
    return weights * bits / 8 + 4.0 * biases + 2.0 * step_sizes


def max_width(
    num_bytes: float,
    num_layers: int,
    block_length: int,
    features: int,
    bits: int | None = None,
    experts: int = 1,
) -> int:
    """Finds the largest width of a predictor that fits into a budget.

    Args:
        num_bytes: the budget in bytes.
        num_layers, block_length, features, bits, experts: as for `predictor_bytes`.

    Returns:
        The largest h with `predictor_bytes(h, ...) <= num_bytes`, or 0 if there is none.

    Example:

    >>> max_width(469_156, num_layers=5, block_length=9, features=240)
    160
    """
    widths = range(1, max(1, int(num_bytes)) + 1)  # each unit takes more than a byte

    def size(hidden_size: int) -> float:
        return predictor_bytes(hidden_size, num_layers, block_length, features, bits, experts)

    return bisect.bisect(widths, num_bytes, key=size)


def auto_experts(
    num_bytes: float, num_blocks: int, num_layers: int | None, block_length: int, bits: int | None
) -> int:
    """Chooses the number of experts for a budget.

    Each expert has a width in `EXPERT_WIDTHS`, so that the cost of a block is the same for all
    networks and budgets. Among these widths, the one that uses most of the budget is taken.

    Args:
        num_bytes: the budget in bytes.
        num_blocks: number of blocks to represent.
        num_layers: layers of an expert; `None` for the default.
        block_length, bits: as for `predictor_bytes`.

    Returns:
        The number of experts; 1 if the budget is less than that of two experts.
    """
    layers = num_layers or NUM_LAYERS[True]
    used = {}
    for width in EXPERT_WIDTHS:
        pair = predictor_bytes(width, layers, block_length, 2 * NUM_FREQUENCIES, bits, experts=2)
        experts = min(num_blocks, int(num_bytes // (pair / 2)))
        used[experts * pair / 2, experts] = experts
    experts = used[max(used)]
    return experts if experts > 1 else 1


class PredictorShape(NamedTuple):
    """Number of experts, width and number of layers of a predictor."""

    experts: int
    hidden_size: int
    num_layers: int


def choose_shape(
    num_blocks: int,
    num_weights: int,
    block_length: int,
    experts: int | str = "auto",
    hidden_size: int | None = None,
    num_layers: int | None = None,
    size: float | str | None = None,
    bits: int | None = None,
    features: int = DEFAULT_FEATURES,
    other_bytes: float = 0.0,
) -> PredictorShape:
    """Chooses the shape of a predictor.

    Args:
        num_blocks, num_weights: number of blocks and of weights to represent.
        block_length: B, weights per block.
        experts, hidden_size, num_layers, size, bits: as for `NeRNModel`.
        features: features of the encoding of a single predictor. Defaults to `240`, those of
            `PositionalEncoding`.
        other_bytes: bytes of the representation beside the predictor, which count if `size` is
            in bytes. Defaults to `0.0`.

    Returns:
        A `PredictorShape`.

    Raises:
        ValueError: if an argument is out of range, if `size` and `hidden_size` are both given,
            or if `size` is too small for any predictor.
    """
    count = None
    if not (isinstance(experts, str) and experts == "auto"):
        count = checks.integer("experts", experts, minimum=1)
    if bits is not None:
        largest_level(bits)  # raises for other numbers of bits
    if num_layers is not None:
        num_layers = checks.integer("num_layers", num_layers, minimum=2)
    if hidden_size is not None:
        if size is not None:
            raise ValueError(
                "Expected hidden_size or size. "
                f"Received: hidden_size={hidden_size!r}, size={size!r}"
            )
        hidden_size = checks.integer("hidden_size", hidden_size, minimum=1)
        count = count or 1
        return PredictorShape(count, hidden_size, num_layers or NUM_LAYERS[count > 1])
    budget = size_bytes(DEFAULT_SIZE if size is None else size, num_weights, bits, other_bytes)
    if count is None:
        count = auto_experts(budget, num_blocks, num_layers, block_length, bits)
    num_layers = num_layers or NUM_LAYERS[count > 1]
    features = 2 * NUM_FREQUENCIES if count > 1 else features
    arguments = (num_layers, block_length, features, bits, count)
    width = max_width(budget, *arguments)
    if size is None:
        width = max(width, MIN_WIDTH)
    if not width:
        smallest = predictor_bytes(1, *arguments)
        raise ValueError(
            f"size must leave at least {smallest:,.0f} bytes for the predictor. "
            f"Received: size={size!r}, which leaves {max(0, budget):,.0f}"
        )
    return PredictorShape(count, width, num_layers)


def size_bytes(
    size: float | str, num_weights: int, bits: int | None = None, other_bytes: float = 0.0
) -> float:
    """Converts a size to the bytes that a predictor may take.

    Args:
        size: a share of the represented weights, above 0, or bytes such as `"200 kB"`.
        num_weights: number of represented weights.
        bits: bits per kernel weight of the predictor; `None` for floats. Defaults to `None`.
        other_bytes: bytes beside the predictor, which bytes include and a share does not. Defaults
            to `0.0`.

    Returns:
        A number of bytes.

    Raises:
        ValueError: if `size` is neither a share nor bytes.

    Example:

    >>> size_bytes("200 kB", num_weights=270_576)
    200000.0
    """
    if not isinstance(size, str):
        share = checks.number("size", size, positive=True)
        return share * num_weights * (4 if bits is None else bits / 8)
    count = _bytes_of(size)
    if count is None:
        raise ValueError(
            f"size must be a share of the weights or bytes in one of {', '.join(UNITS)}, such as "
            f"'200 kB'. Received: size={size!r}"
        )
    return count - other_bytes


def byte_budget(name: str, value: Any) -> float:
    """Converts a budget to a number of bytes.

    Args:
        name: the argument's name, for the error.
        value: a number of bytes, above 0, or bytes in a unit such as `"200 kB"`.

    Raises:
        ValueError: if `value` is neither.

    Example:

    >>> byte_budget("max_bytes", "200 kB")
    200000.0
    """
    count = _bytes_of(value) if isinstance(value, str) else value
    if count is None:
        raise ValueError(
            f"{name} must be a number of bytes or bytes in one of {', '.join(UNITS)}, such as "
            f"'200 kB'. Received: {name}={value!r}"
        )
    return checks.number(name, count, positive=True)


def _bytes_of(text: str) -> float | None:
    """The bytes that a text such as `"200 kB"` stands for; `None` for another text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2] not in UNITS:
        return None
    return float(match[1]) * UNITS[match[2]]
