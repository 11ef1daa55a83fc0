"""Keras configs from untrusted files: checks, the sizes of weights, and building.

A Keras config is JSON that names classes and gives their arguments. Building it from a file must
not run code from the file, must not read other files, and must not take more memory than the
caller allows:

* `check` rejects configs that need Keras's *unsafe* mode, such as those of Lambda layers. It also
  rejects classes and functions that are not part of a network (Keras would look up any of its
  own), paths of other files, integers larger than any layer needs, and layers called on constants,
  which Keras would run at once.
* `weight_specs` returns the shapes of an object's weights without allocating memory for them.
* `build` builds the object.

Classes come from Keras, from `keras.saving.register_keras_serializable`, or from the caller's
`custom_objects`. A class that only the config names is never imported.
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

from keras_nern.network.copying import without_compile_configs
from keras_nern.predictor.positional_encoding import PositionalEncoding

# Layers whose config holds code, or a path to it.
CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
# Modules of the functions that layers take as arguments.
FUNCTIONS = (
    *("keras.activations", "keras.ops", "keras.initializers", "keras.regularizers"),
    *("keras.constraints", "builtins"),
)
# Modules of a network's classes, and of those that its layers may hold.
CLASSES = (
    *("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints"),
    *("keras.dtype_policies", "keras.quantizers", "keras.random", "keras.src.applications"),
    *("keras.src.layers", "keras.src.models", "keras.src.ops", "keras.src.dtype_policies"),
    *("keras.losses", "keras.metrics", "keras.optimizers"),  # held by registered classes
)
# Packages that Keras would import because a config names them.
IMPORTED = ("keras_hub", "keras_cv", "keras_nlp")
NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|b?float(16|32|64)")
MAX_INTEGER = 2**24  # largest integer in a config; the keys in UNBOUNDED are exempt
UNBOUNDED = ("seed", "shared_object_id")

Specs = list[tuple[tuple[int, ...], str]]  # shapes and dtypes of weights


def serialize(obj: keras.layers.Layer) -> dict:
    """Serializes a Keras object, without the compile configs of models in it.

    Raises:
        ValueError: if the object has no config.
    """
    try:
        return without_compile_configs(keras.saving.serialize_keras_object(obj))
    except Exception as error:  # NotImplementedError, and any error of custom layers
        raise ValueError(
            "Expected a base and an encoding that Keras can serialize. Received: "
            f"{obj.name!r} ({_summary(error)})"
        ) from error


def check(
    config: dict, max_integer: int = MAX_INTEGER, functions: Sequence[str] = FUNCTIONS
) -> None:
    """Checks that a config contains no code and no excessive sizes.

    Args:
        config: a config, as returned by `serialize` or read from a file.
        max_integer: largest integer that is allowed. Defaults to 2^24.
        functions: modules of Keras whose functions are allowed. Defaults to `FUNCTIONS`.

    Raises:
        ValueError: if the config contains something that is not allowed.
    """
    for key, value in _entries(config):
        if key == "compile_config":
            raise ValueError("it has a compile_config")
        if isinstance(value, dict):
            _check_class(value, functions)
            if isinstance(value.get("vocabulary"), str):  # a list of them holds the words
                raise ValueError(f"it reads a vocabulary from the file {value['vocabulary']!r}")
        elif isinstance(value, int) and abs(value) > max_integer and key not in UNBOUNDED:
            raise ValueError(f"it has {key}={value!r}, more than {max_integer:,}")
        elif key == "inbound_nodes" and isinstance(value, list):
            _check_nodes(value)


def _check_nodes(nodes: list) -> None:
    """Checks that every layer is called on the output of another layer.

    A layer that is called on constants computes at once, with arrays of any size.
    """
    for node in nodes:
        if not isinstance(node, dict) or not any(
            isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"
            for _, value in _entries(node)
        ):
            raise ValueError("it calls a layer on constants, or in the format of Keras 2")


def _check_class(config: dict[str, Any], functions: Sequence[str]) -> None:
    name, module = str(config.get("class_name")), str(config.get("module"))
    is_function = name == "function"
    if is_function:
        name = str(config.get("config"))
    if name.rpartition(".")[2] in CODE:
        raise ValueError(
            f"{name!r} is Python code or refers to it, and a compact file cannot hold code: use a "
            "layer of a registered class"
        )
    if name in ("__numpy__", "__tensor__"):  # "U99" would allocate 99 characters per number
        inner = config.get("config")
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not isinstance(dtype, str) or not NUMBERS.fullmatch(dtype):
            raise ValueError(f"it has an array of the type {dtype!r}")
    package = module.partition(".")[0]
    if name == "__typespec__" or (package in IMPORTED and not _is_registered(config)):
        raise ValueError(f"{module}.{config.get('spec_name', name)} is not registered")
    # Keras joins module and name before it looks them up, so a dot in the name hides a module.
    if is_function and package in ("keras", "builtins"):
        if not (_is_in(module, functions) and "." not in name) and not _is_registered(config):
            raise ValueError(f"{module}.{name} is not a function for a layer")
    elif package == "keras" and not _is_registered(config):
        known = module == "keras" or _is_in(module, CLASSES)
        if not known or "." in name or not name[:1].isupper():
            raise ValueError(f"{module}.{name} is not part of a network")


def _is_in(module: str, modules: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in modules)


def _is_registered(config: dict[str, Any]) -> bool:
    """Whether the object that a config names has been registered in this process."""
    name = config.get("config" if config.get("class_name") == "function" else "registered_name")
    return isinstance(name, str) and keras.saving.get_registered_object(name) is not None


def _entries(config: object) -> Iterator[tuple[Any, Any]]:
    """Yields all values in a config with their keys; an item of a list has the list's key."""
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
) -> Specs:
    """The shapes and dtypes of the weights that an object would have.

    Args:
        config: config of the object.
        custom_objects: dict from name to class. Defaults to `None`.
        prepare: function that takes the object and returns a built one, whose weights are listed
            instead; `None` to list the object's own. Defaults to `None`.

    Returns:
        A list of `(shape, dtype)`.

    Raises:
        ValueError: if the object cannot be built.
    """
    # Keras lists variables without a value per thread, and would create the values later. A thread
    # of its own discards that list.
    found = {**_registered_objects(config), **(custom_objects or {})}
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_weight_specs, config, found, prepare).result()


