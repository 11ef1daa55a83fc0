"""Reading the compact file: rebuilding the classifier from its parts.

Files are not trusted. The weights of the architecture are listed before it is built, and their
sizes are compared with the parts and with the caller's limit before memory is allocated. A mismatch
raises a `ValueError` that names it. `container` checks the file itself, `configs` the architecture;
docs/format.md specifies the parts.
"""

import json
import math
import reprlib
from typing import Any

import keras
import numpy as np

from keras_nern.artifact import codec, configs, container
from keras_nern.network.blocks import VIEWS, Blocks, block_sides
from keras_nern.network.kernels import finalize, kernels_of
from keras_nern.permutations.orders import KINDS
from keras_nern.predictor.local import LocalPredictor
from keras_nern.predictor.null import NullPredictor
from keras_nern.predictor.predictor import KernelPredictor, Predictor
from keras_nern.predictor.quantization import Quantized
from keras_nern.predictor.residual import Residual
from keras_nern.predictor.runs import NUM_FREQUENCIES
from keras_nern.predictor.size import predictor_bytes
from keras_nern.representation import Representation
from keras_nern.utils import checks
from keras_nern.utils.types import Path

MAX_BYTES = 2**31  # of a rebuilt classifier
PARTS = 3  # parts that may take max_bytes each: classifier, predictor, orders
MAX_WIDTH = 2**16  # of a predictor, its encoding and its blocks
MAX_LAYERS = 1024  # of a predictor
BLOCK_BYTES = 64  # memory for a block's place in an order and its coordinate
MAX_CONFIG_RATIO = 500  # largest ratio of a config's size to its compressed size ...
MIN_CONFIG_BYTES = 2**20  # ... once it is larger than this
MAX_CONFIG_BYTES = 2**23  # largest config, eight times that of NASNetLarge

# The fields of the config and their types; docs/format.md documents them.
FIELDS = {
    "versions": dict,
    "base_sha256": str,
    "kept_precision": str,
    "normalize": bool,
    "residual": bool,
    "permutation": (str, type(None)),
    "blocks": dict,
    "kernels": list,
    "predictor": dict,
    "architecture": dict,
}
KERNEL_FIELDS = {"name": str, "weight": int, "shape": list, "grid": list}
BLOCKS_FIELDS = {"view": str, "block_size": (int, type(None)), "include_dense": bool}
PREDICTOR_FIELDS = {"precision": str, "block_length": int}
MLP_FIELDS = {"hidden_size": int, "num_layers": int}  # of a predictor with layers


def load(
    path: Path,
    custom_objects: dict | None = None,
    max_bytes: int = MAX_BYTES,
    residual: bool = True,
) -> keras.Model:
    """Rebuilds the classifier from a compact file.

    Args:
        path: path of a file that `NeRNModel.export` wrote.
        custom_objects: dict from name to class or function, for layers that are neither part of
            Keras nor registered. Defaults to `None`.
        max_bytes: limit in bytes for each of the classifier, the predictor, the runs of a kernel,
            and the order of the blocks. A file that needs more, or is larger than
            three times the limit, is rejected before memory is allocated. Defaults to 2 GiB.
        residual: whether to add the residual, if the file has one. `False` reads only the parts
            before it, also from a file that is cut off there, and gives a coarser classifier.
            Defaults to `True`.

    Returns:
        An uncompiled Keras model of the original's class and config, with the predicted kernels
        and the original's other weights.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file has another format, is damaged or requests something that is not
            allowed (the message names it), if `custom_objects` is not a dict, or if `max_bytes`
            is not an integer of at least 1.
        ImportError: if the extra `compact` is not installed.

    Example:

    >>> nern.export("classifier.nern")
    >>> rebuilt = keras_nern.load("classifier.nern")
    """
    checks.path("path", path)
    checks.integer("max_bytes", max_bytes, minimum=1)
    if not isinstance(custom_objects, dict | None):
        raise ValueError(
            "custom_objects must be a dict from name to class or function, or None. "
            f"Received: custom_objects={custom_objects!r}"
        )
    largest = PARTS * max_bytes + MAX_CONFIG_BYTES
    has_all = checks.flag("residual", residual) or container.PREFIX not in container.lengths(path)
    parts = container.read(path, largest) if has_all else container.read_prefix(path, largest)
    try:
        return _Reader(parts, custom_objects, max_bytes, has_all).classifier()
    except ValueError as error:
        raise container.invalid_file_error(path, error) from error


