"""The original network: read, run with other kernels, never changed.

Everything NeRN needs of the classifier goes through here: its kernels as the
regression's targets, its feature maps and logits as the teacher's, and the same
network run with predicted kernels as the student. The student is the original inside
a `keras.StatelessScope` that stands the predicted tensors in for the kernel
variables, so gradients reach the predictor and no variable is ever assigned.

A convolution's feature map is taken after the batch normalisation that follows it
and before the activation; without one, it is the convolution's own output. Feature maps
can also be taken where a residual network adds its branches.
"""

import hashlib
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_nern.losses import logits_of
from keras_nern.network.blocks import Blocks
from keras_nern.network.kernels import finalize, walk_layers
from keras_nern.network.recording import (
    Call,
    all_operations,
    capture_calls,
    normalisations,
    output_activation,
)
from keras_nern.utils import checks
from keras_nern.utils.types import Shape, Tensor

# Where the two networks can be compared.
FEATURE_MAPS = ("convolutions", "additions", "both")

# What outputs can be said to be; "auto" looks.
OUTPUT_ACTIVATIONS = ("auto", "linear", "sigmoid", "softmax")


class ForwardOutputs(typing.NamedTuple):
    """What is seen of a network that ran: tensors `(batch, ...)`.

    Attributes:
        maps: list of feature maps.
        outputs: what the network gave: a tensor, or a structure of them.
        logits: list of the outputs as logits, in the order of `keras.tree.flatten`, see
            `losses.logits_of`.
    """

    maps: list
    outputs: object
    logits: list


