"""Copies of a model: made from its config, given its state as Keras saves and loads it, and proven.

A config builds the layers that inference reaches. Layers that only training reaches are built by
the shapes with which they were built in the original. State is transferred layer by layer, by the
methods that `keras.Model.save` and `keras.models.load_model` call: `save_own_variables` and
`load_own_variables`, `save_assets` and `load_assets`. It includes what is not a weight, such as
vocabularies and tables. A copy is proven by comparing its outputs with those of the original.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_nern.network.kernels import finalize, sublayers, walk_layers

PROBED_SIDES = (32, 224, 1)  # lengths tried for axes of any length
TOLERANCE = 1e-4  # largest difference of outputs, relative to the largest output


def copy_model(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Creates a model of the same class and config with copies of the variables.

    Args:
        model: a built `keras.Model`.
        config: the serialized model.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if the config builds other layers than the model has, or if a layer's state
            cannot be transferred.
    """
    classes = {type(model), *(type(layer) for _, layer in walk_layers(model))}
    # Keras's own classes are left out: keras.layers.Add has the name of the class behind x + y
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    with warnings.catch_warnings():
        # said of models that hold layers which are never called
        warnings.filterwarnings("ignore", message="`build\\(\\)` was called on layer")
        copy = keras.saving.deserialize_keras_object(
            config,
            custom_objects=own,
            safe_mode=False,  # this process already holds every Lambda in it
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
    """Builds the sublayers of a copy that the original has built and the config has not."""
    if layer.built and not copy.built:
        config = layer.get_build_config()
        if config is not None:
            copy.build_from_config(config)
    for one, twin in zip(sublayers(layer), sublayers(copy), strict=False):
        build_like(one, twin)


def build_configs(model: keras.Model) -> list[dict[str, Any] | None]:
    """How layers were built that a config may leave unbuilt: those that custom classes hold.

    Returns:
        For each layer of `walk_layers`, what `layer.get_build_config()` returns, or `None`. Names
        would not do, because a subclassed model may name the layers of its copy differently.
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
    """Builds what a model has not built yet, by what `build_configs` returned for the original."""
    for index, config in enumerate(configs):
        # walked anew, because building a layer may create the layers in it that come next
        layers = [layer for _, layer in walk_layers(model)] if config is not None else []
        if config is not None and index < len(layers) and not layers[index].built:
            layers[index].build_from_config(config)


def twins(
    model: keras.Model, copy: keras.Model
) -> Iterator[tuple[str, keras.layers.Layer, keras.layers.Layer]]:
    """Yields `(path, layer, layer of the copy)`, the models first.

    Layers are matched by their order, because a subclassed model may name the layers of its copy
    differently.

    Raises:
        ValueError: if the layers of the copy are others.
    """
    layers = [(model.name, model), *walk_layers(model)]
    copies = [copy, *(layer for _, layer in walk_layers(copy))]
    kinds = [type(layer).__name__ for _, layer in layers], [type(one).__name__ for one in copies]
    if kinds[0] != kinds[1]:
        differing = [path for (path, _), a, b in zip(layers, *kinds, strict=False) if a != b]
        raise ValueError(
            f"Expected a model that its config rebuilds. Received: {model.name!r} with "
            f"{len(layers) - 1} layers, whose copy has {len(copies) - 1}"
            + f", from {differing[0]!r} on of other classes"
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
    """Inputs on which a model can be compared with its copy.

    Returns:
        A batch of two random inputs in the structure that the model takes, or `None` if the model
        does not tell, or none of the sizes tried for axes of any length suits it.
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
        except Exception:  # whatever layers say to a size that does not suit them
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
    """The largest difference of two models' outputs, relative to the largest output."""
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
    """Paths of layers that may hold state which is not a weight: assets, or hooks of their own."""

    def is_suspect(layer: keras.layers.Layer) -> bool:
        hook = type(layer).save_own_variables
        return hasattr(layer, "save_assets") or not hook.__module__.startswith("keras.")

    return [path for path, layer in walk_layers(model) if is_suspect(layer)]
