"""How many bytes a predictor takes, and how wide it may be in so many.

For features of d numbers, a width h, n Dense layers and blocks of B weights

    kernel weights   d h + (n - 2) h^2 + h B
    units            (n - 1) h + B

A float predictor takes 4 bytes for each kernel weight and each unit's bias; one of b bits
(see `compression`) b / 8 for a weight, and 2 more for each unit's step. That is what
`report.SummaryTable` counts of a predictor that is built; here nothing need be.
"""

import bisect


def predictor_bytes(
    hidden_size: int,
    num_layers: int,
    block_length: int,
    features: int,
    bits: int | None = None,
) -> float:
    """The bytes of a predictor's Dense layers.

    Args:
        hidden_size: h.
        num_layers: n, at least 2.
        block_length: B.
        features: d, what the encoding gives for a coordinate.
        bits: of the kernels; `None` for floats. Defaults to `None`.

    Returns:
        As `predictor.KernelPredictor.num_bytes`, without weights of the encoding's own.

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
    """The largest width at which a predictor takes no more than so many bytes.

    Args:
        num_bytes: that are there for the predictor.
        num_layers, block_length, features, bits: as for `predictor_bytes`.

    Returns:
        h, or 0 where not even a width of 1 fits.

    Example:

    >>> max_width(469_156, num_layers=5, block_length=9, features=240)
    160
    """
    widths = range(1, max(1, int(num_bytes)) + 1)  # a unit takes more than a byte

    def size(hidden_size: int) -> float:
        return predictor_bytes(hidden_size, num_layers, block_length, features, bits)

    return bisect.bisect(widths, num_bytes, key=size)
