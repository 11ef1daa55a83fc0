"""Compressing a predictor's weights one after another, so that those left make up for it.

Rounding or pruning a Dense kernel W to W~ changes its outputs by (W~ - W)^T x. Of inputs with
the covariance H, the mean squared change beside that of the mean, which a bias takes back, is

    tr((W~ - W)^T H (W~ - W)),

and inputs of a predictor are anything but independent: neighbouring frequencies of the encoding
are nearly alike over a few indices. So the rows of W are rounded one by one, and after each the
error is made good, as far as can be, by the rows that are still to come. With U the upper
Cholesky factor of H^-1 = U^T U, rounding row i to w~ moves every row j > i by

    W[j] -= U[i, j] (W[i] - w~) / U[i, i].

This is GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), with its damping, a hundredth of H's
mean diagonal, and with the order of its code's option `act_order`: inputs that vary most come
first. Pruned weights are made good in the same way, as in SparseGPT (Frantar and Alistarh, ICML
2023, arXiv 2301.00774); which ones go is decided by magnitude, before.
"""

from collections.abc import Callable

import keras
import numpy as np

from keras_nern.predictor.compressed_dense import CompressedDense
from keras_nern.predictor.predictor import KernelPredictor, effective_kernel
from keras_nern.predictor.quantization import quantize
from keras_nern.utils.types import Tensor

DAMPING = 0.01  # of the covariance's mean diagonal
RIDGE = 1e-5  # likewise: what varies less is nothing
CHUNK = 8_192  # coordinates whose inputs are centred at once


def compress_into(
    copy: KernelPredictor, predictor: KernelPredictor, coordinates: Tensor, sparsity: float = 0.0
) -> None:
    """Gives a predictor with compressed kernels the weights of another.

    Layer by layer, with x the layer's inputs in the one and x~ those in the other, whose layers
    before it are compressed already. First the kernel W loses what does nothing: by ridge
    regression of (x - mean(x)) W on x - mean(x), weights of inputs that hardly vary, as the slowest
    frequencies, become 0 and cost next to nothing. Then it is refitted to x~ - mean(x~), by
    ridge regression with itself as the prior; it is pruned and rounded as above; and the
    layer's mean output stays, by a correction of its bias,

        b~ = mean(W^T x + b) - mean(W~^T x~).

    Means and covariances are weighted: the coordinates of a layer of the represented network
    count by 1 / sum of its squared weights, so that every layer's relative error does alike.

    Args:
        copy: a built `KernelPredictor` with `bits` or `pruned`, otherwise like `predictor`.
        predictor: a built `KernelPredictor`; it stays as it is. Where it is pruned, `copy` has
            to be, too, and is given its masks.
        coordinates: `(n, 3)`, integer (layer, filter, channel), of all kernels or many.
        sparsity: as for `KernelPredictor.compress`. Defaults to `0.0`.

    Raises:
        ValueError: where a weight of `predictor` is not finite.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", ICLR 2023, arXiv 2210.17323; the bias as Nagel et al., ICCV 2019,
    arXiv 1906.04721.
    """
    broken = predictor.not_finite()
    if broken:
        raise ValueError(
            "The predictor must have finite weights to be compressed. "
            f"Received: {broken[0]!r} with some that are not"
        )
    shares = _layers_alike(predictor, coordinates)
    x = keras.ops.cast(predictor.encoding(coordinates), "float32")
    y = keras.ops.cast(copy.encoding(coordinates), "float32")
    for layer, other in zip(predictor.layers, copy.layers, strict=True):
        kernel = keras.ops.convert_to_numpy(effective_kernel(layer))
        mean, own_mean, covariance, own, across = _statistics(x, y, shares)
        needed = np.linalg.solve(damped(covariance, RIDGE), covariance @ kernel)
        own_damped = damped(own, DAMPING)
        # the ridge's solution, with `needed` as the prior
        refitted = needed + np.linalg.solve(own_damped, across @ kernel - own @ needed)
        share = sparsity
        if getattr(layer, "mask", None) is not None:
            mask = keras.ops.convert_to_numpy(layer.mask)
            refitted, share = refitted * mask, float(np.mean(mask == 0))
        other.kernel.assign(refitted)
        other.compress(share)
        compressed = gptq_quantize(refitted, own_damped, _row_compressor(other))
        other.kernel.assign(compressed)
        bias = keras.ops.convert_to_numpy(layer.bias)
        other.bias.assign(bias + mean @ kernel - own_mean @ compressed)
        x, y = layer(x), other(y)


