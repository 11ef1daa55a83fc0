"""Which of a classifier's weights are represented, and why the others are kept.

All convolutions are: ordinary, grouped, dilated, transposed, depthwise and separable, in one
to three dimensions, wherever they are in the model. Dense layers are on request. Biases,
batch normalisations and all other weights are kept as they are.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_nern.network.kernels import CONVOLUTIONS, Kernel, kernels_of, walk_layers

# A layer, its name or path, an expression found in the path, a function, or several of these.
One: TypeAlias = keras.layers.Layer | str | re.Pattern[str] | Callable[[keras.layers.Layer], bool]
Choice: TypeAlias = One | Sequence[One] | None


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """A layer with weights that are kept.

    Attributes:
        name: the layer's path.
        layer: the Keras layer.
        num_weights: how many, those of layers within it and a kernel that it shares with one
            that is represented not counted.
        reason: why they are kept.
    """

    name: str
    layer: keras.layers.Layer
    num_weights: int
    reason: str


def find_kernels(
    model: keras.Model, include: Choice = None, exclude: Choice = None, include_dense: bool = False
) -> tuple[list[Kernel], list[SkippedLayer]]:
    """Finds the kernels that are to be represented.

    Args:
        model: a built `keras.Model`.
        include: the layers to represent, all others being kept: a layer, its name or path
            (`"conv1"`, `"stem/conv1"`), a compiled regular expression to be found in the
            path, a function from a layer to a bool, or a list of these. `None` for all.
            Defaults to `None`.
        exclude: layers to keep, in the same terms. Defaults to `None`.
        include_dense: whether Dense layers are represented, too. Defaults to `False`.

    Returns:
        `(kernels, kept)`: a list of `Kernel` and one of `SkippedLayer`, in the order in which the
        model lists its layers. A kernel that is used several times comes once.

    Raises:
        ValueError: where `include` or `exclude` names a layer that is none of those that
            can be represented, or is of another type.

    Example:

    >>> unwanted = [re.compile("^stem"), "head"]
    >>> kernels, kept = find_kernels(model, exclude=unwanted, include_dense=True)
    """
    included, excluded = Selection("include", include), Selection("exclude", exclude)
    kinds = (*CONVOLUTIONS, keras.layers.Dense) if include_dense else CONVOLUTIONS
    layers = walk_layers(model)
    candidates = {path: layer for path, layer in layers if isinstance(layer, kinds)}
    for choice in (included, excluded):
        choice.check(candidates, include_dense)
    kernels: list[Kernel] = []
    skipped: list[SkippedLayer] = []
    owners: dict[int, str] = {}
    for path, layer in layers:
        if path in candidates and not layer.built:
            raise ValueError(f"model must be built. Received: {model.name!r}, where {path} is not")
        own = _own_variables(layer)
        reason = None
        if path not in candidates:
            reason = "no convolution"
            if isinstance(layer, keras.layers.Dense):
                reason = "Dense, and include_dense is False"
        elif included.given and not included.takes(path, layer):
            reason = "not in include"
        elif excluded.given and excluded.takes(path, layer):
            reason = "in exclude"
        elif not all(_is_float(kernel.variable) for kernel in kernels_of(path, layer)):
            reason = "its kernel is no variable of floats"
        else:
            for kernel in kernels_of(path, layer):
                owner = owners.setdefault(id(kernel.variable), path)
                if owner == path:
                    kernels.append(kernel)
                else:
                    reason = f"its kernel is that of {owner}"
        if reason and own:
            represented = {id(kernel.variable) for kernel in kernels}
            count = sum(int(keras.ops.size(v)) for v in own if id(v) not in represented)
            skipped.append(SkippedLayer(path, layer, count, reason))
    return kernels, skipped


class Selection:
    """Layers chosen by names, regular expressions and functions.

    Args:
        argument: the name of the user's argument, for messages.
        choice: what was given, see `Choice`.

    Attributes:
        given: whether it was anything but `None`.

    Raises:
        ValueError: where it is none of these.
    """

    def __init__(self, argument: str, choice: Choice) -> None:
        self.argument = argument
        self.given = choice is not None
        choices = choice if isinstance(choice, (list, tuple, set)) else [choice]
        self.choices = list(choices) if self.given else []
        for one in self.choices:
            if not (isinstance(one, (str, re.Pattern)) or callable(one)):
                raise ValueError(
                    f"{argument} must be a layer or its name, a compiled regular expression, a "
                    f"function from a layer to a bool, or a list of these. Received: {one!r}"
                )

    def check(self, candidates: dict[str, keras.layers.Layer], include_dense: bool = True) -> None:
        """Raises a ValueError for names that are no candidate's.

        Args:
            candidates: dict from path to layer.
            include_dense: whether Dense layers are among them. Defaults to `True`.
        """
        layers = list(candidates.values())
        names = set(candidates) | {layer.name for layer in layers}
        unknown: list = [one for one in self.choices if isinstance(one, str) and one not in names]
        for one in self.choices:
            if isinstance(one, keras.layers.Layer) and not any(one is layer for layer in layers):
                unknown.append(one)
        if unknown:
            dense = "" if include_dense else " (Dense layers with include_dense=True only)"
            raise ValueError(
                f"{self.argument} must name layers that can be represented{dense}, of "
                f"{sorted(candidates)}. Received: {unknown}"
            )

    def takes(self, path: str, layer: keras.layers.Layer) -> bool:
        """Whether a layer is among the chosen."""
        for one in self.choices:
            if isinstance(one, keras.layers.Layer):
                found = one is layer
            elif isinstance(one, str):
                found = one in (path, layer.name)
            elif isinstance(one, re.Pattern):
                found = one.search(path) is not None
            else:
                found = one(layer)
            if found:
                return True
        return False


def _own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    inner = {
        id(variable)
        for one in layer._flatten_layers(include_self=False, recursive=False)
        for variable in one.weights
    }
    return [variable for variable in layer.weights if id(variable) not in inner]


def _is_float(variable: Any) -> bool:
    # under LoRA, `kernel` is a sum
    return isinstance(variable, keras.Variable) and keras.backend.is_float_dtype(variable.dtype)
