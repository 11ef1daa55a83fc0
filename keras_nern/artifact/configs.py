"""A network's architecture as data: checked, measured and built without trusting it.

A Keras config is JSON that names classes and gives their arguments. Building it from a file
must not run code that the file brings, and must not take more memory than the caller allows:

* `check` refuses what Keras would need its *unsafe* mode for, and more: Lambda layers, what
  is no part of a network (Keras would look up any of its functions), files elsewhere, numbers
  that no layer's size needs, layers called on constants (Keras would run them), so many
  layers that to build them takes minutes.
* `weight_specs` builds an object without values, and returns the shapes of its weights; nothing of
  their size is allocated.
* `build` builds it.

Classes come from Keras, from `keras.saving.register_keras_serializable`, or from the caller's
`custom_objects`; none is imported for being named in the config.
"""

import concurrent.futures
import contextlib
import copy
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Layers whose config holds code, or a path to it.
CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
# Where Keras has the functions that layers take as arguments, and the classes of which a
# network and what is in it are.
FUNCTIONS = (
    *("keras.activations", "keras.ops", "keras.initializers", "keras.regularizers"),
    *("keras.constraints", "builtins"),
)
CLASSES = (
    *("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints"),
    *("keras.dtype_policies", "keras.quantizers", "keras.random", "keras.src.applications"),
    *("keras.src.layers", "keras.src.models", "keras.src.ops", "keras.src.dtype_policies"),
    *("keras.losses", "keras.metrics", "keras.optimizers"),  # that a registered class may hold
)
# Of these, what layers have and do not call.
ARGUMENTS = (
    *("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies"),
    *("keras.src.initializers", "keras.src.regularizers", "keras.src.dtype_policies"),
)
# Packages that Keras would import for being named.
IMPORTED = ("keras_hub", "keras_cv", "keras_nlp")
NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|b?float(16|32|64)")
Shapes = list[tuple[tuple[int, ...], str]]
MOST_CALLS = 2**15  # of layers, to build a network
MOST_FACTORED = 2**39  # products, to draw orthogonal weights that are then replaced
LARGEST = 2**24  # of integers in a config, seeds and the like excepted
UNBOUNDED = ("seed", "shared_object_id")


def serialize(obj: keras.layers.Layer) -> dict:
    """The config of a Keras object, without how it or models in it were compiled.

    Raises:
        ValueError: where it has none.
    """
    try:
        config = keras.saving.serialize_keras_object(obj)
    except Exception as error:  # NotImplementedError, and what layers say
        raise ValueError(
            "Expected a base and an encoding that Keras can write as a config. Received: "
            f"{obj.name!r} ({_said(error)})"
        ) from error
    for _, value in _entries(config):
        if isinstance(value, dict):
            value.pop("compile_config", None)
    return config


def check(config: dict, largest: int = LARGEST, functions: Sequence[str] = FUNCTIONS) -> None:
    """Checks that a config brings no code and asks for nothing out of proportion.

    Args:
        config: as `serialize` gives it, or as it was read from a file.
        largest: of integers in it. Defaults to 2^24.
        functions: the modules that functions of Keras may be from. Defaults to `FUNCTIONS`.

    Raises:
        ValueError: where it does.
    """
    for key, value in _entries(config):
        if key == "compile_config":
            raise ValueError("it says how the model is compiled")
        if isinstance(value, dict):
            _check_class(value, functions)
        elif key == "vocabulary" and isinstance(value, str):
            raise ValueError(f"it takes a vocabulary from the file {value!r}")
        elif isinstance(value, int) and abs(value) > largest and key not in UNBOUNDED:
            raise ValueError(f"it asks for {key}={value!r}, beyond {largest:,}")
        elif key == "inbound_nodes" and isinstance(value, list):
            _check_nodes(value)
    try:
        calls = _calls(config)
    except RecursionError as error:
        raise ValueError("its layers are nested too deeply") from error
    if calls > MOST_CALLS:
        raise ValueError(
            f"Keras calls layers {calls:,} times to build it, more than {MOST_CALLS:,} (a "
            "Sequential or Pipeline of n counts n times each)"
        )


