"""The importance of kernels, measured by how well they are reconstructed.

Distillation makes a predictor reconstruct the kernels well on which the network's outputs depend,
so a kernel with a large reconstruction error matters little. This is the first application in
Ashkenazi et al., ICLR 2023. Let w be the S weights of a kernel, at all spatial positions of one
channel in one filter, and w^ the predicted weights. The score of a kernel is one of

    relative      - |w - w^| / |w|
    absolute      - |w - w^| / sqrt(S)
    weightwise    - 1/S sum_s |w_s - w^_s| / |w_s|
    magnitude     |w| / sqrt(S)
    curvature     1/2 w^T H w / S, what removing the kernel costs by the curvature loss
    random        uniform in [0, 1)

Kernels of the lowest scores are pruned first. `relative` is the paper's relative error per
kernel. `weightwise` is the measure of the reference implementation's
`get_filter_reconstruction_errors` (github.com/maorash/NeRN, HAND/tasks/pruning/pruner.py), divided
by S so that it compares kernels of several sizes. H is the kernel's block of the matrix of the
curvature loss (see `network.curvature`): G[f, f] A[c, c] for filter f and channel c. `magnitude`,
`curvature` and `random` use no reconstruction, and `random` is the baseline. A kernel of zeros has
the score -inf, because pruning it loses nothing.
"""

from collections.abc import Mapping

import keras
import numpy as np

from keras_nern.model import NeRNModel
from keras_nern.network.kernels import Kernel, kernels_of, walk_layers
from keras_nern.network.original import OriginalNetwork
from keras_nern.utils import checks

MEASURES = ("relative", "absolute", "weightwise", "magnitude", "curvature", "random")


