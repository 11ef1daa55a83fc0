"""Which kernels matter, told from how well they are reconstructed: the paper's first application.

A predictor that learns by distillation spends its few weights on what the network's outputs
depend on, so that a kernel it gets wrong is one that matters little (Ashkenazi et al., ICLR
2023, the first of its two applications). With w the S weights of a kernel, all places of one
channel in one filter, and w^ those predicted, a kernel's score is one of

    relative      - |w - w^| / |w|
    absolute      - |w - w^| / sqrt(S)
    weightwise    - 1/S sum_s |w_s - w^_s| / |w_s|
    magnitude     |w| / sqrt(S)
    random        uniform in [0, 1)

and the lowest are pruned first. The first is the paper's relative error, taken over a kernel;
the third the measure of the reference implementation's `get_filter_reconstruction_errors`
(github.com/maorash/NeRN, HAND/tasks/pruning/pruner.py), divided by S for networks whose
kernels are of several sizes. The last two use no reconstruction: what the others are to be
compared with. A kernel of zeros has the lowest score that there is, for nothing is lost by it.
"""

import numbers
from collections.abc import Mapping

import keras
import numpy as np

from keras_nern.model import NeRNModel
from keras_nern.network.kernels import Kernel
from keras_nern.network.original import OriginalNetwork
from keras_nern.utils import checks

MEASURES = ("relative", "absolute", "weightwise", "magnitude", "random")


