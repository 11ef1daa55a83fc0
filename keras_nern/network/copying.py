"""Copies a model from its config and saved state, and verifies the copy by its outputs.

A config builds the layers that inference uses. Layers that only training uses are built with the
input shapes of the original's layers. State is transferred layer by layer with the methods that
`keras.Model.save` and `keras.models.load_model` call: `save_own_variables` and
`load_own_variables`, `save_assets` and `load_assets`. It includes vocabularies, lookup tables and
other state that is not a weight.
"""

import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_nern.network.kernels import finalize, own_variables, sublayers, walk_layers

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
        ValueError: if the config cannot be built, builds different layers, or does not share
            weights between layers as the model does, or if a layer's state cannot be transferred.
    """
    classes = {type(model), *(type(layer) for _, layer in walk_layers(model))}
    # Keras's own classes are left out: keras.layers.Add has the name of the class behind x + y
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    with warnings.catch_warnings():
        # Keras warns if a model holds layers that are never called
        warnings.filterwarnings("ignore", message="`build\\(\\)` was called on layer")
        try:
            copy = keras.saving.deserialize_keras_object(
                config,
                custom_objects=own,
                safe_mode=False,  # safe: every Lambda in it comes from the model itself
            )
            build_like(model, copy)
        except Exception as error:
            reason = str(error).rpartition("Exception encountered: ")[2]  # after the whole config
            raise ValueError(
                f"Expected a model that can be built from its config. Received: {model.name!r} "
                f"({type(error).__name__}: {reason})"
            ) from error
    for path, layer, twin in twins(model, copy):
        try:
            _transfer_state(layer, twin)
        except Exception as error:
            raise ValueError(
                f"Expected a layer whose saved state can be loaded into a copy. Received: {path!r} "
                f"of {model.name!r} ({type(error).__name__}: {error})"
            ) from error
    _check_sharing(model, copy)
    transfer_seeds(model, copy)
    finalize(copy)
    return copy


def without_compile_configs(config: Any) -> Any:
    """A config without the compile settings of its models, at every depth."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "compile_config"}
        return {key: without_compile_configs(value) for key, value in kept.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(map(without_compile_configs, config))
    return config


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
            + (f" and differs from {differing[0]!r} on" if differing else "")
        )
    for (path, layer), twin in zip(layers, copies, strict=True):
        yield path, layer, twin


def shares_weights(model: keras.Model) -> bool:
    """Whether two layers, neither of which contains the other, hold the same weight."""
    places = _weight_places(layer for _, layer in walk_layers(model))
    return sum(map(len, places)) > len({place for own in places for place in own})


def _check_sharing(model: keras.Model, copy: keras.Model) -> None:
    paths, layers, copies = zip(*twins(model, copy), strict=True)
    places = zip(paths, _weight_places(layers), _weight_places(copies), strict=True)
    for path, own, others in places:
        if own != others:
            raise ValueError(
                "Expected a model whose config says which layers share weights. Received: "
                f"{path!r} of {model.name!r}, which shares a weight that its copy does not share"
            )


def _weight_places(layers: Iterable[keras.layers.Layer]) -> list[list[int]]:
    """Numbers the weights that each layer holds itself, by their first appearance."""
    numbers: dict[int, int] = {}
    return [[numbers.setdefault(id(v), len(numbers)) for v in own_variables(x)] for x in layers]


def transfer_seeds(model: keras.Model, copy: keras.Model) -> None:
    """Gives a copy the states of the model's random seeds, which Keras does not save."""
    for seed, twin in zip(_seeds(model), _seeds(copy), strict=False):
        twin.assign(seed)


def _seeds(model: keras.Model) -> list[keras.Variable]:
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def save_alike(layer: keras.layers.Layer, copy: keras.layers.Layer) -> bool:
    """Whether two layers save equal variables and assets."""
    try:
        one, other = _saved_state(layer), _saved_state(copy)
    except Exception:  # such as a lookup table without entries
        return False
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def _saved_state(layer: keras.layers.Layer) -> dict[str, Any]:
    """What a layer saves: arrays, and the bytes of files."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    state: dict[str, Any] = {name: _to_array(value) for name, value in store.items()}
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
            state |= {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return state


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
        A batch of two inputs, or of as many as the model requires, in the structure that it
        takes. `None` if its input shapes are unknown or it accepts none of `PROBED_SIDES` for axes
        of unspecified length.
    """
    if getattr(model, "inputs", None):
        # the `input` of a Sequential model may be unknown
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    else:
        structure = _specs((model.get_build_config() or {}).get("input_shape"))
        if structure is None:
            return None
    for side in PROBED_SIDES:
        inputs = keras.tree.map_structure(lambda spec, s=side: _random(spec, s), structure)
        try:
            with keras.StatelessScope():
                model(inputs, training=False)
        except Exception:  # layers raise various errors for a size that they do not accept
            continue
        return inputs
    return None


def _specs(shapes: Any) -> Any:
    """Symbolic inputs of any batch size, from the shapes that built a subclassed model."""
    if isinstance(shapes, dict):
        return {name: _specs(shape) for name, shape in shapes.items()}
    if not isinstance(shapes, (list, tuple)):
        return None
    if all(side is None or isinstance(side, int) for side in shapes):
        return keras.KerasTensor((None, *shapes[1:]))
    return type(shapes)(map(_specs, shapes))


def _random(spec: keras.KerasTensor, side: int) -> Any:
    batch = spec.shape[0] or 2
    shape = (batch, *(side if length is None else length for length in spec.shape[1:]))
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if dtype == "string":
        return keras.ops.convert_to_tensor(np.full(shape, "a"))
    if keras.backend.is_float_dtype(dtype):
        values = np.random.default_rng(0).uniform(size=shape)
        return keras.ops.convert_to_tensor(values, dtype=dtype)
    return keras.ops.ones(shape, dtype=dtype)


def difference(call: Callable[[Any], Any], other: Callable[[Any], Any], inputs: Any) -> float:
    """The `distance` between two models' outputs."""
    with keras.StatelessScope():
        return distance(call(inputs), other(inputs))


def distance(outputs: Any, others: Any) -> float:
    """The largest difference between two structures of tensors, relative to the largest number."""
    largest = 0.0
    for pair in zip(keras.tree.flatten(outputs), keras.tree.flatten(others), strict=True):
        a, b = (np.asarray(_to_array(one), "float64") for one in pair)
        if a.shape != b.shape:
            return float("inf")
        scale = np.max(np.abs(a), where=np.isfinite(a), initial=0) or 1.0
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        largest = np.maximum(largest, np.max(np.abs(a[differ] - b[differ]), initial=0) / scale)
    return float(largest)
