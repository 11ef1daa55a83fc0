"""Copies a model from its config and saved state, and verifies the copy by its outputs.

A config builds the layers that inference uses. Layers that only training uses are built with the
input shapes of the original's layers. State is transferred layer by layer with the methods that
`keras.Model.save` and `keras.models.load_model` call: `save_own_variables` and
`load_own_variables`, `save_assets` and `load_assets`. It includes vocabularies, lookup tables and
other state that is not a weight.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_nern.network.kernels import finalize, sublayers, walk_layers

PROBED_SIDES = (32, 224, 1)  # lengths that are tried for axes of unspecified length
TOLERANCE = 1e-4  # largest difference of outputs, relative to the largest output


def copy_model(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Creates a model of the same class and config with copies of the variables.

    Args:
        model: a built `keras.Model`.
        config: the serialized model.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if the config builds different layers, or if a layer's state cannot be
            transferred.
    """
    classes = {type(model), *(type(layer) for _, layer in walk_layers(model))}
    # Keras's own classes are left out: keras.layers.Add has the name of the class behind x + y
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    with warnings.catch_warnings():
        # Keras warns if a model holds layers that are never called
        warnings.filterwarnings("ignore", message="`build\\(\\)` was called on layer")
        copy = keras.saving.deserialize_keras_object(
            config,
            custom_objects=own,
            safe_mode=False,  # safe: every Lambda in it comes from the model itself
        )
    build_like(model, copy)
    for path, layer, twin in twins(model, copy):
        try:
            _transfer_state(layer, twin)
        except Exception as error:
            raise ValueError(
                f"Expected a layer whose saved state can be loaded into a copy. Received: {path!r} "
                f"of {model.name!r} ({type(error).__name__}: {error})"
            ) from error
    finalize(copy)
    return copy


def build_like(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Builds the sublayers of a copy that are built in the original but not by the config."""
    if layer.built and not copy.built:
        config = layer.get_build_config()
        if config is not None:
            copy.build_from_config(config)
    for one, twin in zip(sublayers(layer), sublayers(copy), strict=False):
        build_like(one, twin)


def build_configs(model: keras.Model) -> list[dict[str, Any] | None]:
    """Collects the build configs of layers inside custom classes, which a config may not build.

    Returns:
        A list in the order of `walk_layers`: `layer.get_build_config()` for a built layer inside
        a custom class, otherwise `None`. Layers are matched by order, as in `twins`.
    """
    layers = [layer for _, layer in walk_layers(model)]
    held = {
        id(layer)
        for holder in (model, *layers)
        if not type(holder).__module__.startswith("keras.")
        for layer in sublayers(holder)
    }
    return [
        layer.get_build_config() if layer.built and id(layer) in held else None for layer in layers
    ]


def build_from_configs(model: keras.Model, configs: list[dict[str, Any] | None]) -> None:
    """Builds the unbuilt layers of a model from the `build_configs` of the original."""
    for index, config in enumerate(configs):
        # listed again each time, because building a layer may create the sublayers that follow
        layers = [layer for _, layer in walk_layers(model)] if config is not None else []
        if config is not None and index < len(layers) and not layers[index].built:
            layers[index].build_from_config(config)


def twins(
    model: keras.Model, copy: keras.Model
) -> Iterator[tuple[str, keras.layers.Layer, keras.layers.Layer]]:
    """Yields `(path, layer, layer of the copy)`, starting with the models themselves.

    Layers are matched by their order, because a subclassed model may name the layers of its copy
    differently.

    Raises:
        ValueError: if the copy has different layers.
    """
    layers = [(model.name, model), *walk_layers(model)]
    copies = [copy, *(layer for _, layer in walk_layers(copy))]
    kinds = [type(layer).__name__ for _, layer in layers], [type(one).__name__ for one in copies]
    if kinds[0] != kinds[1]:
        differing = [path for (path, _), a, b in zip(layers, *kinds, strict=False) if a != b]
        raise ValueError(
            f"Expected a model whose config builds the same layers. Received: {model.name!r} with "
            f"{len(layers) - 1} layers, whose copy has {len(copies) - 1}"
            + f" and differs from {differing[0]!r} on"
            * bool(differing)
        )
    for (path, layer), twin in zip(layers, copies, strict=True):
        yield path, layer, twin


def _transfer_state(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    if store:
        copy.load_own_variables({name: _to_array(value) for name, value in store.items()})
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)


def _to_array(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))


def probe(model: keras.Model) -> Any:
    """Creates random inputs for comparing a model with its copy.

    Returns:
        A batch of two inputs in the structure that the model takes, or `None` if its input shapes
        are unknown or it accepts none of `PROBED_SIDES` for axes of unspecified length.
    """
    structure = getattr(model, "input", None)
    if not getattr(model, "inputs", None) or structure is None:
        config = model.get_build_config() or {}
        shape = config.get("input_shape")
        if not isinstance(shape, (list, tuple)) or not all(
            side is None or isinstance(side, int) for side in shape
        ):
            return None
        structure = keras.KerasTensor(tuple(shape))
    for side in PROBED_SIDES:
        inputs = keras.tree.map_structure(lambda spec, s=side: _random(spec, s), structure)
        try:
            with keras.StatelessScope():
                model(inputs, training=False)
        except Exception:  # layers raise various errors for a size that they do not accept
            continue
        return inputs
    return None


def _random(spec: keras.KerasTensor, side: int) -> Any:
    shape = (2, *(side if length is None else length for length in spec.shape[1:]))
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if dtype == "string":
        return keras.ops.convert_to_tensor(np.full(shape, "a"))
    if keras.backend.is_float_dtype(dtype):
        values = np.random.default_rng(0).uniform(size=shape)
        return keras.ops.convert_to_tensor(values, dtype=dtype)
    return keras.ops.ones(shape, dtype=dtype)


def difference(call: Callable[[Any], Any], other: Callable[[Any], Any], inputs: Any) -> float:
    """The largest difference between two models' outputs, relative to the largest output."""
    largest = 0.0
    with keras.StatelessScope():
        pairs = zip(
            keras.tree.flatten(call(inputs)), keras.tree.flatten(other(inputs)), strict=True
        )
        for a, b in pairs:
            a, b = (np.asarray(_to_array(one), "float64") for one in (a, b))
            if a.shape != b.shape:
                return float("inf")
            scale = np.max(np.abs(a), initial=0) or 1.0
            largest = max(largest, float(np.max(np.abs(a - b), initial=0) / scale))
    return largest


def stateful_layers(model: keras.Model) -> list[str]:
    """Paths of layers with assets or a custom `save_own_variables`: they may hold other state."""

    def is_suspect(layer: keras.layers.Layer) -> bool:
        hook = type(layer).save_own_variables
        return hasattr(layer, "save_assets") or not hook.__module__.startswith("keras.")

    return [path for path, layer in walk_layers(model) if is_suspect(layer)]