def read_config(parts: dict[str, bytes]) -> dict:
    """Reads and checks the part `config`.

    Args:
        parts: dict from name to bytes.

    Returns:
        A dict with `FIELDS`, whose architecture and encoding contain no code.

    Raises:
        ValueError: if the part is missing or invalid.
    """
    if "config" not in parts:
        raise ValueError("it has no part 'config'")
    packed = parts["config"]
    allowed = max(MIN_CONFIG_BYTES, MAX_CONFIG_RATIO * len(packed))
    text = codec.unpack(packed, min(MAX_CONFIG_BYTES, allowed))
    try:
        config = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its config is not JSON: {error}") from error
    _check_fields("its config", config, FIELDS)
    _check_fields("its blocks", config["blocks"], BLOCKS_FIELDS)
    predictor = config["predictor"]
    fields: dict[str, Any] = dict(PREDICTOR_FIELDS)
    if "run_lengths" in predictor:
        fields |= {**MLP_FIELDS, "run_lengths": list}
    elif not config["residual"] or set(predictor) != set(fields):
        fields |= {**MLP_FIELDS, "encoding": dict}
    _check_fields("its predictor", predictor, fields)
    for name, value, choices in (
        ("kept_precision", config["kept_precision"], codec.KEPT_FLOATS),
        ("permutation", config["permutation"], KINDS),
        ("view", config["blocks"]["view"], VIEWS),
        ("precision", predictor["precision"], codec.PRECISIONS),
    ):
        checks.one_of(f"its {name}", value, choices)
    for kernel in config["kernels"]:
        _check_fields("one of its kernels", kernel, KERNEL_FIELDS)
        sizes = [*kernel["shape"], *kernel["grid"]]
        if len(kernel["grid"]) != 2 or len(kernel["shape"]) < 2 or not all(map(_is_size, sizes)):
            raise ValueError(f"one of its kernels has no valid shape and grid: {kernel}")
    _check_fields("its architecture", config["architecture"], {"class_name": str, "config": dict})
    _check_names("its blocks", config["blocks"], BLOCKS_FIELDS)
    _check_names("its predictor", predictor, fields)
    if predictor.get("num_layers", 0) > MAX_LAYERS:
        raise ValueError(f"its predictor has more than {MAX_LAYERS} layers")
    configs.check(config["architecture"])
    bounded = {name: value for name, value in predictor.items() if name != "run_lengths"}
    configs.check(bounded, MAX_WIDTH, functions=())  # functions would run while reading
    if "run_lengths" in predictor:
        _check_runs(predictor["run_lengths"], config["kernels"])
    return config


def _check_runs(lengths: list, kernels: list[dict]) -> None:
    blocks = sum(math.prod(kernel["grid"]) for kernel in kernels)
    if len(lengths) < 2 or not all(map(_is_size, lengths)) or sum(lengths) != blocks:
        raise ValueError(
            f"its run_lengths must be at least 2 positive integers whose sum is {blocks:,}, the "
            f"number of blocks, but are {reprlib.repr(lengths)}"
        )


def _check_fields(what: str, config: object, fields: dict[str, Any]) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{what} must be an object, but is {config!r}")
    for name, types in fields.items():
        value = config.get(name)
        wrong = isinstance(value, bool) and types is not bool
        if name not in config or wrong or not isinstance(value, types):
            raise ValueError(f"{what} has the invalid field {name}={value!r}")


def _check_names(what: str, config: dict[str, Any], names: Any) -> None:
    unknown = sorted(set(config) - set(names))
    if unknown:
        raise ValueError(f"{what} has the unknown fields {unknown}")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1


