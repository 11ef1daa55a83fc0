"""Training a classifier so that its kernels are smooth, and a predictor learns them easily.

A predictor learns a smooth function of the coordinate most easily. Instead of permuting
the coordinates of a trained network (see `permutations`), one may train the network so
that neighbouring kernels are alike as they stand (Ashkenazi et al., ICLR 2023, section
3.2): to the loss of its task comes, for each layer,

    a_c * sum over f, c of D(W[f, c], W[f, c + 1])  +  a_f * sum of D(W[f, c], W[f + 1, c])

where W[f, c] is the kernel of filter f and channel c, and D the cosine distance

    D(u, v) = 1 - <u, v> / (max(|u|, e) max(|v|, e)).

The gradient of a cosine grows as 1 / |u|, so that one kernel near 0 would outweigh all others.
Therefore norms count as e at least, a tenth of the root mean square of the layer's.

The sums grow with the layer; means, the default here, let one strength suit all layers.
A 1x1 kernel is a single number, and its cosine with another only their signs: there D is
(u - v)^2, the layer's kernels divided by their root mean square, so that it cannot be
made small by shrinking them.
"""

import numbers
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from keras_nern.network.kernels import CONVOLUTIONS, walk_layers
from keras_nern.network.selection import Choice, Selection
from keras_nern.predictor.positional_encoding import PACKAGE
from keras_nern.utils import checks
from keras_nern.utils.types import Tensor

REDUCTIONS = ("mean", "sum")
DISTANCES = ("auto", "cosine", "l2")
LEAST_SHARE = 0.1  # e, of the root mean square of the norms
SMALLEST_NORM = 1e-12  # a layer of a smaller norm has no directions

# The variables of a convolution, and what a layer may call the regularizer of each.
ARGUMENTS = {
    "kernel": ("kernel_regularizer", "depthwise_regularizer"),
    "depthwise_kernel": ("depthwise_regularizer",),
    "pointwise_kernel": ("pointwise_regularizer",),
}


