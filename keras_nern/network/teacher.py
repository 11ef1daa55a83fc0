"""A network other than the base whose logits are distilled."""

import os
from collections.abc import Sequence
from typing import Any, cast

import keras

from keras_nern.network.copying import probe
from keras_nern.network.kernels import check_built
from keras_nern.network.original import OriginalNetwork, check_weights
from keras_nern.network.outputs import logits_of, output_activation, verified_activation
from keras_nern.network.recording import capture_calls
from keras_nern.network.signature import Signature
from keras_nern.utils.types import Path, Shape, Tensor


class Teacher:
    """A classifier of the base's classes, better than the base.

    Args:
        model: a built `keras.Model`, or the path of a `.keras` file.
        original: the base.

    Attributes:
        model: the classifier. It is never changed.
        path: the absolute path of the file that was given, or `None`.

    Raises:
        ValueError: if the model is not built, if the file cannot be read, or if inputs or outputs
            have other shapes than those of the base, or if weights are not finite.

    Source: Choi et al., "Enhancing Accuracy and Parameter-Efficiency of Neural Representations for
    Network Parameterization", 2024, arXiv 2407.00356.
    """

    def __init__(self, model: keras.Model | Path, original: OriginalNetwork) -> None:
        self.path = None if isinstance(model, keras.Model) else os.path.abspath(model)
        if self.path is not None:
            try:
                model = keras.models.load_model(self.path, compile=False)
            except (ValueError, OSError) as error:
                raise ValueError(
                    "teacher must be a keras.Model or the path of a .keras file. Received: "
                    f"teacher={str(model)!r}. {error}"
                ) from error
        check_built("teacher", model)
        check_weights("teacher", model)
        self.model = cast("keras.Model", model)
        self._signature, self._base_signature = Signature.of(self.model), original.signature
        for what in ("inputs", "outputs"):
            own, expected = (getattr(one, what) for one in (self._signature, original.signature))
            if own is None or expected is None:  # a subclassed model does not know its shapes
                continue
            shapes, base_shapes = list(own.values()), list(expected.values())
            if not _are_compatible(shapes, base_shapes):
                raise ValueError(
                    f"teacher must have {what} of the base's shapes, {base_shapes}. Received: "
                    f"{self.model.name!r} with {what} of shapes {shapes}"
                )
        inputs = probe(self.model)
        self._activations = None
        if inputs is not None:
            with capture_calls(self.model) as calls, keras.StatelessScope():
                outputs = keras.tree.flatten(self.model(inputs, training=False))
            self._activations = [verified_activation(calls, output) for output in outputs]

    def logits(self, inputs: Any) -> list[Tensor]:
        """The logits of each output for a batch of the base's inputs."""
        if self._base_signature.inputs is not None:
            values = self._base_signature.ordered(inputs)  # names may differ between the networks
            inputs = values[0] if len(values) == 1 else values
            if self._signature.structure == "dict":
                inputs = dict(zip(self._signature.inputs or (), values, strict=True))
        with capture_calls(self.model) as calls, keras.StatelessScope():
            outputs = keras.tree.flatten(self.model(inputs, training=False))
        activations = self._activations or [output_activation(calls, one) for one in outputs]
        return [logits_of(*pair) for pair in zip(outputs, activations, strict=True)]


def _are_compatible(shapes: Sequence[Shape], others: Sequence[Shape]) -> bool:
    """Whether shapes are equal, except for sides of unknown length."""
    return len(shapes) == len(others) and all(
        len(one) == len(other)
        and all(None in sides or sides[0] == sides[1] for sides in zip(one, other, strict=True))
        for one, other in zip(shapes, others, strict=True)
    )