def kernel_importance(
    nern: NeRNModel, measure: str = "relative", seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores every represented kernel, the higher the more it matters.

    Args:
        nern: a trained `NeRNModel`.
        measure: `"relative"`, `"absolute"` or `"weightwise"` reconstruction error,
            `"magnitude"` or `"random"`, see above. Defaults to `"relative"`.
        seed: of the random scores. Defaults to `0`.

    Returns:
        A dict from the kernel's name, as in `predict_kernels`, to a float64 array
        `(filters, channels)`: a score for each channel of each filter, whatever view
        the representation has. A Dense layer has one for each weight; a depthwise
        convolution `(multiplier, channels)`; a grouped one the channels of a group.

    Raises:
        ValueError: for an unknown measure, a seed that is no integer of at least 0, or what is
            no `NeRNModel`.

    Example:

    >>> scores = keras_nern.kernel_importance(nern)
    >>> smaller = keras_nern.prune(nern.base, scores, sparsity=0.2)

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """
    if not isinstance(nern, NeRNModel):
        raise ValueError(f"nern must be a NeRNModel. Received: {nern!r}")
    checks.one_of("measure", measure, MEASURES)
    checks.integer("seed", seed, least=0)
    original = nern._original
    rng = np.random.default_rng(seed)
    predicted = nern.predict_kernels()
    scores = {}
    for kernel, value in zip(original.blocks.kernels, original.kernel_values(), strict=True):
        w, w_hat = (_by_kernel(kernel, array) for array in (value, predicted[kernel.name]))
        scores[kernel.name] = _score(measure, w, w_hat, rng)
    return scores


def prune(
    base: keras.Model, scores: dict[str, np.ndarray], sparsity: float, per_layer: bool = False
) -> keras.Model:
    """Copies a classifier and sets its least important kernels to zero.

    Args:
        base: the classifier, such as `nern.base`; it stays as it is.
        scores: what `kernel_importance` returns, or any dict like it. Kernels that it
            does not name are left alone.
        sparsity: share of the weights of the named kernels to set to zero, in [0, 1]. As
            many kernels go as hold no more than that.
        per_layer: whether each layer gives that share, rather than all of them together.
            Defaults to `False`.

    Returns:
        A Keras model of the base's class and config with variables of its own. Not
        compiled.

    Raises:
        ValueError: for a sparsity out of range, and scores that name no kernel of the
            base, have another shape than it has, or are NaN.

    Example:

    >>> scores = keras_nern.kernel_importance(nern, "magnitude")
    >>> smaller = keras_nern.prune(nern.base, scores, sparsity=0.3)
    """
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1]. Received: sparsity={sparsity!r}")
    if not isinstance(scores, Mapping) or any(np.iscomplexobj(one) for one in scores.values()):
        raise ValueError(
            "scores must be a dict from layer name to an array of real numbers, as from "
            f"kernel_importance. Received: {type(scores).__name__} {scores!r}"
        )
    original = OriginalNetwork(base, include_dense=True)
    kernels = {kernel.name: kernel for kernel in original.blocks.kernels}
    scores = {name: np.asarray(score, "float64") for name, score in scores.items()}
    _check_scores(scores, kernels)
    groups = [[name] for name in scores] if per_layer else [list(scores)]
    kept: dict[str, np.ndarray] = {}
    for names in groups:
        kept.update(_keep({name: scores[name] for name in names}, kernels, sparsity))
    values = []
    for kernel, value in zip(original.blocks.kernels, original.kernel_values(), strict=True):
        if kernel.name in kept:
            rows = _by_kernel(kernel, value) * kept[kernel.name][..., None]
            value = kernel.from_rows(rows.reshape(kernel.filters, -1).astype("float32"))
        values.append(value)
    return original.rebuilt(values)


def _by_kernel(kernel: Kernel, array: np.ndarray) -> np.ndarray:
    """An array of a variable's shape as float64 `(filters, channels, places)`."""
    rows = kernel.rows(array).astype("float64")
    return rows.reshape(kernel.filters, kernel.channels, kernel.places)


def _score(measure: str, w: np.ndarray, w_hat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores `(filters, channels)` of kernels `(filters, channels, places)`."""
    root = np.sqrt(w.shape[-1])
    norms = np.linalg.norm(w, axis=-1)
    errors = np.linalg.norm(w - w_hat, axis=-1)
    if measure == "relative":
        score = -_divide(errors, norms)
    elif measure == "absolute":
        score = -errors / root
    elif measure == "weightwise":
        score = -np.mean(_divide(np.abs(w - w_hat), np.abs(w)), axis=-1)
    elif measure == "magnitude":
        score = norms / root
    else:
        score = rng.random(norms.shape)
    return np.where(norms > 0, score, -np.inf)


def _divide(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Errors over sizes; 0 / 0 is 0, any other error of nothing infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0.0, errors / sizes)


def _keep(
    scores: dict[str, np.ndarray], kernels: dict[str, Kernel], sparsity: float
) -> dict[str, np.ndarray]:
    """For each kernel `(filters, channels)`, which are not among the lowest."""
    flat = np.concatenate([score.ravel() for score in scores.values()])
    weights = np.concatenate(
        [np.full(score.size, kernels[name].places) for name, score in scores.items()]
    )
    order = np.argsort(flat, kind="stable")
    allowed = int(sparsity * weights.sum() + 1e-6)  # 0.29 * 100 is 28.999...
    count = np.searchsorted(np.cumsum(weights[order]), allowed, side="right")
    keep = np.ones(flat.size, bool)
    keep[order[:count]] = False
    ends = np.cumsum([score.size for score in scores.values()])
    parts = np.split(keep, ends[:-1])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _check_scores(scores: dict[str, np.ndarray], kernels: dict[str, Kernel]) -> None:
    unknown = sorted(set(scores) - set(kernels))
    if unknown or not scores:
        raise ValueError(
            f"scores must be a dict that names kernels of the base, of {sorted(kernels)}. "
            f"Received: {unknown or 'an empty one'}"
        )
    for name, score in scores.items():
        wanted = (kernels[name].filters, kernels[name].channels)
        if score.shape != wanted:
            raise ValueError(
                f"scores of {name!r} must have the shape (filters, channels) = {wanted}. "
                f"Received: {score.shape}"
            )
        if np.isnan(score).any():
            raise ValueError(
                f"scores of {name!r} must be numbers. Received: {int(np.isnan(score).sum())} NaN"
            )
