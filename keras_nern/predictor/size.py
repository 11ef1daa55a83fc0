"""The size of a predictor in bytes, and the largest width that fits into a budget.

A predictor with d features, width h, n Dense layers and blocks of B weights has

    kernel weights   d h + (n - 2) h^2 + h B
    units            (n - 1) h + B

Each unit has a bias of 4 bytes. A kernel weight takes 4 bytes as a float, or b / 8 bytes if it is
quantized to b bits; each unit then has a step size of 2 bytes.
"""

import bisect


def predictor_bytes(
    hidden_size: int,
    num_layers: int,
    block_length: int,
    features: int,
    bits: int | None = None,
) -> float:
    """Counts the bytes of a predictor's Dense layers.

    Args:
        hidden_size: h, width of the hidden layers.
        num_layers: n, number of Dense layers, at least 2.
        block_length: B, weights per block.
        features: d, features per coordinate that the encoding returns.
        bits: bits per kernel weight; `None` for floats. Defaults to `None`.

    Returns:
        The number of bytes, a float, excluding weights of the encoding.

    Example:

    >>> predictor_bytes(hidden_size=160, num_layers=5, block_length=9, features=240)
    469156.0
    """
    weights = hidden_size * (features + (num_layers - 2) * hidden_size + block_length)
    units = (num_layers - 1) * hidden_size + block_length
    if bits is None:
        return 4.0 * (weights + units)
    return weights * bits / 8 + units * (4.0 + 2.0)


def max_width(
    num_bytes: float,
    num_layers: int,
    block_length: int,
    features: int,
    bits: int | None = None,
) -> int:
    """Finds the largest width of a predictor that fits into a budget.

    Args:
        num_bytes: the budget in bytes.
        num_layers, block_length, features, bits: as for `predictor_bytes`.

    Returns:
        The largest h with `predictor_bytes(h, ...) <= num_bytes`, or 0 if there is none.

    Example:

    >>> max_width(469_156, num_layers=5, block_length=9, features=240)
    160
    """
    widths = range(1, max(1, int(num_bytes)) + 1)  # each unit takes more than a byte

    def size(hidden_size: int) -> float:
        return predictor_bytes(hidden_size, num_layers, block_length, features, bits)

    return bisect.bisect(widths, num_bytes, key=size)
