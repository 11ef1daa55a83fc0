"""The original network: a classifier that is read and run, but never changed.

It provides the kernels to predict, the feature maps and logits of the teacher, and the student,
which is the same network run with predicted kernels. The student runs in a `keras.StatelessScope`
that maps the kernel variables to the predicted tensors, so gradients reach the predictor and no
variable is assigned.

The feature map of a convolution is the output of the batch normalization that follows it, before
the activation; without a batch normalization, it is the convolution's own output. The sums that
join the branches of a residual network can be used as feature maps instead or in addition.

A layer inside a loop (`TimeDistributed` of unknown length, `keras.ops.map`) has one feature map per
iteration, which is not accessible outside the loop. The output of the layer that runs the loop is
used instead.
"""

import functools
import hashlib
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.network.blocks import Blocks
from keras_nern.network.copying import (
    TOLERANCE,
    copy_model,
    difference,
    distance,
    probe,
    shares_weights,
    twins,
    without_compile_configs,
)
from keras_nern.network.kernels import check_built, kernels_of, own_variables, walk_layers
from keras_nern.network.outputs import (
    OUTPUT_ACTIVATIONS,
    logits_of,
    output_activation,
    verified_activation,
)
from keras_nern.network.recording import (
    Call,
    all_operations,
    capture_calls,
    enclosing,
    normalizations,
)
from keras_nern.network.signature import Signature
from keras_nern.utils import checks
from keras_nern.utils.types import Shape, Tensor

FINITE_CHUNK = 2**22  # weights checked at once

FEATURE_MAPS = ("convolutions", "additions", "both")


class ForwardOutputs(typing.NamedTuple):
    """Results of running a network on a batch.

    Attributes:
        maps: list of feature maps, tensors `(batch, ...)`.
        outputs: what the network returned: a tensor or a structure of tensors.
        logits: list of the outputs as logits (see `outputs.logits_of`), in the order of
            `keras.tree.flatten`.
        map_names: list of the names of the layers that returned the feature maps.
    """

    maps: list
    outputs: object
    logits: list
    map_names: list


