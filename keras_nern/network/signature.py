"""Names and shapes of a model's inputs and outputs, to which data and labels are matched."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import keras

from keras_nern.utils.types import Shape


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model, in the order of `keras.tree.flatten`.

    Names are the keys if the model takes or returns a dict; otherwise they are the names of the
    inputs and of the layers that return the outputs, as in Keras.

    Attributes:
        inputs: dict from names to shapes without the batch axis, with `None` for axes of any
            length; `None` for a subclassed model, which does not know its inputs.
        outputs: the same for the outputs.
        structure: structure of the inputs that the model takes: `"dict"`, `"list"` or `"tensor"`.
    """

    inputs: Mapping[str, Shape] | None = None
    outputs: Mapping[str, Shape] | None = None
    structure: str = "tensor"

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """Reads the signature of a built model."""
        if not getattr(model, "inputs", None) or not model.outputs:
            return cls()
        if isinstance(model, keras.Sequential):  # its `input` may be unknown
            takes, returns, names = model.inputs[0], model.outputs[0], [model.layers[-1].name]
        else:
            takes, returns, names = model.input, model.output, model.output_names
        structure = "tensor"
        if isinstance(takes, (dict, list, tuple)):
            structure = "dict" if isinstance(takes, dict) else "list"
        input_names = [x.name for x in keras.tree.flatten(takes)]
        inputs = _named(takes, input_names) if _is_flat(takes) else None
        return cls(inputs, _named(returns, names), structure)

    @property
    def has_one_input(self) -> bool:
        """Whether the model is known to have one input."""
        return self.inputs is not None and len(self.inputs) == 1

    def ordered(self, inputs: Any, argument: str = "x") -> list:
        """Lists inputs in the order of `inputs`, which must be known.

        Args:
            inputs: a tensor, a list of tensors in this order, or a dict from names to tensors.
            argument: name of the argument that holds them, for errors. Defaults to `"x"`.

        Raises:
            ValueError: if a dict has other keys, if there are more or fewer tensors than inputs, or
                if the model takes a dict of several inputs and `inputs` is not a dict.
        """
        assert self.inputs is not None
        several = len(self.inputs) > 1
        if self.structure == "dict" and several and not isinstance(inputs, dict):
            raise ValueError(
                f"{argument} must be a dict of inputs named {list(self.inputs)}, as the base takes "
                f"a dict. Received: inputs of type {type(inputs).__name__}"
            )
        return by_name(inputs, self.inputs, "inputs", argument)

    def arguments(self, inputs: Any) -> Any:
        """Converts inputs to the structure in which the model takes them; see `ordered`."""
        if self.inputs is None or isinstance(inputs, dict) == (self.structure == "dict"):
            return inputs
        values = self.ordered(inputs)
        if self.structure == "dict":
            return dict(zip(self.inputs, values, strict=True))
        return values if self.structure == "list" else values[0]


def by_name(values: Any, names: Mapping[str, Any], what: str, argument: str = "x") -> list:
    """Lists values in the order of names: a dict by its keys, anything else by its order.

    Args:
        values: a structure of arrays or tensors.
        names: mapping whose keys are the names.
        what: what the values are, for the error, such as `"labels"`.
        argument: name of the argument that holds them. Defaults to `"x"`.

    Raises:
        ValueError: if a dict has other keys, or if there are more or fewer values.
    """
    if isinstance(values, dict):
        if set(values) != set(names):
            more = set(values) > set(names)
            hint = " (tfds.load yields pairs with as_supervised=True)" if more else ""
            raise ValueError(
                f"{argument} must have {what} named {sorted(names)}. Received: {what} named "
                f"{sorted(map(str, values))}{hint}"
            )
        return [values[name] for name in names]
    flat = keras.tree.flatten(values)
    if len(flat) != len(names):
        raise ValueError(
            f"{argument} must have {what} for {list(names)}. Received: {len(flat)} arrays of {what}"
        )
    return flat


def _is_flat(structure: Any) -> bool:
    values = structure.values() if isinstance(structure, dict) else structure
    nested = isinstance(structure, (dict, list, tuple))
    return not nested or not any(isinstance(one, (dict, list, tuple)) for one in values)


def _named(structure: Any, names: list[str]) -> dict[str, Shape]:
    """A dict from names to shapes of tensors; a number is appended to a repeated name."""
    if isinstance(structure, dict) and _is_flat(structure):
        return {name: tuple(structure[name].shape[1:]) for name in sorted(structure)}
    shapes: dict[str, Shape] = {}
    for tensor, name in zip(keras.tree.flatten(structure), names, strict=True):
        if name in shapes:
            name = f"{name}_{len(shapes)}"
        shapes[name] = tuple(tensor.shape[1:])
    return shapes