def _weight_specs(config: dict, custom_objects: dict, prepare: Callable | None) -> Specs:
    def specs() -> Specs:
        obj = build(config, custom_objects)
        return specs_of(obj if prepare is None else prepare(obj))

    try:
        with keras.StatelessScope(initialize_variables=False):
            return specs()
    except ValueError:
        # That scope cannot create variables that are made from values. A graph can, but is slow.
        with tf.Graph().as_default():
            return specs()


def specs_of(obj: keras.layers.Layer) -> Specs:
    """The shapes and dtypes of an object's weights, a list of `(shape, dtype)`."""
    return [
        (tuple(weight.shape), keras.backend.standardize_dtype(weight.dtype))
        for weight in obj.weights
    ]


def _registered_objects(config: dict) -> dict[str, Any]:
    """The objects named in a config that are registered or in a custom object scope."""
    names = {value for _, value in _entries(config) if isinstance(value, str)}
    found = {name: keras.saving.get_registered_object(name) for name in names}
    return {name: obj for name, obj in found.items() if obj is not None}


def build(config: dict | str, custom_objects: dict | None = None) -> Any:
    """Builds an object from its config.

    Args:
        config: a config that `check` accepted.
        custom_objects: dict from name to class. Defaults to `None`.

    Returns:
        A Keras object.

    Raises:
        ValueError: if Keras cannot build the object.
    """
    with keras_errors():
        own = copy.deepcopy(config)  # Keras changes the config that it reads
        return keras.saving.deserialize_keras_object(own, custom_objects, safe_mode=True)


@contextlib.contextmanager
def keras_errors() -> Iterator[None]:
    """Converts every error of Keras or a layer to a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"Keras cannot build it: {_summary(error)}") from error


def _summary(error: Exception) -> str:
    """The last part of an error of Keras, which may quote the whole config before it."""
    text = str(error).rpartition("Exception encountered: ")[2]
    return f"{type(error).__name__}: {textwrap.shorten(text, 300)}"


def check_encoding(encoding: object) -> None:
    """Checks that a predictor's encoding is a layer from `(n, 3)` to `(n, features)`.

    The predictor runs while a file is read. Layers of Keras are rejected, because they could
    compute arrays of any size without having weights of that size.

    Args:
        encoding: an object built from a config.

    Raises:
        ValueError: if `encoding` is another object, a layer of Keras, or has an
            `activity_regularizer`.
    """
    if not isinstance(encoding, keras.layers.Layer):
        raise ValueError(f"its encoding is not a layer: {encoding!r}")
    package = type(encoding).__module__.partition(".")[0]
    if package in ("keras", "keras_nern") and type(encoding) is not PositionalEncoding:
        raise ValueError(
            f"its encoding {encoding.name!r} is neither a PositionalEncoding nor a layer of a "
            "registered class"
        )
    if encoding.activity_regularizer is not None:
        raise ValueError(f"its encoding {encoding.name!r} has an activity_regularizer")
    with keras_errors():
        shape = encoding(keras.KerasTensor((None, 3), "int32")).shape
    if len(shape) != 2:
        raise ValueError(f"its encoding returns {shape} instead of (n, features)")


def num_bytes(specs: Specs) -> int:
    """The size in bytes of weights of these shapes and dtypes.

    Raises:
        ValueError: if weights are not numbers.
    """
    for _, dtype in specs:
        if not NUMBERS.fullmatch(dtype):
            raise ValueError(f"it has weights of the type {dtype!r}")
    return sum(math.prod(shape) * np.dtype(_numpy_name(dtype)).itemsize for shape, dtype in specs)


def _numpy_name(dtype: str) -> str:
    return "float16" if dtype == "bfloat16" else dtype