class OriginalNetwork:
    """A built classifier and its kernels.

    Args:
        base: a built `keras.Model`. The last axis of each output holds the classes.
        feature_maps: which feature maps `forward` returns: `"convolutions"` for the outputs of the
            represented layers except Dense layers, after batch normalization; `"additions"` for
            the sums of branches; or `"both"`. Defaults to `"convolutions"`.
        output_activation: activation of all outputs: `"softmax"`, `"sigmoid"`, `"linear"` for
            logits, or `"auto"` to infer it, see `outputs.verified_activation`. Defaults to
            `"auto"`.
        **selection: arguments of `blocks.Blocks` (`view`, `block_size`, `include`, `exclude`,
            `include_dense`).

    Attributes:
        base: the `base` argument.
        signature: names and shapes of its inputs and outputs.
        blocks: the kernels as `blocks.Blocks`.
        vectors: list of the variables with one axis that training would change: scales and offsets
            of normalizations, and biases, also of frozen layers.
        left_out: dict from names of layers whose feature maps `forward` could not return to the
            reason.

    Raises:
        ValueError: if `base` is not a built model, has weights that are not finite, assigns to a
            `tf.Variable` in inference, or has layers made in a `keras.RematScope`; if
            `feature_maps` or `output_activation` is unknown; if `feature_maps` requires additions
            and `base` has none; or if `Blocks` raises.
    """

    def __init__(
        self,
        base: keras.Model,
        feature_maps: str = "convolutions",
        output_activation: str = "auto",
        **selection: Any,
    ) -> None:
        check_built("base", base)
        checks.one_of("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        checks.one_of("feature_maps", feature_maps, FEATURE_MAPS)
        if feature_maps != "convolutions" and not any(map(_may_add_maps, all_operations(base))):
            raise ValueError(
                "Expected a base that adds feature maps, as residual networks do. "
                f"Received: feature_maps={feature_maps!r} for {base.name!r}, which adds none"
            )
        self.base = base
        self.signature = Signature.of(base)
        self.blocks = Blocks(base, **selection)
        check_weights("base", base)
        _check_assignments(base)
        _check_gradients(base)
        self._is_copyable: bool | None = None  # unknown
        self._warn_if_not_copyable()
        self._states = [  # of stateful recurrent layers
            state
            for _, layer in walk_layers(base)
            if isinstance(layer, keras.layers.RNN)
            for state in keras.tree.flatten(layer.states or [])
        ]
        self.left_out: dict[str, str] = {}
        self.vectors = _vectors(base)
        self._feature_maps = feature_maps
        self._output_activation = output_activation
        self._inferred = self._infer_activations() if output_activation == "auto" else None
        self._mapped = {  # ids of the layers whose feature maps are compared
            id(kernel.layer)
            for kernel in self.blocks.kernels
            if not isinstance(kernel.layer, keras.layers.Dense)
        }

    @property
    def label_shapes(self) -> dict[str, Shape] | None:
        """A dict from names of outputs to shapes of their logits without the batch axis.

        Labels have the shape `shape[:-1]` if they are class numbers, or `shape` if they have a
        number per class. The property is `None` if the base is a subclassed model, which does not
        know its outputs.
        """
        if self.signature.outputs is None:
            return None
        shapes, given = self.signature.outputs.items(), self._output_activation
        activation = None if given == "auto" else keras.activations.get(given)
        activations = self._inferred or [activation] * len(shapes)
        return {
            name: tuple(logits_of(keras.KerasTensor((None, *shape)), activation).shape[1:])
            for (name, shape), activation in zip(shapes, activations, strict=True)
        }

    def try_out(self, inputs: Any) -> dict[str, Shape]:
        """Runs the base on the first example of inputs; returns `label_shapes` for its outputs."""
        first = keras.tree.map_structure(lambda array: array[:1], inputs)
        outputs, logits = self.forward(first)[1:3]
        names = sorted(outputs) if isinstance(outputs, dict) else range(len(logits))
        return {str(name): tuple(one.shape[1:]) for name, one in zip(names, logits, strict=True)}

    def check_finite(self) -> None:
        """Raises a ValueError if the base has weights that are NaN or infinite."""
        check_weights("base", self.base)

    @property
    def computes_in_float16(self) -> bool:
        """Whether any layer computes in float16, whose gradients may underflow."""
        return any(layer.compute_dtype == "float16" for _, layer in walk_layers(self.base))

    def kernel_values(self) -> list[np.ndarray]:
        """The kernels' current weights, float32 arrays of their variables' shapes."""
        return [kernel.values() for kernel in self.blocks.kernels]

    def layer_scales(self) -> np.ndarray:
        """Standard deviation of each kernel's weights.

        Returns:
            float32 array `(kernels,)`, 1 for a kernel whose weights are all equal.
        """
        deviations = np.array([np.std(v, dtype="float64") for v in self.kernel_values()])
        return np.where(deviations > 0, deviations, 1.0).astype("float32")

    def forward(
        self,
        inputs: Any,
        kernels: Sequence[Tensor] | None = None,
        vectors: Sequence[Tensor] | None = None,
    ) -> ForwardOutputs:
        """Runs the network in inference mode.

        Args:
            inputs: a batch of inputs of the base.
            kernels: one tensor per kernel to run with; `None` for the network's own. Defaults to
                `None`.
            vectors: likewise, one tensor for each of the attribute `vectors`.

        Returns:
            A `ForwardOutputs`.
        """
        return self.record(inputs, kernels, vectors)[0]

    def record(
        self,
        inputs: Any,
        kernels: Sequence[Tensor] | None = None,
        vectors: Sequence[Tensor] | None = None,
    ) -> tuple[ForwardOutputs, list[Call]]:
        """Runs the network as `forward` does; also returns the calls of all layers."""
        with capture_calls(self.base) as calls:
            outputs = self.functional_call(inputs, kernels, vectors)
        logits = [
            logits_of(output, self._activation_of(index, output, calls))
            for index, output in enumerate(keras.tree.flatten(outputs))
        ]
        mapped = self._mapped_calls(calls)
        names = [call.operation.name for call in mapped]
        maps = [call.output for call in mapped]
        return ForwardOutputs(maps, outputs, logits, names), calls

    def functional_call(
        self,
        inputs: Any,
        kernels: Sequence[Tensor] | None = None,
        vectors: Sequence[Tensor] | None = None,
    ) -> Any:
        """Runs the network, as `forward` does, and returns its outputs only.

        Assignments that layers make to variables during the call are discarded. Stateful recurrent
        layers start from zero, as they do in a copy, because Keras does not save their state.
        """
        inputs = self.signature.arguments(inputs)
        mapping = [(state, keras.ops.zeros(state.shape, state.dtype)) for state in self._states]
        own = [kernel.variable for kernel in self.blocks.kernels]
        for variables, values in ((own, kernels), (self.vectors, vectors)):
            if values is not None:
                mapping += [
                    (variable, keras.ops.cast(value, variable.dtype))
                    for variable, value in zip(variables, values, strict=True)
                ]
        with keras.StatelessScope(state_mapping=mapping):
            return self.base(inputs, training=False)

    def _infer_activations(self) -> list[Callable | None] | None:
        """Infers each output's activation on the inputs of `probe`; `None` if it returns none."""
        inputs = probe(self.base)
        if inputs is None:
            return None
        with capture_calls(self.base) as calls:
            outputs = keras.tree.flatten(self.functional_call(inputs))
        return [verified_activation(calls, output) for output in outputs]

    def _activation_of(self, index: int, output: Tensor, calls: Sequence[Call]) -> Callable | None:
        if self._output_activation != "auto":
            return keras.activations.get(self._output_activation)
        if self._inferred is not None:
            return self._inferred[index]
        return output_activation(calls, output)

    def _mapped_calls(self, calls: Sequence[Call]) -> list[Call]:
        """Finds the calls whose outputs are feature maps; `enclosing` replaces calls in a loop.

        Layers without a feature map are noted in `left_out`.
        """
        found: list[Call] = []
        left_out: dict[str, str] = {}
        if self._feature_maps != "additions":
            after = normalizations(calls)
            found += [
                after.get(id(call.output), call)
                for call in calls
                if id(call.operation) in self._mapped
            ]
            called = {id(call.operation) for call in calls}
            for kernel in self.blocks.kernels:
                if id(kernel.layer) in self._mapped - called:
                    left_out[kernel.path] = "it is not called in inference"
        if self._feature_maps != "convolutions":
            found += [call for call in calls if _adds_maps(call)]
        looped = {id(call.operation) for call in calls if call.in_loop}
        visible: dict[int, Call] = {}
        for call in found:
            if not call.in_loop and id(call.operation) in looped:
                continue  # `keras.ops.map` runs the first turn outside of the loop, too
            outer = enclosing(call, calls) if call.in_loop else call
            if outer is None:
                left_out[call.operation.name] = "it runs in a loop, outside of any layer"
            else:
                visible[id(outer)] = outer
        self.left_out = left_out
        return list(visible.values())

    def architecture(self) -> dict[str, Any]:
        """The base's class and config as a serialized Keras object, without compile settings."""
        return without_compile_configs(keras.saving.serialize_keras_object(self.base))

    def copy(self) -> keras.Model:
        """Creates a model of the base's class and config with copies of its state.

        Raises:
            ValueError: if the copy does not give the base's outputs.
        """
        copy = copy_model(self.base, self.architecture())
        self.check_copy(copy)
        self._is_copyable = True
        return copy

    def check_copyable(self) -> None:
        """Raises a ValueError if `copy` would fail, so that `fit` reports it before training.

        Models of Keras's own layers are assumed to be copyable, unless a layer is quantized or has
        assets, or layers share weights.
        """
        layers = [self.base, *(layer for _, layer in walk_layers(self.base))]
        plain = all(
            type(layer).__module__.startswith("keras.")
            and not hasattr(layer, "save_assets")
            and not getattr(layer, "quantization_mode", None)
            for layer in layers
        )
        if self._is_copyable is None and not (plain and not shares_weights(self.base)):
            self.copy()

    def check_copy(self, copy: keras.Model, purpose: str = "copy") -> None:
        """Raises a ValueError if a copy does not give the base's outputs on a random batch.

        Nothing is compared if `probe` has no inputs for the base, or if its outputs are random.

        Args:
            copy: a model with the kernels of the base.
            purpose: name of the copy in the error. Defaults to `"copy"`.
        """
        inputs = probe(self.base)
        if inputs is None:
            return
        run = functools.partial(copy, training=False)
        try:
            off = difference(self.functional_call, run, inputs)
        except Exception as error:
            raise ValueError(
                f"Expected a base whose {purpose}, made from its config and saved state, can be "
                f"run. Received: {self.base.name!r} ({type(error).__name__}: {error})"
            ) from error
        call = self.functional_call
        if off <= TOLERANCE or difference(call, call, inputs) > TOLERANCE:
            return
        raise ValueError(
            f"Expected a base whose {purpose}, made from its config and saved state, gives the "
            f"same outputs. Received: {self.base.name!r}, whose {purpose} differs by {off:.3g} of "
            f"the largest output, from {self._first_difference(run, copy, inputs)} on"
        )

    def _first_difference(self, run: Callable[[Any], Any], copy: keras.Model, inputs: Any) -> str:
        """The layer, and its class, that returns something else in a copy than in the base."""
        with capture_calls(self.base) as calls:
            self.functional_call(inputs)
        with capture_calls(copy) as others, keras.StatelessScope():
            run(inputs)
        for call, other in zip(calls, others, strict=False):
            visible = not (call.in_loop or other.in_loop)
            if visible and not distance(call.output, other.output) <= TOLERANCE:
                return f"{call.operation.name!r} ({type(call.operation).__name__})"
        return "an operation outside of layers"

    def rebuilt(
        self, kernels: Sequence[Tensor], vectors: Sequence[Tensor] | None = None
    ) -> keras.Model:
        """Creates a copy with the given kernels and vectors, see `forward`."""
        rebuilt = self.copy()
        values = {
            id(kernel.variable): value
            for kernel, value in zip(self.blocks.kernels, kernels, strict=True)
        }
        changed = self.vectors_by_id(vectors)
        for path, layer, twin in twins(self.base, rebuilt):
            for kernel in kernels_of(path, layer) if layer.built else []:
                if id(kernel.variable) in values:  # several layers may share it
                    getattr(twin, kernel.attribute).assign(values[id(kernel.variable)])
            for variable, other in zip(_with_one_axis(layer), _with_one_axis(twin), strict=True):
                if id(variable) in changed:
                    other.assign(changed[id(variable)])
        return rebuilt

    def vectors_by_id(self, values: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """A dict from ids of the `vectors` to values; empty without values."""
        if values is None:
            return {}
        return {id(own): value for own, value in zip(self.vectors, values, strict=True)}

    def digest(self) -> np.ndarray:
        """SHA-256 of all weights: uint8 array `(32,)`."""
        sha = hashlib.sha256()
        for value in self.base.get_weights():
            sha.update(np.ascontiguousarray(value).tobytes())
        return np.frombuffer(sha.digest(), "uint8")

    def _warn_if_not_copyable(self) -> None:
        try:
            self.architecture()
        except NotImplementedError:
            self._is_copyable = False
            warnings.warn(
                f"{self.base.name!r} is of a class without get_config: reconstruct, save and "
                "export will fail; fit, predict and predict_kernels work",
                stacklevel=4,
            )


def _vectors(base: keras.Model) -> list[keras.Variable]:
    """Lists the variables of `OriginalNetwork.vectors`, each once.

    The list must be the same in a copy, whatever is frozen later. A frozen scale only differs from
    a moving mean by the private list that holds it. Tried on Keras 3.15.
    """
    found = {
        id(variable): variable
        for layer in [base, *(layer for _, layer in walk_layers(base))]
        for variable in layer._trainable_variables
        if len(variable.shape) == 1 and keras.backend.is_float_dtype(variable.dtype)
    }
    return list(found.values())


def _with_one_axis(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables of a layer among which are its vectors; a copy has the same, in this order."""
    return [variable for variable in own_variables(layer) if len(variable.shape) == 1]


def _adds(operation: keras.Operation) -> bool:
    # By name: keras.layers.Add, and the class behind keras.ops.add and x + y, which has the same
    # name and which Keras does not export. Tried on Keras 3.15.
    return type(operation).__name__ == "Add"


def _may_add_maps(operation: keras.Operation) -> bool:
    """Whether an operation adds feature maps; also `True` if its inputs are unknown."""
    if not _adds(operation):
        return False
    try:
        inputs = keras.tree.flatten(operation.input)
    except (AttributeError, ValueError):  # in a subclassed model, or called several times
        return True
    return _adds_maps(Call(operation, inputs, None))


def _adds_maps(call: Call) -> bool:
    """Whether a call adds tensors of equal shapes that have axes besides batch and channels."""
    shapes = [tuple(given.shape) for given in call.inputs if hasattr(given, "shape")]
    return (
        _adds(call.operation) and len(shapes) > 1 and len(shapes[0]) > 2 and len(set(shapes)) == 1
    )


def _check_assignments(base: keras.Model) -> None:
    """Raises a ValueError if layers assign to variables of TensorFlow, which no scope prevents."""
    variables = [
        (path, value)
        for path, layer in [(base.name, base), *walk_layers(base)]
        for value in list(vars(layer).values())
        if isinstance(value, tf.Variable)
    ]
    before = [keras.ops.convert_to_numpy(variable) for _, variable in variables]
    if variables:
        probe(base)  # runs it
    for (path, variable), value in zip(variables, before, strict=True):
        if not np.array_equal(value, keras.ops.convert_to_numpy(variable)):
            variable.assign(value)
            raise ValueError(
                "base must assign to Keras variables only, those of `add_weight`, in inference. "
                f"Received: {path!r}, which assigns to {variable.name!r} of TensorFlow"
            )


def _check_gradients(base: keras.Model) -> None:
    """Raises a ValueError if layers recompute their outputs, which stops the kernels' gradients.

    TensorFlow gives a recomputed function gradients of its arguments and variables only. Keras has
    no public attribute for it. Tried on Keras 3.15.
    """
    for path, layer in walk_layers(base):
        mode = getattr(getattr(layer, "_remat_mode", None), "mode", None)
        if mode not in (None, "activations") and layer.weights:
            raise ValueError(
                "base must consist of layers made outside of `keras.RematScope`, as those of "
                f"`keras.models.clone_model(base)` are. Received: {path!r}, made in a scope of "
                f"mode {mode!r}"
            )


def check_weights(name: str, model: keras.Model) -> None:
    """Raises a ValueError, which begins with `name`, if weights are NaN or infinite."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        flat = np.reshape(keras.ops.convert_to_numpy(weight), -1)
        chunks = range(0, flat.size, FINITE_CHUNK)
        bad = sum(int(np.sum(~np.isfinite(flat[i : i + FINITE_CHUNK]))) for i in chunks)
        if bad:
            raise ValueError(
                f"{name} must have finite weights. Received: {weight.path!r} with {bad} of "
                f"{np.prod(weight.shape)} entries NaN or infinite"
            )