def _layers_alike(predictor: KernelPredictor, coordinates: Tensor) -> np.ndarray:
    """Of each coordinate its share of all, float64 `(n,)`; see `compress_into`."""
    layers = keras.ops.convert_to_numpy(coordinates)[:, 0]
    energies = (keras.ops.convert_to_numpy(predictor(coordinates)).astype("float64") ** 2).sum(1)
    by_layer = np.bincount(layers, energies)
    shares = 1 / np.where(by_layer > 0, by_layer, 1.0)[layers]
    return shares / shares.sum()


def _statistics(x: Tensor, y: Tensor, shares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means of x and of y, and with both centred E[x x^T], E[y y^T] and E[y x^T].

    Args:
        x, y: float32 tensors `(n, inputs)`.
        shares: of each row, float64 `(n,)`; they add up to 1.

    Returns:
        float64 arrays `(inputs,)` twice and `(inputs, inputs)` three times.
    """
    count, width = x.shape
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]

    def rows(tensor: Tensor, chunk: slice) -> np.ndarray:
        return keras.ops.convert_to_numpy(tensor[chunk]).astype("float64")

    x_mean, y_mean = (sum(shares[chunk] @ rows(t, chunk) for chunk in chunks) for t in (x, y))
    xx, yy, yx = np.zeros((3, width, width))
    for chunk in chunks:
        a, b = rows(x, chunk) - x_mean, rows(y, chunk) - y_mean
        weighted = b.T * shares[chunk]
        xx += (a.T * shares[chunk]) @ a
        yy += weighted @ b
        yx += weighted @ a
    return x_mean, y_mean, xx, yy, yx


def damped(covariance: np.ndarray, share: float) -> np.ndarray:
    """A covariance `(inputs, inputs)` that can be inverted: float64, with a share of its mean
    diagonal added.
    """
    covariance = np.asarray(covariance, "float64")
    damping = share * np.trace(covariance) / len(covariance)
    # inputs that are all constant say nothing of what any weight does
    return covariance + (damping or 1.0) * np.eye(len(covariance))


def gptq_quantize(
    kernel: np.ndarray,
    covariance: np.ndarray,
    compress_row: Callable[[int, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Compresses a kernel row by row; each row's error is passed on to those after it.

    Args:
        kernel: `(inputs, units)`.
        covariance: of the inputs, `(inputs, inputs)`, positive definite.
        compress_row: from the number of an input and its weights `(units,)`, as they are by
            then, to those that it is to have.

    Returns:
        float32 array `(inputs, units)`, of the rows that `compress_row` gave.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    inverse = np.linalg.inv(covariance[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T  # upper
    weights = np.asarray(kernel, "float64")[order]
    compressed = np.empty(kernel.shape, "float32")
    for i, row in enumerate(order):
        compressed[row] = compress_row(int(row), weights[i])
        error = (weights[i] - compressed[row]) / factor[i, i]
        weights[i + 1 :] -= factor[i, i + 1 :, None] * error
    return compressed


def _row_compressor(layer: CompressedDense) -> Callable[[int, np.ndarray], np.ndarray]:
    """What a layer's mask and step_sizes make of a row."""
    mask = None if layer.mask is None else keras.ops.convert_to_numpy(layer.mask)
    step_sizes = None if layer.step_sizes is None else keras.ops.convert_to_numpy(layer.step_sizes)

    def compress_row(number: int, row: np.ndarray) -> np.ndarray:
        if mask is not None:
            row = row * mask[number]
        if layer.bits is not None and step_sizes is not None:
            row = quantize(row[None], layer.bits, step_sizes).values()[0]
        return row

    return compress_row
