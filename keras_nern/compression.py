"""Compression of the predictor, the paper's *meta-compression*.

A predictor is itself a network that can be compressed (Ashkenazi et al., ICLR 2023, the second
application). The smallest weights of each Dense layer are set to zero and the others are rounded to
integers of a few bits (`predictor.quantization`). Weights that are not yet rounded and the biases
compensate for the errors (`predictor.gptq`). A short fit corrects most of the remaining error: it
trains the predictor with the kernels that a compact file stores (`predictor.compressed_dense`).
"""

from keras_nern.model import NeRNModel
from keras_nern.predictor.gptq import compress_into
from keras_nern.utils import checks


def compress(nern: NeRNModel, bits: int | None = None, sparsity: float = 0.0) -> NeRNModel:
    """Compresses the predictor of a trained representation.

    Args:
        nern: a `NeRNModel` whose predictor is not compressed; it is not changed.
        bits: bits per weight of the Dense kernels, 2 to 8; `None` for floats. Defaults to `None`.
        sparsity: fraction of each kernel's weights to set to zero, in [0, 1). Defaults to `0.0`.

    Returns:
        A `NeRNModel` of the same base, compiled as `nern` is. The reconstruction steps of `nern`
        count as done, so `fit(images)` continues with distillation.

    Raises:
        ValueError: if `bits` or `sparsity` is out of range, if both are missing, or if the
            predictor is already compressed.

    Example:

    >>> small = keras_nern.compress(nern, bits=7)
    >>> history = small.fit(images, epochs=1)  # with kernels of 7 bits
    >>> small.export("small.nern")

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """
    if not isinstance(nern, NeRNModel):
        raise ValueError(f"nern must be a NeRNModel. Received: {nern!r}")
    checks.share("sparsity", sparsity, with_one=False)
    if bits is None and not sparsity:
        raise ValueError("Expected bits, a sparsity, or both. Received: bits=None, sparsity=0")
    if nern.bits is not None or nern.pruned:
        raise ValueError(
            "nern must have a predictor that is not compressed: compress the original model again "
            f"instead. Received: bits={nern.bits!r}, pruned={nern.pruned!r}"
        )
    small = nern._with_predictor(bits=bits, pruned=sparsity > 0)
    inputs = nern._representation.sample_inputs()
    layers = nern._representation.input_layers(inputs)
    compress_into(small.predictor, nern.predictor, inputs, layers, sparsity)
    return small
