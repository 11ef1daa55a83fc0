"""GPTQ: compresses a predictor's weights row by row and corrects later rows for each error.

Rounding or pruning a Dense kernel W to W~ changes the outputs by (W~ - W)^T x. The bias can
correct the mean of this change. If H is the covariance of x, the mean square of the rest is

    tr((W~ - W)^T H (W~ - W)).

The inputs of a predictor's layers are strongly correlated: neighboring frequencies of the encoding
are almost equal over a few indices. GPTQ therefore rounds the rows of W one at a time and lets the
remaining rows compensate for each error. Let U be the upper Cholesky factor of H^-1 = U^T U.
Rounding row i to w~ updates every later row j by

    W[j] -= U[i, j] (W[i] - w~) / U[i, i].

The method, and the damping of 1 percent of H's mean diagonal, are those of Frantar et al., ICLR
2023, arXiv 2210.17323. Rows are rounded in the order of the option `act_order` of the paper's code:
inputs with the largest variance first. The errors of pruned weights are compensated in the same
way, as in SparseGPT (Frantar and Alistarh, ICML 2023, arXiv 2301.00774). The weights to prune are
chosen by magnitude before the first row is rounded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_nern.predictor.compressed_dense import Compressible
from keras_nern.predictor.predictor import Predictor
from keras_nern.predictor.quantization import quantize
from keras_nern.utils.types import Tensor

DAMPING = 0.01  # fraction of the covariance's mean diagonal
RIDGE = 1e-5  # likewise for ridge regression; inputs with a smaller variance count as constant
CHUNK = 8_192  # coordinates that are converted to float64 at once


def compress_into(
    copy: Predictor,
    predictor: Predictor,
    inputs: Tensor,
    input_layers: np.ndarray,
    sparsity: float = 0.0,
) -> None:
    """Compresses the weights of a predictor into a copy.

    The layers are compressed in order. Let x be a layer's inputs in `predictor` and x~ its inputs
    in `copy`, whose previous layers are compressed already. For each layer:

    1. Ridge regression of W^T (x - mean(x)) on x - mean(x) sets the weights of nearly constant
       inputs, such as the slowest frequencies, to about 0, where they cost few bytes.
    2. Ridge regression on x~ - mean(x~), with the kernel of step 1 as the prior, fits the kernel
       to the compressed inputs.
    3. The kernel is pruned by magnitude, and GPTQ rounds it.
    4. The bias restores the mean output: b~ = mean(W^T x + b) - mean(W~^T x~).

    The experts of local predictors are compressed one by one. They have no biases, so their second
    moments take the place of covariances, and step 4 is left out.

    Means and covariances weight each input by 1 / (sum of squared weights of its layer in
    the represented network), so that the relative errors of all layers count equally.

    Args:
        copy: a built predictor with `bits` or `pruned`, otherwise like `predictor`. If
            `predictor` is pruned, `copy` must be as well; its masks then become equal to those of
            `predictor`.
        predictor: a built `KernelPredictor` or `LocalPredictor`, which is not changed.
        inputs, input_layers: see `Representation.sample_inputs` and `input_layers`.
        sparsity: fraction of the weights to prune in each layer, in [0, 1); ignored if
            `predictor` is pruned. Defaults to `0.0`.

    Raises:
        ValueError: if a weight of `predictor` is not finite.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", ICLR 2023, arXiv 2210.17323; bias correction as in Nagel et al., ICCV 2019,
    arXiv 1906.04721.
    """
    not_finite = predictor.not_finite()
    if not_finite:
        raise ValueError(
            "The predictor must have finite weights to be compressed. "
            f"Received: {not_finite[0]!r} with infinite or NaN entries"
        )
    weights = _input_weights(predictor, inputs, input_layers)
    x, y = (keras.ops.cast(one.features(inputs), "float32") for one in (predictor, copy))
    for layer, other in zip(predictor.layers, copy.layers, strict=True):
        kernels = _stacked(layer.effective_kernel, 2)
        masks: Any = [None] * len(kernels)
        if layer.mask is not None:
            masks = _stacked(layer.mask, 2)
        found = [
            _refit(*pair, mean_free=layer.bias is not None)
            for pair in zip(kernels, masks, _stacked(x, 2), _stacked(y, 2), weights, strict=True)
        ]
        other.kernel.assign(np.reshape([one.kernel for one in found], layer.kernel.shape))
        if layer.mask is not None:
            sparsity = float(np.mean(np.equal(masks, 0)))
        other.compress(sparsity)
        compressed = [
            gptq_quantize(one.kernel, one.covariance, _row_compressor(other, index))
            for index, one in enumerate(found)
        ]
        other.kernel.assign(np.reshape(compressed, layer.kernel.shape))
        if layer.bias is not None:
            bias = keras.ops.convert_to_numpy(layer.bias)
            shift = found[0].x_mean @ kernels[0] - found[0].y_mean @ compressed[0]
            other.bias.assign(bias + shift)
        x, y = layer(x), other(y)


class _Refitted(NamedTuple):
    """A kernel after steps 1 and 2, the damped covariance of its inputs, and their means."""

    kernel: np.ndarray
    covariance: np.ndarray
    x_mean: np.ndarray
    y_mean: np.ndarray


def _refit(
    kernel: np.ndarray,
    mask: np.ndarray | None,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    mean_free: bool,
) -> _Refitted:
    """Steps 1 and 2 of `compress_into` for one MLP: `x` and `y` are `(n, inputs)`."""
    x_mean, y_mean, xx, yy, yx = _statistics(x, y, weights, mean_free)
    prior = np.linalg.solve(damped(xx, RIDGE), xx @ kernel)
    covariance = damped(yy, DAMPING)
    refitted = prior + np.linalg.solve(covariance, yx @ kernel - yy @ prior)
    if mask is not None:
        refitted = refitted * mask
    return _Refitted(refitted, covariance, x_mean, y_mean)


def _stacked(value: Tensor, rank: int) -> np.ndarray:
    """An array with a leading axis of experts, of length 1 for a single predictor."""
    array = keras.ops.convert_to_numpy(value)
    return array if array.ndim > rank else array[None]


def _input_weights(predictor: Predictor, inputs: Tensor, layers: np.ndarray) -> np.ndarray:
    """Weights of the inputs that sum to 1 for each expert, float64 `(experts, n)`."""
    blocks = keras.ops.convert_to_numpy(predictor(inputs)).astype("float64")
    energies = np.bincount(layers.ravel(), (blocks**2).sum(axis=-1).ravel())  # (layers,)
    weights = 1 / np.where(energies > 0, energies, 1.0)[layers]
    return _stacked(weights / weights.sum(axis=-1, keepdims=True), 1)


def _statistics(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, mean_free: bool
) -> tuple[np.ndarray, ...]:
    """Computes weighted means and covariances.

    Args:
        x, y: float32 arrays `(n, inputs)`.
        weights: weights of the rows that sum to 1, float64 `(n,)`.
        mean_free: whether to subtract the means; otherwise they are 0.

    Returns:
        The means of x and y, float64 `(inputs,)`, followed by E[x x^T], E[y y^T] and E[y x^T] of
        the centered x and y, float64 `(inputs, inputs)`.
    """
    count, width = x.shape
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]

    def rows(array: np.ndarray, chunk: slice) -> np.ndarray:
        return array[chunk].astype("float64")

    x_mean, y_mean = np.zeros((2, width))
    if mean_free:
        x_mean, y_mean = (sum(weights[chunk] @ rows(t, chunk) for chunk in chunks) for t in (x, y))
    xx, yy, yx = np.zeros((3, width, width))
    for chunk in chunks:
        a, b = rows(x, chunk) - x_mean, rows(y, chunk) - y_mean
        weighted = b.T * weights[chunk]
        xx += (a.T * weights[chunk]) @ a
        yy += weighted @ b
        yx += weighted @ a
    return x_mean, y_mean, xx, yy, yx


def damped(covariance: np.ndarray, fraction: float) -> np.ndarray:
    """Adds a fraction of a covariance's mean diagonal to its diagonal.

    Args:
        covariance: array `(inputs, inputs)`.
        fraction: fraction of the mean diagonal to add.

    Returns:
        float64 array `(inputs, inputs)`, positive definite; the identity if all inputs are
        constant.
    """
    covariance = np.asarray(covariance, "float64")
    damping = fraction * np.trace(covariance) / len(covariance)
    return covariance + (damping or 1.0) * np.eye(len(covariance))


def gptq_quantize(
    kernel: np.ndarray,
    covariance: np.ndarray,
    compress_row: Callable[[int, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Compresses a kernel row by row and lets later rows compensate for each row's error.

    Args:
        kernel: array `(inputs, units)`.
        covariance: covariance of the inputs, `(inputs, inputs)`, positive definite.
        compress_row: function of a row's index and its current weights `(units,)` that returns
            its final weights `(units,)`.

    Returns:
        float32 array `(inputs, units)` of the rows that `compress_row` returned.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    inverse = np.linalg.inv(covariance[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T  # upper triangular
    weights = np.asarray(kernel, "float64")[order]
    compressed = np.empty(kernel.shape, "float32")
    for i, row in enumerate(order):
        compressed[row] = compress_row(int(row), weights[i])
        error = (weights[i] - compressed[row]) / factor[i, i]
        weights[i + 1 :] -= factor[i, i + 1 :, None] * error
    return compressed


def _row_compressor(layer: Compressible, expert: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function for `gptq_quantize` that applies an expert's mask and step sizes."""
    mask = None if layer.mask is None else _stacked(layer.mask, 2)[expert]
    step_sizes = None if layer.step_sizes is None else _stacked(layer.step_sizes, 1)[expert].ravel()

    def compress_row(index: int, row: np.ndarray) -> np.ndarray:
        if mask is not None:
            row = row * mask[index]
        if layer.bits is not None and step_sizes is not None:
            row = quantize(row[None], layer.bits, step_sizes).values()[0]
        return row

    return compress_row