def _check_nodes(nodes: list) -> None:
    """Checks that what calls a layer gives it the output of another.

    A layer that is called on constants alone computes at once, with numbers of any size.
    """
    for node in nodes:
        if not isinstance(node, dict) or not any(
            isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"
            for _, value in _entries(node)
        ):
            raise ValueError("it calls a layer on constants, or in a form of Keras 2")


def _calls(config: object) -> int:
    """How often layers are called to build what a config is of, at most."""
    if isinstance(config, (list, tuple)):
        return sum(map(_calls, config))
    if not isinstance(config, dict):
        return 0
    calls = sum(map(_calls, config.values()))
    # one is called anew with each layer that it is given, the other traces each, which takes long
    if config.get("class_name") in ("Sequential", "Pipeline"):
        inner = config.get("config")
        layers = inner.get("layers") if isinstance(inner, dict) else inner
        calls *= max(1, len(layers) if isinstance(layers, list) else 1)
    return calls + _may_be_called(config)


def _may_be_called(config: dict[str, Any]) -> bool:
    name, module = str(config.get("class_name")), str(config.get("module"))
    is_object = "class_name" in config and not name.startswith("__") and name != "function"
    return is_object and not _is_in(module, ARGUMENTS)


def check_initializers(config: dict, shapes: Shapes) -> None:
    """Checks that to initialise weights takes no longer than their number suggests.

    Orthogonal ones are factored, in the cube of their size, and replaced by those of the file.

    Args:
        config: that `check` did not refuse.
        shapes: of the weights that it has, as from `weight_specs`.

    Raises:
        ValueError: where it does.
    """
    words = (value for _, value in _entries(config) if isinstance(value, str))
    if not any(word.lower().startswith("orthogonal") for word in words):
        return
    products = 0
    for shape, _ in shapes:
        if len(shape) > 1:
            rows, columns = math.prod(shape[:-1]), shape[-1]
            products += rows * columns * min(rows, columns)
    if products > MOST_FACTORED:
        raise ValueError(
            f"its initializers are orthogonal, which takes {products:,} products, more than "
            f"{MOST_FACTORED:,}"
        )


def _check_class(config: dict[str, Any], functions: Sequence[str]) -> None:
    name, module = str(config.get("class_name")), str(config.get("module"))
    is_function = name == "function"
    if is_function:
        name = str(config.get("config"))
    if name.rpartition(".")[2] in CODE:
        raise ValueError(
            f"{name!r} is Python code or refers to it, which a compact file does not hold: "
            "make it a layer of a registered class"
        )
    if name in ("__numpy__", "__tensor__"):  # its type says how many bytes a number takes
        inner = config.get("config")
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not isinstance(dtype, str) or not NUMBERS.fullmatch(dtype):
            raise ValueError(f"it has an array of the type {dtype!r}")
    package = module.partition(".")[0]
    if name == "__typespec__" or (package in IMPORTED and not is_registered(config)):
        raise ValueError(f"{module}.{config.get('spec_name', name)} is not registered")
    # Keras joins module and name before it looks them up, so a dot in the name hides a module
    if is_function and package in ("keras", "builtins"):
        known = _is_in(module, functions) and "." not in name
        if not known and not is_registered(config):
            raise ValueError(f"{module}.{name} is no function for a layer")
    elif package == "keras" and not is_registered(config):
        known = module == "keras" or _is_in(module, CLASSES)
        if not known or "." in name or not name[:1].isupper():
            raise ValueError(f"{module}.{name} is no part of a network")


def _is_in(module: str, modules: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in modules)


def is_registered(config: dict[str, Any]) -> bool:
    """Whether the object that a config names is one that this process registered."""
    name = config.get("config" if config.get("class_name") == "function" else "registered_name")
    return isinstance(name, str) and keras.saving.get_registered_object(name) is not None


def _entries(config: object) -> Iterator[tuple[Any, Any]]:
    """All values in a config, at any depth, each with the key it, or its list, is under."""
    waiting: list[tuple[Any, Any]] = [(None, config)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, (list, tuple)):
            waiting += [(key, one) for one in value]


