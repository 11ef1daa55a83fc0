"""A smaller predictor: pruned and quantised, the paper's *meta-compression*.

A predictor is a network like another, and can itself be compressed (Ashkenazi et al., ICLR
2023, the second application): the smallest weights of each Dense layer are set to zero, the
others become integers of a few bits (see `quantization`), in such a way that what it does to
one weight is made good by others and by the biases (see `gptq`). The rest a short fit makes
good, in which the predictor learns with its kernels as they are kept (`compressed_dense`).
"""

import numbers

from keras_nern.model import NeRNModel
from keras_nern.predictor.gptq import compress_into


def compress(nern: NeRNModel, bits: int | None = None, sparsity: float = 0.0) -> NeRNModel:
    """Compresses the predictor of a trained representation.

    Args:
        nern: a `NeRNModel` whose predictor is not compressed yet; it stays as it is.
        bits: of the kernels, 2 to 8; `None` to leave them floats. Defaults to `None`.
        sparsity: share of each kernel's weights to set to zero, in [0, 1). Defaults to
            `0.0`.

    Returns:
        A `NeRNModel` of the same base, compiled as `nern` is. What of the reconstruction
        phase is done for `nern` counts as done, so that `fit(images)` goes on to distil.

    Raises:
        ValueError: for other bits or sparsities, nothing to do, or a predictor that is
            compressed already.

    Example:

    >>> small = keras_nern.compress(nern, bits=7)
    >>> history = small.fit(images, epochs=1)  # with its kernels at 7 bits
    >>> small.export("small.nern")

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """
    if not isinstance(nern, NeRNModel):
        raise ValueError(f"nern must be a NeRNModel. Received: {nern!r}")
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1). Received: sparsity={sparsity!r}")
    if bits is None and not sparsity:
        raise ValueError("Expected bits, a sparsity, or both. Received: bits=None, sparsity=0")
    if nern.bits is not None or nern.pruned:
        raise ValueError(
            "The predictor must not be compressed already: compress the one it was made from. "
            f"Received: one with bits={nern.bits!r}, pruned={nern.pruned!r}"
        )
    small = nern._with_predictor(bits, sparsity > 0)
    compress_into(small.predictor, nern.predictor, small._some_coordinates(), sparsity)
    return small
