"""Rebuilding a classifier from the parts of a compact file.

Nothing in the parts is believed. Sizes follow from the architecture, which is outlined before
it is built, and are held against what the parts contain and what the caller allows, before
memory is taken. What does not fit is a `ValueError` that says so.
"""

import json
import math
from typing import Any

import keras
import numpy as np

from keras_nern.artifact import codec, configs, container
from keras_nern.network.blocks import BLOCK_SIZE, VIEWS, Blocks
from keras_nern.network.kernels import finalize, kernels_of
from keras_nern.permutations.orders import KINDS
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.predictor.quantization import Quantized
from keras_nern.utils import checks
from keras_nern.utils.types import Grid, Tensor

MAX_BYTES = 2**31  # of a rebuilt classifier
PARTS = 3  # that may each take max_bytes: classifier, predictor, orders
LARGEST_WIDTH = 2**16  # of a predictor, its encoding and its blocks
MOST_BLOCKS = 1024  # Dense layers of a predictor
ACTIVATIONS = 2**24  # numbers that the predictor computes with at once
MOST_PRODUCTS = 2**46  # of numbers, to predict all blocks
BLOCK_BYTES = 64  # what a block's place in an order and its coordinate take while they are made
CONFIG_RATIO = 500  # how many times its size a config may at most unpack to
CONFIG_BYTES = 2**20  # or to this, if it is more
MOST_CONFIG_BYTES = 2**23  # and never to more than this, eight times what NASNetLarge needs

# The fields of the config and their types; those of docs/format.md.
FIELDS = {
    "versions": dict,
    "base_sha256": str,
    "kept_precision": str,
    "normalize": bool,
    "permutation": (str, type(None)),
    "view": str,
    "block_size": (int, type(None)),
    "include_dense": bool,
    "kernels": list,
    "predictor": dict,
    "architecture": dict,
}
KERNEL_FIELDS = {"name": str, "weight": int, "shape": list, "grid": list}
PREDICTOR_FIELDS = {
    "precision": str,
    "hidden_size": int,
    "num_layers": int,
    "block_length": int,
    "activation": (str, dict),
    "encoding": dict,
}
CHOICES = {
    "kept_precision": codec.FLOATS,
    "permutation": KINDS,
    "view": VIEWS,
}


def read_config(parts: dict[str, bytes]) -> dict:
    """Reads and checks the part `config`.

    Args:
        parts: dict from name to bytes.

    Returns:
        A dict with `FIELDS`, whose architecture and encoding bring no code.

    Raises:
        ValueError: where it is none.
    """
    if "config" not in parts:
        raise ValueError("it has no part 'config'")
    packed = parts["config"]
    most = min(MOST_CONFIG_BYTES, max(CONFIG_BYTES, CONFIG_RATIO * len(packed)))
    text = codec.unpack(packed, most)
    try:
        config = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its config is no JSON: {error}") from error
    _check_fields("its config", config, FIELDS)
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"its {name} is {config[name]!r}, none of {choices}")
    block_size = config["block_size"]
    if block_size is not None and (config["view"] == "crop" or block_size < 1):
        raise ValueError(f"its block_size is {block_size!r} in the view {config['view']!r}")
    for kernel in config["kernels"]:
        _check_fields("one of its kernels", kernel, KERNEL_FIELDS)
        sizes = [*kernel["shape"], *kernel["grid"]]
        if len(kernel["grid"]) != 2 or len(kernel["shape"]) < 2 or not all(map(_is_size, sizes)):
            raise ValueError(f"one of its kernels has no shape and grid: {kernel}")
    _check_fields("its architecture", config["architecture"], {"class_name": str, "config": dict})
    predictor = config["predictor"]
    _check_fields("its predictor", predictor, PREDICTOR_FIELDS)
    if predictor["precision"] not in codec.PRECISIONS:
        raise ValueError(f"its precision is {predictor['precision']!r}, none of {codec.PRECISIONS}")
    if predictor["num_layers"] > MOST_BLOCKS:
        raise ValueError(f"its predictor has more than {MOST_BLOCKS} layers")
    configs.check(config["architecture"])
    # the predictor runs while the file is read, so with none but the well-known activations
    configs.check(predictor, LARGEST_WIDTH, functions=())
    activation = predictor["activation"]
    if isinstance(activation, dict):
        is_function = activation.get("class_name") == "function"
        if not is_function or not configs.is_registered(activation):
            raise ValueError(f"its predictor's activation is no registered function: {activation}")
    return config


def check_products(blocks: int, parameters: int) -> None:
    """Checks that it can be computed in reasonable time what a file asks for.

    Args:
        blocks: how many are predicted.
        parameters: of the predictor.

    Raises:
        ValueError: where it cannot.
    """
    if blocks * parameters > MOST_PRODUCTS:
        raise ValueError(
            f"{blocks:,} blocks from a predictor of {parameters:,} parameters take more than "
            f"{MOST_PRODUCTS:,} products"
        )


def _check_fields(what: str, config: object, fields: dict[str, Any]) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{what} is no object: {config!r}")
    for name, types in fields.items():
        value = config.get(name)
        wrong = isinstance(value, bool) and types is not bool
        if name not in config or wrong or not isinstance(value, types):
            raise ValueError(f"{what} has {name}={value!r}")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1