class OriginalNetwork:
    """A built classifier and its kernels.

    Args:
        base: a built `keras.Model`, whose outputs' last axes are classes.
        feature_maps: where to compare networks: `"convolutions"`, the output of each
            represented layer (Dense ones excepted) after its batch normalisation;
            `"additions"`, the sums at which branches meet; or `"both"`. Defaults to
            `"convolutions"`.
        view, block_size: arguments of `blocks.Blocks`.
        output_activation: of all outputs: `"softmax"`, `"sigmoid"`, `"linear"` for logits, or
            `"auto"` for what `recording.output_activation` finds. Defaults to `"auto"`.
        **selection: further arguments of `blocks.Blocks`.

    Attributes:
        base: the same object.
        blocks: the kernels in `blocks.Blocks`.

    Raises:
        ValueError: where `base` is no such model, or its weights hold NaN or infinity;
            for unknown feature maps or another activation, or where there are no additions
            to take maps at; and as `Blocks` does.
    """

    def __init__(
        self,
        base: keras.Model,
        feature_maps: str = "convolutions",
        view: str = "crop",
        block_size: int | None = None,
        output_activation: str = "auto",
        **selection: Any,
    ) -> None:
        _check_classifier(base)
        checks.one_of("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        checks.one_of("feature_maps", feature_maps, FEATURE_MAPS)
        if feature_maps != "convolutions" and not any(map(_may_add_maps, all_operations(base))):
            raise ValueError(
                "Expected a base that adds feature maps, as residual networks do. Received: "
                f"feature_maps={feature_maps!r} for {base.name!r}, which adds none"
            )
        self.base = base
        self.blocks = Blocks(base, view, block_size, **selection)
        _check_weights(base)
        self._warn_of_no_copy()
        self.feature_maps = feature_maps
        self.output_activation = output_activation
        self._mapped = {
            id(kernel.layer)
            for kernel in self.blocks.kernels
            if not isinstance(kernel.layer, keras.layers.Dense)
        }

    @property
    def input_shapes(self) -> list[Shape] | None:
        """The inputs' shapes without the batch, `None` where any length will do.

        A list in the order of `keras.tree.flatten`; `None` where the base, being
        subclassed, does not tell.
        """
        inputs = getattr(self.base, "inputs", None)
        return [tuple(x.shape[1:]) for x in inputs] if inputs else None

    @property
    def computes_in_float16(self) -> bool:
        """Whether any layer does: its gradients may then be too small to be told from 0."""
        return any(layer.compute_dtype == "float16" for _, layer in walk_layers(self.base))

    def layer_scales(self) -> np.ndarray:
        """The standard deviation of each kernel's weights.

        Returns:
            float32 array `(layers,)`; 1 where all weights of a kernel are equal.
        """
        deviations = np.array([np.std(values) for values in self.kernel_values()])
        return np.where(deviations > 0, deviations, 1.0).astype("float32")

    def kernel_values(self) -> list[np.ndarray]:
        """The kernels' current weights, float32 arrays of their variables' shapes."""
        return [
            np.asarray(keras.ops.convert_to_numpy(kernel.variable), "float32")
            for kernel in self.blocks.kernels
        ]

    def observe(self, inputs: Any, kernels: Sequence[Tensor] | None = None) -> ForwardOutputs:
        """Runs the network in inference mode, with its own kernels or with others.

        Args:
            inputs: what the base takes.
            kernels: one tensor per kernel, or `None` for its own. Defaults to `None`.

        Returns:
            A `ForwardOutputs`.
        """
        with capture_calls(self.base) as calls:
            if kernels is None:
                outputs = self.base(inputs, training=False)
            else:
                outputs = self.functional_call(inputs, kernels)
        logits = [
            logits_of(output, self._activation_of(output, calls))
            for output in keras.tree.flatten(outputs)
        ]
        return ForwardOutputs(self._maps(calls), outputs, logits)

    def functional_call(self, inputs: Any, kernels: Sequence[Tensor]) -> Any:
        """Runs the network with other kernels, for its outputs alone."""
        stand_ins = [
            (kernel.variable, keras.ops.cast(value, kernel.variable.dtype))
            for kernel, value in zip(self.blocks.kernels, kernels, strict=True)
        ]
        with keras.StatelessScope(state_mapping=stand_ins):
            return self.base(inputs, training=False)

    def _activation_of(self, output: Tensor, calls: Sequence[Call]) -> Callable | None:
        if self.output_activation == "auto":
            return output_activation(calls, output)
        return keras.activations.get(self.output_activation)

    def _maps(self, calls: Sequence[Call]) -> list[Tensor]:
        after = normalisations(calls)
        maps = []
        for call in calls:
            if id(call.operation) in self._mapped and self.feature_maps != "additions":
                maps.append(after.get(id(call.output), call).output)
        if self.feature_maps != "convolutions":
            maps += [call.output for call in calls if _adds_maps(call)]
        return maps

    def architecture(self) -> dict[str, Any]:
        """The base's class and config, serialised, without how it was compiled."""
        config = keras.saving.serialize_keras_object(self.base)
        config.pop("compile_config", None)
        return config

    def _warn_of_no_copy(self) -> None:
        try:
            self.architecture()
        except NotImplementedError:
            warnings.warn(  # before a fit, whose result could not be kept
                f"{self.base.name!r} is of a class without get_config: reconstruct, save and "
                "export will fail; fit, predict and predict_kernels work",
                stacklevel=4,
            )

    def copy(self) -> keras.Model:
        """A model of the base's class and config with variables and values of its own."""
        classes = {type(self.base), *(type(layer) for _, layer in walk_layers(self.base))}
        # not Keras's own, which knows them: keras.layers.Add is not what is behind x + 3.0
        own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
        copy = keras.saving.deserialize_keras_object(
            self.architecture(),
            custom_objects=own,
            safe_mode=False,  # any Lambda in it is one that this process made or trusted
        )
        copy.set_weights(self.base.get_weights())
        finalize(copy)
        return copy

    def rebuilt(self, kernels: Sequence[Tensor]) -> keras.Model:
        """A copy that has other kernels: one tensor for each of `blocks.kernels`."""
        rebuilt = self.copy()
        # by their order: a subclassed model may name its copy's layers otherwise
        layers = [layer for _, layer in walk_layers(self.base)]
        copies = [layer for _, layer in walk_layers(rebuilt)]
        copy_of = {id(layer): copy for layer, copy in zip(layers, copies, strict=True)}
        for kernel, value in zip(self.blocks.kernels, kernels, strict=True):
            getattr(copy_of[id(kernel.layer)], kernel.attribute).assign(value)
        return rebuilt

    def digest(self) -> np.ndarray:
        """SHA-256 of all weights, as 32 uint8."""
        sha = hashlib.sha256()
        for value in self.base.get_weights():
            sha.update(np.ascontiguousarray(value).tobytes())
        return np.frombuffer(sha.digest(), "uint8")


def _adds(operation: keras.Operation) -> bool:
    # keras.layers.Add, and what is behind keras.ops.add and x + y
    return type(operation).__name__ == "Add"


def _may_add_maps(operation: keras.Operation) -> bool:
    """Whether it adds maps of one shape wherever its inputs are known, or they are not."""
    if not _adds(operation):
        return False
    try:
        inputs = keras.tree.flatten(operation.input)
    except (AttributeError, ValueError):  # of a subclassed model, or used in several places
        return True
    return _adds_maps(Call(operation, inputs, None))


def _adds_maps(call: Call) -> bool:
    shapes = [tuple(given.shape) for given in call.inputs if hasattr(given, "shape")]
    return (
        _adds(call.operation) and len(shapes) > 1 and len(shapes[0]) > 2 and len(set(shapes)) == 1
    )


def _check_classifier(base: keras.Model) -> None:
    if not isinstance(base, keras.Model):
        raise ValueError(
            f"base must be a built keras.Model. Received: {base!r} of type {type(base).__name__}"
        )
    unbuilt = [
        layer.name for layer in (base, *(x for _, x in walk_layers(base))) if not layer.built
    ]
    if unbuilt:
        raise ValueError(
            "base must be a built keras.Model: give it a keras.Input, or call it on a batch of "
            f"inputs first. Received: {base.name!r}, where these are not built: {unbuilt}"
        )


def _check_weights(base: keras.Model) -> None:
    for weight in base.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        bad = int(np.sum(~np.isfinite(np.asarray(keras.ops.convert_to_numpy(weight), "float64"))))
        if bad:
            raise ValueError(
                "base must have finite weights. Received: "
                f"{weight.path!r} with {bad} of {np.prod(weight.shape)} entries NaN or infinite"
            )