def kernel_importance(
    nern: NeRNModel, measure: str = "relative", seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores every represented kernel; higher scores are more important.

    Args:
        nern: a trained `NeRNModel`.
        measure: `"relative"`, `"absolute"` or `"weightwise"` for the negative reconstruction
            error, `"magnitude"`, `"curvature"` (after `nern.gather_curvature(images)` or a fit
            with a curvature phase) or `"random"`. Defaults to `"relative"`.
        seed: seed of the random scores. Defaults to `0`.

    Returns:
        A dict from the kernel's name, as in `predict_kernels`, to a float64 array
        `(filters, channels)`, in either view of the representation. A Dense layer has one score
        per weight. For a depthwise convolution the shape is `(multiplier, channels)`; for a
        grouped one, the channels are those of a group.

    Raises:
        ValueError: if `nern` is not a `NeRNModel`, the measure is unknown, the curvature has not
            been gathered, or the seed is not an integer of at least 0.

    Example:

    >>> scores = keras_nern.kernel_importance(nern)
    >>> smaller = keras_nern.prune(nern.base, scores, sparsity=0.2)

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """
    if not isinstance(nern, NeRNModel):
        raise ValueError(f"nern must be a NeRNModel. Received: {nern!r}")
    checks.one_of("measure", measure, MEASURES)
    checks.integer("seed", seed, minimum=0)
    kernels = {
        kernel.name: kernel
        for path, layer in walk_layers(nern.base)
        if layer.built
        for kernel in kernels_of(path, layer)
    }
    costs = nern._by_name(nern._objective.removal_costs()) if measure == "curvature" else {}
    rng = np.random.default_rng(seed)
    predicted = nern.predict_kernels()
    scores = {}
    for name, original in nern.original_kernels().items():
        w, w_hat = (
            kernels[name].by_channel(values).astype("float64")  # (filters, channels, S)
            for values in (original, predicted[name])
        )
        scores[name] = _score(measure, w, w_hat, rng, costs.get(name))
    return scores


def prune(
    base: keras.Model, scores: dict[str, np.ndarray], sparsity: float, per_layer: bool = False
) -> keras.Model:
    """Copies a classifier and sets its least important kernels to zero.

    Args:
        base: the classifier, such as `nern.base`; it is not changed.
        scores: dict from kernel names to arrays `(filters, channels)`, as `kernel_importance`
            returns. Kernels without scores are not pruned.
        sparsity: maximum share of the weights of all scored kernels to set to zero, in [0, 1].
            Kernels are removed whole.
        per_layer: whether the share applies to each layer instead of all layers together.
            Defaults to `False`.

    Returns:
        An uncompiled Keras model of the base's class and config, with variables of its own.

    Raises:
        ValueError: if the sparsity is out of range, or if the scores are empty, name no kernel
            of the base, have another shape or contain NaN.

    Example:

    >>> scores = keras_nern.kernel_importance(nern, "magnitude")
    >>> smaller = keras_nern.prune(nern.base, scores, sparsity=0.3)
    """
    checks.share("sparsity", sparsity)
    checks.flag("per_layer", per_layer)
    is_real = isinstance(scores, Mapping) and all(
        np.asarray(one).dtype.kind in "biuf" for one in scores.values()
    )
    if not is_real:
        raise ValueError(
            "scores must be a dict from kernel names to arrays of real numbers, as "
            f"kernel_importance returns. Received: {type(scores).__name__} {scores!r}"
        )
    original = OriginalNetwork(base, include_dense=True)
    kernels = {kernel.name: kernel for kernel in original.blocks.kernels}
    scores = {name: np.asarray(score, "float64") for name, score in scores.items()}
    _check_scores(scores, kernels)
    groups = [{name: score} for name, score in scores.items()] if per_layer else [scores]
    kept: dict[str, np.ndarray] = {}
    for group in groups:
        kept.update(_keep(group, kernels, sparsity))
    values = []
    for name, kernel in kernels.items():
        value = keras.ops.convert_to_numpy(kernel.variable)  # keeps the variable's dtype
        if name in kept:
            rows = np.repeat(kept[name], kernel.spatial_size, axis=1)  # (filters, channels * S)
            mask = keras.ops.convert_to_numpy(kernel.from_rows(rows))
            value = np.where(mask, value, np.zeros_like(value))
        values.append(value)
    return original.rebuilt(values)


def _score(
    measure: str,
    w: np.ndarray,
    w_hat: np.ndarray,
    rng: np.random.Generator,
    costs: np.ndarray | None = None,
) -> np.ndarray:
    """Scores `(filters, channels)` of kernels `(filters, channels, S)`."""
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
    elif costs is not None:
        score = costs / w.shape[-1]
    else:
        score = rng.random(norms.shape)
    return np.where(norms > 0, score, -np.inf)


def _divide(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Errors divided by sizes, with 0 / 0 = 0 and any other error divided by 0 infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0.0, errors / sizes)


def _keep(
    scores: dict[str, np.ndarray], kernels: dict[str, Kernel], sparsity: float
) -> dict[str, np.ndarray]:
    """Masks `(filters, channels)` of the kernels that remain when the lowest are pruned."""
    flat = np.concatenate([score.ravel() for score in scores.values()])
    sizes = np.repeat(
        [kernels[name].spatial_size for name in scores], [score.size for score in scores.values()]
    )
    order = np.argsort(flat, kind="stable")
    allowed = int(sparsity * sizes.sum() + 1e-6)  # 0.29 * 100 is 28.999...
    count = np.searchsorted(np.cumsum(sizes[order]), allowed, side="right")
    keep = np.ones(flat.size, bool)
    keep[order[:count]] = False
    parts = np.split(keep, np.cumsum([score.size for score in scores.values()])[:-1])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _check_scores(scores: dict[str, np.ndarray], kernels: dict[str, Kernel]) -> None:
    unknown = sorted(set(scores) - set(kernels))
    if unknown or not scores:
        raise ValueError(
            f"scores must name kernels of the base, among {sorted(kernels)}. "
            f"Received: {unknown or 'an empty dict'}"
        )
    for name, score in scores.items():
        expected = (kernels[name].filters, kernels[name].channels)
        if score.shape != expected:
            raise ValueError(
                f"scores of {name!r} must have the shape (filters, channels) = {expected}. "
                f"Received: {score.shape}"
            )
        if np.isnan(score).any():
            raise ValueError(
                f"scores of {name!r} must be numbers. Received: {int(np.isnan(score).sum())} NaN"
            )