class _Reader:
    """Rebuilds a classifier from the parts of a file.

    Args:
        parts: dict from name to bytes.
        custom_objects, max_bytes: see `load`.
        has_all: whether `parts` include the residual, if there is one.
    """

    def __init__(
        self,
        parts: dict[str, bytes],
        custom_objects: dict | None,
        max_bytes: int,
        has_all: bool,
    ) -> None:
        self._parts = parts
        self._custom_objects = custom_objects
        self._max_bytes = max_bytes
        self._config = read_config(parts)
        self._has_residual = self._config["residual"] and has_all
        if not self._has_residual and "hidden_size" not in self._config["predictor"]:
            raise ValueError("it has no predictor, and its residual is not read")

    def classifier(self) -> keras.Model:
        config = self._config
        specs = configs.weight_specs(config["architecture"], self._custom_objects, _check_model)
        self._check_bytes("its classifier", configs.num_bytes(specs))
        self._check_kernels(specs)
        represented = {kernel["weight"] for kernel in config["kernels"]}
        kept = [index for index in range(len(specs)) if index not in represented]
        values = self._arrays("kept", [specs[i] for i in kept], config["kept_precision"])
        predictor = self._predictor()
        model = configs.build(config["architecture"], self._custom_objects)
        weights = model.weights
        representation = self._representation(model, predictor)
        for index, value in zip(kept, values, strict=True):
            weights[index].assign(value)
        for index, kernel in enumerate(representation.blocks.kernels):
            with configs.keras_errors():  # a registered encoding may return anything
                kernel.variable.assign(representation.kernel(index))
        finalize(model)
        return model

    def _part(self, name: str) -> bytes:
        if name not in self._parts:
            raise ValueError(f"it has no part {name!r}")
        return self._parts[name]

    def _check_bytes(self, what: str, count: int) -> None:
        if count > self._max_bytes:
            raise ValueError(
                f"{what} takes {count:,} bytes, more than max_bytes={self._max_bytes:,}"
            )

    def _check_kernels(self, specs: configs.Specs) -> None:
        """Checks the represented kernels against the classifier's weights and the blocks."""
        kernels, blocks = self._config["kernels"], self._config["blocks"]
        places = [kernel["weight"] for kernel in kernels]
        if not kernels or len(set(places)) < len(places):
            raise ValueError(f"its kernels must be different weights, but are {places}")
        for kernel in kernels:
            if not 0 <= kernel["weight"] < len(specs):
                raise ValueError(f"its kernel {kernel} is not one of {len(specs)} weights")
            if list(specs[kernel["weight"]][0]) != kernel["shape"]:
                raise ValueError(
                    f"its kernel {kernel} is a weight that has the shape "
                    f"{specs[kernel['weight']][0]}"
                )
        spatial = [kernel["shape"][:-2] for kernel in kernels]
        length = math.prod(block_sides(blocks["view"], blocks["block_size"], spatial))
        if length != self._config["predictor"]["block_length"]:
            raise ValueError(
                f"its blocks have {length} weights, but its predictor returns "
                f"{self._config['predictor']['block_length']}"
            )
        self._check_bytes("a table of its blocks", 8 * length * len(kernels))
        counts = [math.prod(kernel["grid"]) for kernel in kernels]
        self._check_bytes("the order of its blocks", BLOCK_BYTES * sum(counts))
        for kernel, count in zip(kernels, counts, strict=True):
            self._check_bytes(f"the kernel {kernel['name']!r} in blocks", 4 * count * length)

    def _representation(
        self, model: keras.Model, predictor: Predictor | NullPredictor
    ) -> Representation:
        config, weights = self._config, model.weights
        chosen = [weights[kernel["weight"]] for kernel in config["kernels"]]
        ids = {id(variable) for variable in chosen}
        blocks = Blocks(
            model,
            include=lambda layer: all(id(k.variable) in ids for k in kernels_of("", layer)),
            **config["blocks"],
        )
        grids = [tuple(kernel["grid"]) for kernel in config["kernels"]]
        if blocks.grids != grids or any(
            kernel.variable is not variable
            for kernel, variable in zip(blocks.kernels, chosen, strict=True)
        ):
            raise ValueError(
                f"its kernels have the grids {grids}, but its classifier's have {blocks.grids}"
            )
        scales = positions = None
        if config["normalize"]:
            scales = codec.unpack_floats(self._part("predictor.scales"), len(grids), "float32")
        kind = config["permutation"]
        if kind is not None:
            orders = codec.decode_orders(self._part("permutation"), grids, kind)
            positions = orders.positions()
        residual = self._residual(blocks) if self._has_residual else None
        return Representation(blocks, predictor, scales, positions, kind, residual=residual)

    def _residual(self, blocks: Blocks) -> Residual:
        shapes = [kernel.matrix_shape for kernel in blocks.kernels]
        steps = [(groups, 1, filters) for groups, _, filters in shapes]
        sizes = [math.prod(shape) for shape in steps]
        (exponents,) = codec.decode_integers(self._part("residual.exponents"), [(sum(sizes),)])
        parts = np.split(exponents, np.cumsum(sizes)[:-1])
        residual = Residual(shapes)
        residual.build()
        residual.assign(
            codec.decode_integers(self._part("residual.levels"), shapes),
            [part.reshape(shape) for part, shape in zip(parts, steps, strict=True)],
        )
        return residual

    def _predictor(self) -> Predictor | NullPredictor:
        """Builds the predictor with float weights, also from quantized kernels."""
        config = dict(self._config["predictor"])
        precision = config.pop("precision")
        if "hidden_size" not in config:
            return NullPredictor(**config)
        predictor = self._local(config) if "run_lengths" in config else self._single(config)
        kernels = self._kernels(precision, predictor.layers)
        for layer, kernel in zip(predictor.layers, kernels, strict=True):
            layer.kernel.assign(kernel)
        biased = [layer for layer in predictor.layers if layer.bias is not None]
        if biased:
            sizes = [tuple(layer.bias.shape) for layer in biased]
            biases = self._floats("predictor.biases", sizes, codec.bias_type(precision))
            for layer, bias in zip(biased, biases, strict=True):
                layer.bias.assign(bias)
        return predictor

    def _local(self, config: dict[str, Any]) -> LocalPredictor:
        lengths = config["run_lengths"]
        features = 2 * NUM_FREQUENCIES
        widest = max(features, config["hidden_size"], config["block_length"])
        longest = max(lengths)
        self._check_bytes("a run of its blocks", 4 * widest * longest)  # which is predicted at once
        self._check_bytes("a table of its runs", 4 * longest * len(lengths))
        # A kernel needs all slots of the runs that hold its blocks.
        counts = [math.prod(kernel["grid"]) for kernel in self._config["kernels"]]
        stops, ends = np.cumsum(lengths), np.cumsum(counts)
        first, last = (np.searchsorted(stops, rank, "right") for rank in (ends - counts, ends - 1))
        runs = int(np.max(last - first)) + 1
        self._check_bytes("a kernel in runs", 4 * config["block_length"] * longest * runs)
        shape = {name: config[name] for name in ("hidden_size", "num_layers", "block_length")}
        needed = predictor_bytes(**shape, features=features, experts=len(lengths))
        self._check_bytes("its predictor", int(needed))
        predictor = LocalPredictor(**config)
        predictor.build()
        return predictor

    def _single(self, config: dict[str, Any]) -> KernelPredictor:
        encoding_config = config.pop("encoding")

        def make(encoding: Any) -> KernelPredictor:
            configs.check_encoding(encoding)
            with configs.keras_errors():
                predictor = KernelPredictor(**config, encoding=encoding)
                predictor.build((None, 3))
            return predictor

        specs = configs.weight_specs(encoding_config, self._custom_objects, make)
        self._check_bytes("its predictor", configs.num_bytes(specs))
        predictor = make(configs.build(encoding_config, self._custom_objects))
        encoding = self._arrays(
            "predictor.encoding", configs.specs_of(predictor.encoding), "float32"
        )
        for weight, value in zip(predictor.encoding.weights, encoding, strict=True):
            weight.assign(value)
        return predictor

    def _kernels(self, precision: str, layers: list[Any]) -> list[np.ndarray]:
        shapes = [tuple(layer.kernel.shape) for layer in layers]
        if precision in codec.FLOATS:
            return self._floats("predictor.kernels", shapes, precision)
        bits = int(precision.removeprefix("int"))
        levels = codec.decode_levels(self._part("predictor.levels"), shapes, bits)
        steps = [layer.step_shape for layer in layers]
        step_sizes = self._floats("predictor.step_sizes", steps, "float16")
        return [Quantized(*pair).values() for pair in zip(levels, step_sizes, strict=True)]

    def _floats(self, name: str, shapes: list[tuple[int, ...]], dtype: str) -> list[np.ndarray]:
        sizes = [math.prod(shape) for shape in shapes]
        values = codec.unpack_floats(self._part(name), sum(sizes), dtype)
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _arrays(self, name: str, specs: configs.Specs, precision: str) -> list[np.ndarray]:
        """Weights of several dtypes, in the order of `specs`."""
        types = [codec.stored_type(dtype, precision) for _, dtype in specs]
        values = {
            dtype: iter(
                self._floats(
                    f"{name}.{dtype}",
                    [shape for (shape, _), one in zip(specs, types, strict=True) if one == dtype],
                    dtype,
                )
            )
            for dtype in dict.fromkeys(types)
        }
        return [next(values[dtype]) for dtype in types]


def _check_model(obj: object) -> keras.Model:
    if not isinstance(obj, keras.Model):
        raise ValueError(f"its architecture is that of a {type(obj).__name__}, not of a model")
    return obj
