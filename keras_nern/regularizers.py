"""Regularizers for training classifiers with smooth kernels.

A predictor fits a smooth function of the coordinate best. Instead of permuting the coordinates of a
trained network (see `permutations`), one can train the network so that neighboring kernels are
similar (Ashkenazi et al., ICLR 2023, section 3.2). For each layer, the regularizer adds

    a_c sum over f, c of D(W[f, c], W[f, c + 1])  +  a_f sum over f, c of D(W[f, c], W[f + 1, c])

to the loss, where W[f, c] is the kernel of filter f and channel c, and D is the cosine distance

    D(u, v) = 1 - <u, v> / (max(|u|, e) max(|v|, e)).

The gradient of a cosine grows as 1 / |u|, so a single kernel near 0 would outweigh all others.
Smaller norms are therefore replaced by e, a tenth of the root mean square of the layer's norms.

By default, the sums are replaced by means. A sum grows with the size of the layer; with means, one
strength suits all layers.

The cosine of 1x1 kernels, which are single numbers, depends only on their signs. For them,
D = (u - v)^2 after division of the layer's kernels by their root mean square, so that shrinking the
kernels does not reduce it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from keras_nern.network.kernels import CONVOLUTIONS, check_built, walk_layers
from keras_nern.network.selection import Choice, Selection
from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Tensor

REDUCTIONS = ("mean", "sum")
DISTANCES = ("auto", "cosine", "l2")
MIN_NORM_RATIO = 0.1  # e, relative to the root mean square of the norms
MIN_NORM = 1e-12  # smaller norms and root mean squares count as zero

# Kernel variables of a convolution, and the layer attributes that may hold their regularizer.
REGULARIZER_ARGUMENTS = {
    "kernel": ("kernel_regularizer", "depthwise_regularizer"),
    "depthwise_kernel": ("depthwise_regularizer",),
    "pointwise_kernel": ("pointwise_regularizer",),
}


@register
class SmoothnessRegularizer(keras.regularizers.Regularizer):
    """Penalizes differences between neighboring kernels along filters and channels.

    Use it as `kernel_regularizer` of a convolution whose kernel ends in the axes
    `(channels, filters)`: 1-D, 2-D, 3-D, grouped or depthwise (channels, multiplier). The kernel of
    a transposed convolution ends in `(filters, channels)`, which swaps the two strengths. An axis
    of length 1 has no neighbors and adds nothing. The regularizer is also available by the name
    `"smoothness_regularizer"`.

    Args:
        filters: strength a_f along filters. Defaults to `1e-2`.
        channels: strength a_c along channels. Defaults to `1e-2`.
        reduction: `"mean"` over the pairs of neighbors along each axis, or `"sum"`, as in the
            paper. Defaults to `"mean"`.
        distance: `"cosine"`, `"l2"` (squared, of kernels divided by the layer's root mean square),
            or `"auto"` for `"l2"` if kernels have a single weight and `"cosine"` otherwise.
            Defaults to `"auto"`.

    Raises:
        ValueError: if a strength is not a finite number of at least 0, `reduction` or `distance` is
            unknown, or a kernel has fewer than three axes.

    Example:

    >>> layer = keras.layers.Conv2D(
    ...     16, 3, kernel_regularizer=keras_nern.SmoothnessRegularizer(filters=0.1)
    ... )

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554, section 3.2. The mean, the minimum norm
    and the l2 distance are not in the paper.
    """

    def __init__(
        self,
        filters: float = 1e-2,
        channels: float = 1e-2,
        reduction: str = "mean",
        distance: str = "auto",
    ) -> None:
        self.filters = checks.number("filters", filters, minimum=0)
        self.channels = checks.number("channels", channels, minimum=0)
        checks.one_of("reduction", reduction, REDUCTIONS)
        checks.one_of("distance", distance, DISTANCES)
        self.reduction = reduction
        self.distance = distance

    def __call__(self, kernel: Tensor) -> Tensor:
        shape = tuple(kernel.shape)
        if len(shape) < 3:
            raise ValueError(
                "SmoothnessRegularizer expects the kernel of a convolution, of shape "
                f"(..., channels, filters). Received: a kernel of shape {shape}"
            )
        kernels = ops.reshape(ops.cast(kernel, "float32"), (-1, *shape[-2:]))
        if self.distance == "l2" or (self.distance == "auto" and kernels.shape[0] == 1):
            kernels, distance = _divide_by_rms(kernels), _squared_distance
        else:
            kernels, distance = _normalize(kernels), _cosine_distance
        total = ops.zeros((), "float32")
        pairs = [
            (self.filters, kernels[:, :, :-1], kernels[:, :, 1:]),
            (self.channels, kernels[:, :-1], kernels[:, 1:]),
        ]
        for strength, first, second in pairs:
            if strength and 0 not in first.shape:
                reduce = ops.mean if self.reduction == "mean" else ops.sum
                total += strength * reduce(distance(first, second))
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            "filters": self.filters,
            "channels": self.channels,
            "reduction": self.reduction,
            "distance": self.distance,
        }


@register
class SumOfRegularizers(keras.regularizers.Regularizer):
    """Adds up several regularizers of one variable.

    Args:
        regularizers: iterable of regularizers in any form that `keras.regularizers.get` accepts.

    Example:

    >>> both = SumOfRegularizers(["l2", SmoothnessRegularizer()])
    """

    def __init__(self, regularizers: Iterable) -> None:
        self.regularizers = [keras.regularizers.get(one) for one in regularizers]

    def __call__(self, x: Tensor) -> Tensor:
        return sum(ops.cast(one(x), "float32") for one in self.regularizers)

    def get_config(self) -> dict[str, Any]:
        return {"regularizers": [keras.regularizers.serialize(one) for one in self.regularizers]}


def add_regularizer(
    model: keras.Model,
    regularizer: str | dict | Callable[[Tensor], Tensor] | None = None,
    layers: Choice = None,
) -> keras.Model:
    """Adds a regularizer to the convolutions of an existing model, in place.

    A kernel that already has a regularizer gets the sum of both. The configs of the layers include
    the regularizer, so it is saved with the model.

    Args:
        model: a built `keras.Model`. Nested models are included.
        regularizer: a regularizer in any form that `keras.regularizers.get` accepts; `None` for
            `SmoothnessRegularizer()`. Defaults to `None`.
        layers: convolutions to regularize, in the form of `NeRNModel`'s `include`: a layer, its
            name or path, a compiled regular expression, a function from a layer to a bool, or a
            list of these; `None` for all convolutions. Convolutions with LoRA are skipped,
            because their kernel is not a variable. Defaults to `None`.

    Returns:
        `model`.

    Raises:
        ValueError: if `model` is not built, `layers` names a layer that is not a convolution of the
            model, or no convolution is selected.

    Example:

    >>> model = keras.applications.MobileNetV2(weights=None)
    >>> model = keras_nern.add_regularizer(model, keras_nern.SmoothnessRegularizer(1e-3, 1e-3))
    """
    check_built("model", model)
    regularizer = keras.regularizers.get(regularizer) or SmoothnessRegularizer()
    convolutions = {
        path: layer for path, layer in walk_layers(model) if isinstance(layer, CONVOLUTIONS)
    }
    selection = Selection("layers", layers)
    selection.check(convolutions)
    selected = [
        (layer, getattr(layer, variable), arguments)
        for path, layer in convolutions.items()
        if not selection.given or selection.takes(path, layer)
        for variable, arguments in REGULARIZER_ARGUMENTS.items()
        if isinstance(getattr(layer, variable, None), keras.Variable)
    ]
    if not selected:
        raise ValueError(
            "Expected at least one convolution to regularize. "
            f"Received: {model.name!r} with convolutions {list(convolutions)}, layers={layers!r}"
        )
    for layer, kernel, arguments in selected:
        added = regularizer
        if kernel.regularizer is not None:
            added = SumOfRegularizers([kernel.regularizer, regularizer])
        kernel.regularizer = added
        for name in arguments:
            if hasattr(layer, name):
                setattr(layer, name, added)
    if model.compiled and model.train_function is not None:
        model.make_train_function(force=True)
    if model.compiled and model.test_function is not None:
        model.make_test_function(force=True)
    return model


def _normalize(kernels: Tensor) -> Tensor:
    """Divides kernels `(weights, channels, filters)` by their norms, which are at least e."""
    squares = ops.sum(kernels**2, axis=0, keepdims=True)
    least = ops.maximum(MIN_NORM_RATIO**2 * ops.mean(squares), MIN_NORM**2)
    return kernels / ops.sqrt(ops.maximum(squares, least))


def _divide_by_rms(kernels: Tensor) -> Tensor:
    square = ops.mean(kernels**2)
    has_norm = square > MIN_NORM**2
    return ops.where(has_norm, kernels / ops.sqrt(ops.where(has_norm, square, 1.0)), 0.0)


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - ops.sum(first * second, axis=0)


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    return ops.mean((first - second) ** 2, axis=0)


def _register_names() -> None:
    """Registers `SmoothnessRegularizer` by name for `keras.regularizers.get`.

    Keras looks up names in a private table and has no public way to add one. Tried on Keras 3.15.
    If the table is missing, only these names are unknown; configs do not use them.
    """
    try:
        from keras.src.regularizers import ALL_OBJECTS_DICT
    except ImportError:
        return
    for name in ("SmoothnessRegularizer", "smoothness_regularizer"):
        ALL_OBJECTS_DICT[name] = SmoothnessRegularizer


_register_names()
