"""What a user would do instead to make a network's kernels small, for the benchmarks.

Each codec takes float32 kernels `{layer: (kh, kw, cin, cout)}` and gives back the bytes
that it takes to keep them and the kernels that come out of these. Whatever it writes goes
through Zstandard at its highest level. That all layers' names and shapes are known from
the architecture is taken for granted, and counted for none.
"""

import json
import pathlib
import subprocess
import tempfile

import numpy as np

LEVEL = 22  # Zstandard's highest
NNCODEC = pathlib.Path(__file__).with_name("nncodec_worker.py")


def compressed(*arrays):
    """Bytes of arrays after Zstandard, each on its own, as a safetensors file has them."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=LEVEL)
    return sum(len(compressor.compress(np.ascontiguousarray(a).tobytes())) for a in arrays)


def float16(kernels):
    """Halves."""
    halves = {name: kernel.astype("float16") for name, kernel in kernels.items()}
    rounded = {name: half.astype("float32") for name, half in halves.items()}
    return compressed(*halves.values()), rounded


def integers(kernels, bits):
    """Integers of some bits, with a float16 step for each output channel.

    Steps are chosen as for our own predictors (`keras_nern.predictor.quantization`), by the least
    squared error. Levels are tried as bytes and, at 4 bits or fewer, as two to a byte;
    the smaller counts.
    """
    from keras_nern.predictor.quantization import quantize

    size, rounded = 0, {}
    for name, kernel in kernels.items():
        flat = kernel.reshape(-1, kernel.shape[-1])
        quantized = quantize(flat, bits)
        size += _levels_bytes(quantized.levels, bits) + compressed(quantized.steps)
        rounded[name] = quantized.values().reshape(kernel.shape)
    return size, rounded


def pruned(kernels, sparsity, bits=None):
    """The smallest weights of the whole network set to zero, the others halves or integers."""
    magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
    threshold = np.quantile(magnitudes, sparsity)
    sparse = {
        name: np.where(np.abs(kernel) < threshold, np.float32(0), kernel)
        for name, kernel in kernels.items()
    }
    if bits is not None:
        return integers(sparse, bits)
    size = 0
    for kernel in sparse.values():
        bitmap = np.packbits(kernel != 0)
        whole = compressed(kernel.astype("float16"))
        size += min(whole, compressed(bitmap, kernel[kernel != 0].astype("float16")))
    return size, {
        name: kernel.astype("float16").astype("float32") for name, kernel in sparse.items()
    }


def clustered(kernels, clusters):
    """Each layer's weights as numbers of a float16 codebook that k-means finds for it."""
    from sklearn.cluster import KMeans

    size, rounded = 0, {}
    for name, kernel in kernels.items():
        weights = kernel.reshape(-1, 1)
        # evenly spread over the sorted weights: always the same codebook
        start = np.quantile(weights, (np.arange(clusters) + 0.5) / clusters)[:, None]
        means = KMeans(clusters, init=start, n_init=1, max_iter=100).fit(weights)
        codebook = means.cluster_centers_.astype("float16")
        numbers = means.labels_.astype("uint8")
        bits = int(np.ceil(np.log2(clusters)))
        size += _levels_bytes(numbers, bits) + compressed(codebook)
        rounded[name] = codebook.astype("float32")[numbers].reshape(kernel.shape)
    return size, rounded


def nncodec(kernels, parameter, python):
    """The reference codec of the NNC standard (ISO/IEC 15938-17), in an environment of its own.

    Args:
        kernels: as for all.
        parameter: its quantisation parameter, `qp`; -38 is its own default.
        python: interpreter of an environment that has the package `nncodec`.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # its layout is PyTorch's: output channels first
        oihw = {name: kernel.transpose(3, 2, 0, 1) for name, kernel in kernels.items()}
        np.savez(folder / "kernels.npz", **oihw)
        subprocess.run(
            [python, NNCODEC, folder, str(parameter)], check=True, stdout=subprocess.DEVNULL
        )
        size = json.loads((folder / "size.json").read_text())
        with np.load(folder / "decoded.npz") as decoded:
            rounded = {name: decoded[name].transpose(2, 3, 1, 0) for name in kernels}
    return size, rounded


def _levels_bytes(levels, bits):
    """Small integers after Zstandard: as bytes, or two to a byte where that is smaller."""
    levels = levels.astype("uint8").ravel()
    size = compressed(levels)
    if bits <= 4:
        nibbles = np.append(levels, np.zeros(len(levels) % 2, "uint8")) & 0xF
        size = min(size, compressed(nibbles[::2] << 4 | nibbles[1::2]))
    return size