def weight_specs(
    config: dict, custom_objects: dict | None = None, prepare: Callable | None = None
) -> Shapes:
    """The shapes and types of the weights that an object would have.

    Args:
        config: of the object.
        custom_objects: dict from name to class. Defaults to `None`.
        prepare: function from the object to one that is built; `None` where it is.
            Defaults to `None`.

    Returns:
        List of `(shape, dtype)`.

    Raises:
        ValueError: where it cannot be built.
    """
    # A thread of its own, for Keras keeps a list per thread of variables that have no value
    # yet, and would give them one sooner or later.
    found = {**_named(config), **(custom_objects or {})}
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_weight_specs, config, found, prepare).result()


def _weight_specs(config: dict, custom_objects: dict, prepare: Callable | None) -> Shapes:
    try:
        with keras.StatelessScope(initialize_variables=False):
            return _weight_specs_here(config, custom_objects, prepare)
    except ValueError:
        # Not in that scope: variables that are made from values. Then in a graph, slowly.
        with tf.Graph().as_default():
            return _weight_specs_here(config, custom_objects, prepare)


def _weight_specs_here(config: dict, custom_objects: dict, prepare: Callable | None) -> Shapes:
    obj = build(config, custom_objects)
    return shapes(obj if prepare is None else prepare(obj))


def shapes(obj: keras.layers.Layer) -> Shapes:
    """The shapes and types of an object's weights, a list of `(shape, dtype)`."""
    return [
        (tuple(weight.shape), keras.backend.standardize_dtype(weight.dtype))
        for weight in obj.weights
    ]


def _named(config: dict) -> dict[str, Any]:
    """What is registered, or in a custom object scope, of all that a config names."""
    names = {value for _, value in _entries(config) if isinstance(value, str)}
    found = {name: keras.saving.get_registered_object(name) for name in names}
    return {name: obj for name, obj in found.items() if obj is not None}


def build(config: dict | str, custom_objects: dict | None = None) -> Any:
    """Builds an object from its config.

    Args:
        config: that `check` did not refuse.
        custom_objects: dict from name to class. Defaults to `None`.

    Returns:
        A Keras object.

    Raises:
        ValueError: where it cannot be built.
    """
    with errors_of_keras():
        own = copy.deepcopy(config)  # Keras changes the config it reads
        return keras.saving.deserialize_keras_object(own, custom_objects, safe_mode=True)


@contextlib.contextmanager
def errors_of_keras() -> Iterator[None]:
    """Makes a ValueError of whatever a layer says to arguments that are none of its."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"Keras cannot build it: {_said(error)}") from error


def _said(error: Exception) -> str:
    """The point of an error of Keras, which may quote the whole config around it."""
    text = str(error).rpartition("Exception encountered: ")[2]
    return f"{type(error).__name__}: {textwrap.shorten(text, 300)}"


def check_encoding(encoding: object) -> None:
    """Checks that a predictor's encoding is one layer, from `(n, 3)` to `(n, features)`.

    A predictor runs when a file is read. Of Keras's own layers, several in a row, or within one
    of ours, could be told to compute with any amount of numbers, and leave no trace in the
    shapes of weights.

    Args:
        encoding: what was built from a config.

    Raises:
        ValueError: where it is not.
    """
    if not isinstance(encoding, keras.layers.Layer):
        raise ValueError(f"its encoding is no layer: {encoding!r}")
    own = type(encoding).__module__.partition(".")[0] not in ("keras", "keras_nern")
    if not own and list(encoding._flatten_layers(include_self=False)):
        raise ValueError(
            f"its encoding {encoding.name!r} is made of several of Keras's layers: make it a "
            "layer of a registered class"
        )
    with errors_of_keras():
        shape = encoding(keras.KerasTensor((None, 3), "int32")).shape
    if len(shape) != 2:
        raise ValueError(f"its encoding gives {shape} instead of (n, features)")


def num_bytes(shapes: Shapes) -> int:
    """The bytes that weights of these shapes and types take."""
    return sum(math.prod(shape) * np.dtype(_numpy_name(dtype)).itemsize for shape, dtype in shapes)


def _numpy_name(dtype: str) -> str:
    return {"bfloat16": "float16", "string": "uint8"}.get(dtype, dtype)