@keras.saving.register_keras_serializable(package=PACKAGE)
class SmoothnessRegularizer(keras.regularizers.Regularizer):
    """Penalises differences of neighbouring kernels along filters and channels.

    For `kernel_regularizer=` of any convolution whose kernel ends in the axes
    `(channels, filters)`: 1-D, 2-D, 3-D, grouped, and depthwise (channels,
    multiplier). A transposed convolution's ends in `(filters, channels)`: there the two
    strengths change places. An axis of length 1 has no neighbours and adds nothing. By
    name it is `"smoothness_regularizer"`.

    Args:
        filters: strength along filters, a_f. Defaults to `1e-2`.
        channels: strength along channels, a_c. Defaults to `1e-2`.
        reduction: `"mean"` over the pairs of neighbours along an axis, or the paper's
            `"sum"`. Defaults to `"mean"`.
        distance: `"cosine"`, `"l2"` (of kernels divided by the layer's root mean
            square), or `"auto"`: `"l2"` for kernels of a single weight, else
            `"cosine"`. Defaults to `"auto"`.

    Raises:
        ValueError: for a strength that is negative or not finite, or another reduction
            or distance; when called, for a kernel of fewer than three axes.

    Example:

    >>> layer = keras.layers.Conv2D(
    ...     16, 3, kernel_regularizer=keras_nern.SmoothnessRegularizer(filters=0.1)
    ... )

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554, section 3.2; the mean, the
    least norm, and the scale of the second distance, are ours.
    """

    def __init__(
        self,
        filters: float = 1e-2,
        channels: float = 1e-2,
        reduction: str = "mean",
        distance: str = "auto",
    ) -> None:
        for name, value in (("filters", filters), ("channels", channels)):
            if not isinstance(value, numbers.Real) or not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name} must be a finite strength, at least 0. Received: {name}={value!r}"
                )
        checks.one_of("reduction", reduction, REDUCTIONS)
        checks.one_of("distance", distance, DISTANCES)
        self.filters = filters
        self.channels = channels
        self.reduction = reduction
        self.distance = distance

    def __call__(self, kernel: Tensor) -> Tensor:
        shape = tuple(kernel.shape)
        if len(shape) < 3:
            raise ValueError(
                "SmoothnessRegularizer expects the kernel of a convolution, (..., channels, "
                f"filters). Received: one of shape {shape}"
            )
        kernels = ops.reshape(ops.cast(kernel, "float32"), (-1, *shape[-2:]))
        if self.distance == "l2" or (self.distance == "auto" and kernels.shape[0] == 1):
            prepared, distance = _in_units_of_rms(kernels), _squared_distance
        else:
            prepared, distance = _directions(kernels), _cosine_distance
        total = ops.zeros((), "float32")
        pairs = [
            (self.filters, prepared[:, :, :-1], prepared[:, :, 1:]),
            (self.channels, prepared[:, :-1], prepared[:, 1:]),
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


@keras.saving.register_keras_serializable(package=PACKAGE)
class SumOfRegularizers(keras.regularizers.Regularizer):
    """Adds up several regularizers, for a layer that is to have more than one.

    Args:
        regularizers: a list of what `keras.regularizers.get` takes.

    Example:

    >>> both = SumOfRegularizers(["l2", SmoothnessRegularizer()])
    """

    def __init__(self, regularizers: Iterable) -> None:
        self.regularizers = [keras.regularizers.get(one) for one in regularizers]
        if None in self.regularizers:
            raise ValueError(f"Expected regularizers. Received: {regularizers!r}")

    def __call__(self, x: Tensor) -> Tensor:
        return sum(ops.cast(one(x), "float32") for one in self.regularizers)

    def get_config(self) -> dict[str, Any]:
        return {"regularizers": [keras.regularizers.serialize(one) for one in self.regularizers]}


def add_regularizer(
    model: keras.Model,
    regularizer: str | dict | Callable[[Tensor], Tensor] | None = None,
    layers: Choice = None,
) -> keras.Model:
    """Adds a regularizer to the convolutions of a model that exists, in place.

    A kernel that has one keeps it: the two are added up, also where this is called twice.
    The layers' configs follow, so that a saved model has the regularizers too.

    Args:
        model: a built `keras.Model`; what is nested in it is entered.
        regularizer: what `keras.regularizers.get` takes; `None` for a
            `SmoothnessRegularizer()`. Defaults to `None`.
        layers: the convolutions that get it, in the terms of `NeRNModel(include=...)`: a
            name or path, a compiled regular expression, a function from a layer to a bool,
            or a list of these; `None` for all whose kernel is a variable (under LoRA it is
            none). Defaults to `None`.

    Returns:
        `model`.

    Raises:
        ValueError: where no layer gets it, `layers` names one that is not there, or the
            model is not built.

    Example:

    >>> model = keras.applications.MobileNetV2(weights=None)
    >>> model = keras_nern.add_regularizer(model, keras_nern.SmoothnessRegularizer(1e-3, 1e-3))
    """
    if not model.built:
        raise ValueError(f"model must be built. Received: {model.name!r}, which is not")
    regularizer = keras.regularizers.get(regularizer) or SmoothnessRegularizer()
    convolutions = {
        path: layer for path, layer in walk_layers(model) if isinstance(layer, CONVOLUTIONS)
    }
    selection = Selection("layers", layers)
    selection.check(convolutions)
    chosen = [
        (layer, getattr(layer, variable), [name for name in arguments if hasattr(layer, name)])
        for path, layer in convolutions.items()
        if not selection.given or selection.takes(path, layer)
        for variable, arguments in ARGUMENTS.items()
        if isinstance(getattr(layer, variable, None), keras.Variable)
    ]
    if not chosen:
        raise ValueError(
            "Expected at least one convolution to regularize. Received: "
            f"{[layer.name for _, layer in walk_layers(model)]}"
        )
    for layer, kernel, arguments in chosen:
        added = regularizer
        if kernel.regularizer is not None:
            added = SumOfRegularizers([kernel.regularizer, regularizer])
        kernel.regularizer = added
        for name in arguments:
            setattr(layer, name, added)
    if model.compiled and model.train_function is not None:
        model.make_train_function(force=True)
    if model.compiled and model.test_function is not None:
        model.make_test_function(force=True)
    return model


def _directions(kernels: Tensor) -> Tensor:
    """Kernels `(weights, channels, filters)` at norm 1, small ones below."""
    squares = ops.sum(kernels**2, axis=0, keepdims=True)
    least = ops.maximum(LEAST_SHARE**2 * ops.mean(squares), SMALLEST_NORM**2)
    return kernels / ops.sqrt(ops.maximum(squares, least))


def _in_units_of_rms(kernels: Tensor) -> Tensor:
    square = ops.mean(kernels**2)
    has_norm = square > SMALLEST_NORM**2
    return ops.where(has_norm, kernels / ops.sqrt(ops.where(has_norm, square, 1.0)), 0.0)


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - ops.sum(first * second, axis=0)


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    return ops.mean((first - second) ** 2, axis=0)


def _register_names() -> None:
    """Lets `keras.regularizers.get` find the name.

    Keras looks strings up among its own regularizers only, and has no public way to add
    one. Where this table is gone nothing but the name is; a config does not use it.
    """
    try:
        from keras.src.regularizers import ALL_OBJECTS_DICT
    except ImportError:
        return
    for name in ("SmoothnessRegularizer", "smoothness_regularizer"):
        ALL_OBJECTS_DICT[name] = SmoothnessRegularizer


_register_names()
