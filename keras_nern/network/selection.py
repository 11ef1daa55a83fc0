"""Selection of the weights to represent.

By default these are the kernels of all convolutions: ordinary, grouped, dilated, transposed,
depthwise and separable, in one to three dimensions, at every depth of the model. Dense layers are
optional. Biases, batch normalizations and all other weights are skipped; a representation does not
change them.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_nern.network.kernels import (
    CONVOLUTIONS,
    Kernel,
    kernels_of,
    own_variables,
    walk_layers,
)

# A `Selector` is a layer, its name or path, a regular expression for the path, or a function from a
# layer to a bool. A `Choice` is a selector, several selectors, or `None`.
Selector: TypeAlias = (
    keras.layers.Layer | str | re.Pattern[str] | Callable[[keras.layers.Layer], bool]
)
Choice: TypeAlias = Selector | Sequence[Selector] | None


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """A layer with weights that are not represented.

    Attributes:
        name: path of the layer.
        layer: the Keras layer.
        num_weights: number of these weights. It excludes the weights of sublayers and a kernel
            that the layer shares with a represented layer.
        reason: why the layer is skipped.
    """

    name: str
    layer: keras.layers.Layer
    num_weights: int
    reason: str


def find_kernels(
    model: keras.Model, include: Choice = None, exclude: Choice = None, include_dense: bool = False
) -> tuple[list[Kernel], list[SkippedLayer]]:
    """Finds the kernels to represent.

    Args:
        model: a built `keras.Model`.
        include: layers to represent: a layer, its name or path (`"conv1"`, `"stem/conv1"`), a
            compiled regular expression that is searched for in the path, a function from a layer
            to a bool, or a list of these; `None` for all layers. Defaults to `None`.
        exclude: layers to skip, in the same form. Defaults to `None`.
        include_dense: whether to represent Dense layers as well. Defaults to `False`.

    Returns:
        `(kernels, skipped)`: a list of `Kernel` and a list of `SkippedLayer`, in the order in
        which `walk_layers` lists the layers. A kernel that several layers share is listed once.

    Raises:
        ValueError: if `include` or `exclude` names a layer that cannot be represented or has
            another type.

    Example:

    >>> unwanted = [re.compile("^stem"), "head"]
    >>> kernels, skipped = find_kernels(model, exclude=unwanted, include_dense=True)
    """
    included, excluded = Selection("include", include), Selection("exclude", exclude)
    kinds = (*CONVOLUTIONS, keras.layers.Dense) if include_dense else CONVOLUTIONS
    layers = walk_layers(model)
    candidates = {path: layer for path, layer in layers if isinstance(layer, kinds)}
    for selection in (included, excluded):
        selection.check(candidates, include_dense)
    kernels: list[Kernel] = []
    skipped: list[SkippedLayer] = []
    owners: dict[int, str] = {}
    for path, layer in layers:
        reason = None
        if path not in candidates:
            reason = "not a convolution"
            if isinstance(layer, keras.layers.Dense):
                reason = "Dense, and include_dense is False"
        elif not layer.built:
            reason = "it is never called"
        elif included.given and not included.takes(path, layer):
            reason = "not in include"
        elif excluded.takes(path, layer):
            reason = "in exclude"
        elif not all(_is_float(kernel.variable) for kernel in kernels_of(path, layer)):
            reason = "its kernel is not a floating-point variable"
        else:
            for kernel in kernels_of(path, layer):
                owner = owners.setdefault(id(kernel.variable), path)
                if owner == path:
                    kernels.append(kernel)
                else:
                    reason = f"it shares the kernel of {owner}"
        own = own_variables(layer)
        if reason and own:
            represented = {id(kernel.variable) for kernel in kernels}
            count = sum(int(keras.ops.size(v)) for v in own if id(v) not in represented)
            skipped.append(SkippedLayer(path, layer, count, reason))
    return kernels, skipped


class Selection:
    """Layers selected by name, path, regular expression or function.

    Args:
        argument: name of the user's argument, for errors.
        choice: value of the argument, see `Choice`.

    Attributes:
        given: whether `choice` is not `None`.

    Raises:
        ValueError: if `choice` is not a `Choice`.
    """

    def __init__(self, argument: str, choice: Choice) -> None:
        self.argument = argument
        self.given = choice is not None
        selectors = choice if isinstance(choice, (list, tuple, set)) else [choice]
        self.selectors: list = list(selectors) if self.given else []
        for selector in self.selectors:
            if not (isinstance(selector, (str, re.Pattern)) or callable(selector)):
                raise ValueError(
                    f"{argument} must be a layer or its name, a compiled regular expression, a "
                    f"function from a layer to a bool, or a list of these. Received: {selector!r}"
                )

    def check(self, candidates: dict[str, keras.layers.Layer], include_dense: bool = True) -> None:
        """Raises a ValueError for named layers that are not candidates.

        Args:
            candidates: dict from path to layer.
            include_dense: whether the candidates include Dense layers, for the error. Defaults to
                `True`.
        """
        names = set(candidates) | {layer.name for layer in candidates.values()}
        ids = {id(layer) for layer in candidates.values()}
        unknown = [
            selector
            for selector in self.selectors
            if (isinstance(selector, str) and selector not in names)
            or (isinstance(selector, keras.layers.Layer) and id(selector) not in ids)
        ]
        if unknown:
            dense = "" if include_dense else " (Dense layers only with include_dense=True)"
            raise ValueError(
                f"{self.argument} must name layers that can be represented{dense}, which are "
                f"{sorted(candidates)}. Received: {unknown}"
            )

    def takes(self, path: str, layer: keras.layers.Layer) -> bool:
        """Whether one of the selectors matches a layer."""
        return any(_matches(selector, path, layer) for selector in self.selectors)


def _matches(selector: Selector, path: str, layer: keras.layers.Layer) -> bool:
    if isinstance(selector, keras.layers.Layer):
        return selector is layer
    if isinstance(selector, str):
        return selector in (path, layer.name)
    if isinstance(selector, re.Pattern):
        return selector.search(path) is not None
    return bool(selector(layer))


def _is_float(variable: Any) -> bool:
    # `kernel` is a sum of tensors under LoRA
    return isinstance(variable, keras.Variable) and keras.backend.is_float_dtype(variable.dtype)