class Rebuilding:
    """A classifier on its way from the parts of a file.

    Args:
        parts: dict from name to bytes.
        custom_objects, max_bytes: see `artifact.load`.

    Raises:
        ValueError: where the config is none.
    """

    def __init__(self, parts: dict[str, bytes], custom_objects: dict | None, max_bytes: int):
        self.parts = parts
        self.custom_objects = custom_objects
        self.max_bytes = max_bytes
        self.config = read_config(parts)

    def classifier(self) -> keras.Model:
        """Rebuilds it.

        Returns:
            A Keras model.

        Raises:
            ValueError: where the parts are none of a classifier's, or too large.
        """
        config = self.config
        shapes = configs.weight_specs(config["architecture"], self.custom_objects, _as_model)
        self._check_bytes("its classifier", configs.num_bytes(shapes))
        configs.check_initializers(config["architecture"], shapes)
        self._check_kernels(shapes)
        represented = {kernel["weight"] for kernel in config["kernels"]}
        kept = [index for index in range(len(shapes)) if index not in represented]
        values = self._arrays("kept", [shapes[i] for i in kept], config["kept_precision"])
        predictor = self._predictor()
        model = configs.build(config["architecture"], self.custom_objects)
        weights = model.weights
        blocks = self._blocks(model, weights)
        coordinates = self._permutation(blocks.grids).coordinates()
        scales = np.ones(len(blocks.kernels), "float32")
        if config["normalize"]:
            scales = codec.unpack_floats(self._part("scales"), len(scales), "float32")
        for index, value in zip(kept, values, strict=True):
            weights[index].assign(value)
        for index, kernel in enumerate(blocks.kernels):
            start, stop = blocks.offsets[index : index + 2].tolist()
            predicted = _predicted(predictor, coordinates[start:stop])
            kernel.variable.assign(blocks.kernel(index, predicted) * scales[index])
        finalize(model)
        return model

    def _part(self, name: str) -> bytes:
        if name not in self.parts:
            raise ValueError(f"it has no part {name!r}")
        return self.parts[name]

    def _check_bytes(self, what: str, count: int) -> None:
        if count > self.max_bytes:
            raise ValueError(
                f"{what} takes {count:,} bytes, more than max_bytes={self.max_bytes:,}"
            )

    def _check_kernels(self, shapes: configs.Shapes) -> None:
        """Checks the represented kernels against the classifier's weights and the blocks."""
        config = self.config
        kernels = config["kernels"]
        places = [kernel["weight"] for kernel in kernels]
        if not kernels or len(set(places)) < len(places):
            raise ValueError(f"its kernels are the weights {places}")
        for kernel in kernels:
            if not 0 <= kernel["weight"] < len(shapes):
                raise ValueError(f"its kernel {kernel} is none of {len(shapes)} weights")
            if list(shapes[kernel["weight"]][0]) != kernel["shape"]:
                raise ValueError(f"its kernel {kernel} is of shape {shapes[kernel['weight']][0]}")
        spatial = [kernel["shape"][:-2] for kernel in kernels]
        length = (config["block_size"] or BLOCK_SIZE) ** 2
        if config["view"] == "crop":
            rank = max(1, *map(len, spatial))
            length = max((1, *(max(sides, default=1) for sides in spatial))) ** rank
        if length != config["predictor"]["block_length"]:
            raise ValueError(f"its blocks have {length} weights, and its predictor others")
        self._check_bytes("a table of its blocks", 8 * length * len(kernels))
        self._check_bytes("the order of its blocks", BLOCK_BYTES * self._num_blocks)
        for kernel in kernels:
            count = math.prod(kernel["grid"]) * length
            self._check_bytes(f"the kernel {kernel['name']!r} in blocks", 4 * count)

    @property
    def _num_blocks(self) -> int:
        return sum(math.prod(kernel["grid"]) for kernel in self.config["kernels"])

    def _blocks(self, model: keras.Model, weights: list[keras.Variable]) -> Blocks:
        config = self.config
        chosen = [weights[kernel["weight"]] for kernel in config["kernels"]]
        ids = {id(variable) for variable in chosen}
        blocks = Blocks(
            model,
            config["view"],
            config["block_size"],
            include=lambda layer: all(id(k.variable) in ids for k in kernels_of("", layer)),
            include_dense=config["include_dense"],
        )
        grids = [tuple(kernel["grid"]) for kernel in config["kernels"]]
        if blocks.grids != grids or any(
            kernel.variable is not variable
            for kernel, variable in zip(blocks.kernels, chosen, strict=True)
        ):
            raise ValueError(f"its kernels are in blocks {grids}, its classifier's {blocks.grids}")
        return blocks

    def _permutation(self, grids: list[Grid]) -> Permutation:
        kind = self.config["permutation"]
        if kind is None:
            return Permutation(grids, kind=None)
        return codec.decode_orders(self._part("permutation"), grids, kind)

    def _predictor(self) -> KernelPredictor:
        """The predictor with its weights as floats, whatever they are in the file."""
        config = self.config["predictor"]

        def make(encoding: Any) -> KernelPredictor:
            configs.check_encoding(encoding)
            names = ("hidden_size", "num_layers", "block_length")
            with configs.errors_of_keras():
                predictor = KernelPredictor(
                    **{name: config[name] for name in names},
                    encoding=encoding,
                    activation=configs.build(config["activation"], self.custom_objects),
                )
                predictor.build((None, 3))
            return predictor

        shapes = configs.weight_specs(config["encoding"], self.custom_objects, make)
        self._check_bytes("its predictor", configs.num_bytes(shapes))
        configs.check_initializers(config["encoding"], shapes)
        check_products(self._num_blocks, sum(math.prod(shape) for shape, _ in shapes))
        predictor = make(configs.build(config["encoding"], self.custom_objects))
        encoding = self._arrays("predictor.encoding", configs.shapes(predictor.encoding), "float32")
        for weight, value in zip(predictor.encoding.weights, encoding, strict=True):
            weight.assign(value)
        kernels = self._kernels([tuple(layer.kernel.shape) for layer in predictor.layers])
        sizes = [tuple(layer.bias.shape) for layer in predictor.layers]
        dtype = codec.bias_type(config["precision"])
        biases = self._floats("predictor.biases", sizes, dtype)
        for layer, kernel, bias in zip(predictor.layers, kernels, biases, strict=True):
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
        return predictor

    def _kernels(self, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        precision = self.config["predictor"]["precision"]
        if precision in codec.FLOATS:
            return self._floats("predictor.kernels", shapes, precision)
        bits = int(precision.removeprefix("int"))
        levels = codec.decode_levels(self._part("predictor.levels"), shapes, bits)
        step_sizes = self._floats(
            "predictor.step_sizes", [shape[-1:] for shape in shapes], "float16"
        )
        return [Quantized(*pair).values() for pair in zip(levels, step_sizes, strict=True)]

    def _floats(self, name: str, shapes: list[tuple[int, ...]], dtype: str) -> list[np.ndarray]:
        sizes = [math.prod(shape) for shape in shapes]
        values = codec.unpack_floats(self._part(name), sum(sizes), dtype)
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _arrays(self, name: str, shapes: configs.Shapes, precision: str) -> list[np.ndarray]:
        """Weights of several types, in their order."""
        types = [codec.stored_type(dtype, precision) for _, dtype in shapes]
        values = {
            dtype: iter(
                self._floats(
                    f"{name}.{dtype}",
                    [shape for (shape, _), one in zip(shapes, types, strict=True) if one == dtype],
                    dtype,
                )
            )
            for dtype in dict.fromkeys(types)
        }
        return [next(values[dtype]) for dtype in types]


def _predicted(predictor: KernelPredictor, coordinates: np.ndarray) -> Tensor:
    """What a predictor answers, by no more at once than memory is good for."""
    widest = max(max(layer.kernel.shape) for layer in predictor.layers)
    chunk = max(1, ACTIVATIONS // widest)
    with configs.errors_of_keras():
        answers = [
            predictor(coordinates[start : start + chunk])
            for start in range(0, len(coordinates), chunk)
        ]
        predicted = keras.ops.concatenate(answers)
    expected = (len(coordinates), predictor.block_length)
    if tuple(predicted.shape) != expected:
        raise ValueError(f"its predictor gives {tuple(predicted.shape)} instead of {expected}")
    return predicted


def _as_model(obj: object) -> keras.Model:
    if not isinstance(obj, keras.Model):
        raise ValueError(f"its architecture is that of a {type(obj).__name__}, no model")
    return obj


def load(
    path: container.Path, custom_objects: dict | None = None, max_bytes: int = MAX_BYTES
) -> keras.Model:
    """Rebuilds the classifier from a compact file.

    Args:
        path: of a file that `NeRNModel.export` wrote.
        custom_objects: dict from name to class or function, for layers that are neither
            Keras's nor registered. Defaults to `None`.
        max_bytes: what the weights of the classifier, or of the predictor, or the order of
            the blocks may take; a file that asks for more, or is larger than all of these
            together, is refused before they are allocated. Defaults to 2 GiB.

    Returns:
        A Keras model of the original's class and config: predicted kernels, everything else
        as it was. Not compiled.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is no such file, is damaged, or asks for what it must not; the
            text says which. For a `max_bytes` that is no integer of at least 1.
        ImportError: where the extra `compact` is not installed.

    Example:

    >>> nern.export("classifier.nern")
    >>> rebuilt = keras_nern.load("classifier.nern")
    """
    checks.integer("max_bytes", max_bytes, least=1)
    if not isinstance(custom_objects, dict | None):
        raise ValueError(
            "custom_objects must be a dict from name to class or function, or None. "
            f"Received: custom_objects={custom_objects!r}"
        )
    parts = container.read(path, PARTS * max_bytes + MOST_CONFIG_BYTES)
    try:
        return Rebuilding(parts, custom_objects, max_bytes).classifier()
    except ValueError as error:
        raise container.invalid_file_error(path, error) from error
