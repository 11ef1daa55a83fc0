"""Other ways to compress the kernels of a network, for `rate_distortion.py`.

Every codec takes float32 kernels `{layer: (kh, kw, cin, cout)}` and returns `(size, decoded)`: the
bytes of the compressed kernels, and the float32 kernels that a decoder would return. All output is
compressed with Zstandard at its highest level. Names and shapes of the layers are known from the
architecture and do not count.
"""

import json
import pathlib
import subprocess
import tempfile

import numpy as np

from keras_nern.predictor.quantization import choose_step_sizes, quantize
from keras_nern.predictor.residual import exponents_of, step_sizes_of

ZSTANDARD_LEVEL = 22  # the highest
NNCODEC = pathlib.Path(__file__).with_name("nncodec_worker.py")


def compressed(*arrays):
    """The bytes of arrays after Zstandard, each compressed by itself."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=ZSTANDARD_LEVEL)
    return sum(len(compressor.compress(np.ascontiguousarray(a).tobytes())) for a in arrays)


def float16(kernels):
    """Rounds the weights to float16."""
    halves = {name: kernel.astype("float16") for name, kernel in kernels.items()}
    return compressed(*halves.values()), _to_float32(halves)


def integers(kernels, bits):
    """Rounds the weights to integers, with a float16 step size per output channel.

    Step sizes minimize the squared error, as for our predictors
    (`keras_nern.predictor.quantization`). Integers of up to 4 bits are stored one or two per byte,
    whichever is smaller, larger ones one per byte.
    """
    size, decoded = 0, {}
    for name, kernel in kernels.items():
        quantized = quantize(kernel.reshape(-1, kernel.shape[-1]), bits)
        size += _integers_size(quantized.levels, bits) + compressed(quantized.step_sizes)
        decoded[name] = quantized.values().reshape(kernel.shape)
    return size, decoded


def pruned(kernels, sparsity, bits=None):
    """Sets the smallest weights of the whole network to zero.

    The others become integers of `bits` bits, or float16 if `bits` is `None`. Zeros are stored
    like other weights or in a bitmap, whichever is smaller.
    """
    magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
    threshold = np.quantile(magnitudes, sparsity)
    sparse = {
        name: np.where(np.abs(kernel) < threshold, np.float32(0), kernel)
        for name, kernel in kernels.items()
    }
    if bits is not None:
        return integers(sparse, bits)
    halves = {name: kernel.astype("float16") for name, kernel in sparse.items()}
    size = 0
    for name, kernel in sparse.items():
        nonzero = kernel != 0
        with_bitmap = compressed(np.packbits(nonzero), halves[name][nonzero])
        size += min(compressed(halves[name]), with_bitmap)
    return size, _to_float32(halves)


def clustered(kernels, clusters):
    """Replaces the weights of each layer by the entries of a float16 codebook from k-means."""
    from sklearn.cluster import KMeans

    bits = int(np.ceil(np.log2(clusters)))
    size, decoded = 0, {}
    for name, kernel in kernels.items():
        weights = kernel.reshape(-1, 1)
        # starts at evenly spaced quantiles, so that the codebook is always the same
        start = np.quantile(weights, (np.arange(clusters) + 0.5) / clusters)[:, None]
        means = KMeans(clusters, init=start, n_init=1, max_iter=100).fit(weights)
        codebook = means.cluster_centers_.astype("float16")
        indices = means.labels_.astype("uint8")
        size += _integers_size(indices, bits) + compressed(codebook)
        decoded[name] = codebook.astype("float32")[indices].reshape(kernel.shape)
    return size, decoded


def set_nearest_integers(small, bits):
    """Sets the integers of a residual as quantization to a number of bits does.

    Every filter has the step size of the least squared error, rounded to a quarter of an octave.

    Args:
        small: a `NeRNModel` with a residual and no predictor, which is changed: bits no longer
            count in its loss.
        bits: bits per weight, from 2 to 8.
    """
    integers, exponents = [], []
    for shape, kernel in zip(
        small.residual_layer.shapes, small.original_kernels().values(), strict=True
    ):
        kernel = kernel.reshape(shape)  # convolutions of one group
        steps = choose_step_sizes(kernel[0], bits).astype("float64")
        exponents.append(exponents_of(steps.reshape(1, 1, -1)))
        top = 2 ** (bits - 1) - 1
        nearest = np.rint(kernel / step_sizes_of(exponents[-1]))
        integers.append(np.clip(nearest, -top, top))
    small.residual_layer.assign(integers, exponents)
    small.residual_layer.rate_weight.assign(0.0)


def nncodec(kernels, parameter, python):
    """Runs the reference codec of the NNC standard (ISO/IEC 15938-17).

    Args:
        kernels: float32 arrays `(kh, kw, cin, cout)` by name.
        parameter: the codec's quantization parameter `qp`; its own default is -38.
        python: Python interpreter of an environment with the package `nncodec`.

    Returns:
        `(size, decoded)`.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # PyTorch's layout: output channels first
        oihw = {name: kernel.transpose(3, 2, 0, 1) for name, kernel in kernels.items()}
        np.savez(folder / "kernels.npz", **oihw)
        subprocess.run(
            [python, NNCODEC, folder, str(parameter)], check=True, stdout=subprocess.DEVNULL
        )
        size = json.loads((folder / "size.json").read_text())
        with np.load(folder / "decoded.npz") as arrays:
            decoded = {name: arrays[name].transpose(2, 3, 1, 0) for name in kernels}
    return size, decoded


def _to_float32(halves):
    return {name: half.astype("float32") for name, half in halves.items()}


def _integers_size(integers, bits):
    """The bytes of small integers, stored as bytes or, if smaller, as two per byte."""
    integers = integers.astype("uint8").ravel()
    size = compressed(integers)
    if bits <= 4:
        nibbles = np.append(integers, np.zeros(len(integers) % 2, "uint8")) & 0xF
        size = min(size, compressed(nibbles[::2] << 4 | nibbles[1::2]))
    return size
