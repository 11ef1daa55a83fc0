"""Writing a representation to a compact file.

The file contains all that `NeRNModel.reconstruct` needs, except the represented kernels:

    config        the architecture, which kernels are represented and how, versions
    permutation   the orders of the blocks, close to log2(n!) bits
    predictor     levels and step sizes, or floats, of its Dense kernels; its biases; the scales
                  of the layers, if the representation has any
    kept          all other weights of the classifier
    residual      the integers that correct the predicted kernels, and the exponents of their step
                  sizes, if there are any

A base that only its own process can build raises an error before any work: a copy is first built
from the base's config and weights. docs/format.md specifies the file byte by byte.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.artifact import codec, configs, container
from keras_nern.artifact.reader import read_config
from keras_nern.network.copying import save_alike, transfer_seeds, twins
from keras_nern.network.kernels import finalize, walk_layers
from keras_nern.network.original import OriginalNetwork
from keras_nern.predictor.gptq import compress_into
from keras_nern.predictor.predictor import Predictor
from keras_nern.predictor.residual import Residual
from keras_nern.representation import Representation
from keras_nern.utils import checks
from keras_nern.utils.files import check_writable
from keras_nern.utils.optional import require
from keras_nern.utils.types import Path, Tensor
from keras_nern.utils.version import __version__

# Fields of a predictor's config that the file omits: those that every layer has, and those that
# follow from the precision.
OMITTED = (*keras.layers.Layer().get_config(), "bits", "pruned")


def write(path: Path, **arguments: Any) -> None:
    """Writes a representation to a compact file; see `NeRNModel.export`.

    Args:
        path: path of the file; a previous file is replaced once the new one is complete.
        **arguments: those of `encode`.

    Raises:
        OSError: if no file can be written at `path`.
        ValueError, ImportError: as for `encode`.
    """
    check_writable(path)
    container.write(path, encode(**arguments))


def encode(
    original: OriginalNetwork,
    representation: Representation,
    blocks_config: dict[str, Any],
    stores_scales: bool = False,
    precision: str = "auto",
    kept_precision: str = "float32",
) -> dict[str, bytes]:
    """Encodes a representation as the parts of a compact file.

    Args:
        original: the base.
        representation: the predicted kernels.
        blocks_config: the arguments of `Blocks`, except those that select layers.
        stores_scales: whether to write the layers' scales. Defaults to `False`.
        precision: precision of the predictor's kernels: `"float32"`, `"float16"`, `"int2"` to
            `"int8"`, or `"auto"`. Defaults to `"auto"`.
        kept_precision: precision of the weights that are not represented: `"float32"`, which is
            exact, `"float16"` or `"bfloat16"`. Defaults to `"float32"`.

    Returns:
        A dict from name to bytes.

    Raises:
        ValueError: if a precision is unknown, there is neither a predictor nor a residual, a weight
            of the predictor is not finite, or the base cannot be rebuilt from a file.
        ImportError: if the extra `compact` is not installed.
    """
    predictor = representation.predictor
    precision = _precision(precision, predictor.bits)
    checks.one_of("kept_precision", kept_precision, codec.KEPT_FLOATS)
    for module in ("safetensors.numpy", "constriction", "zstandard"):
        require(module, "compact")
    if not predictor.layers and representation.residual is None:
        raise ValueError(
            "Expected a representation with a predictor or a residual to write: "
            'compress(nern, max_bytes="100 kB", data=images) adds a residual. Received: neither'
        )
    if predictor.not_finite():
        raise ValueError(
            "The predictor must have finite weights. Received: some NaN or infinite, as after a "
            "fit that diverged"
        )
    permutation = representation.permutation
    place = {id(weight): index for index, weight in enumerate(original.base.weights)}
    kernels = representation.blocks.kernels
    config: dict[str, Any] = {
        "versions": {
            "keras_nern": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "base_sha256": original.digest().tobytes().hex(),
        "kept_precision": kept_precision,
        "normalize": stores_scales,
        "residual": representation.residual is not None,
        "permutation": permutation.kind,
        "blocks": blocks_config,
        "kernels": [
            {
                "name": kernel.name,
                "weight": place[id(kernel.variable)],
                "shape": list(kernel.shape),
                "grid": list(grid),
            }
            for kernel, grid in zip(kernels, representation.blocks.grids, strict=True)
        ],
        "predictor": {"precision": precision, **_predictor_config(predictor)},
        "architecture": configs.serialize(original.base),
    }
    encoding = predictor.encoding if predictor.experts == 1 else None
    parts = {"config": _config_part(config, original.base, encoding)}
    _check_rebuilds(original, config["architecture"])
    if permutation.kind is not None:
        parts["permutation"] = codec.encode_orders(permutation)
    if stores_scales:
        parts["predictor.scales"] = codec.pack_floats(_numpy(representation.scales), "float32")
    parts |= _predictor_parts(representation, precision)
    represented = {id(kernel.variable) for kernel in kernels}
    kept = [weight for weight in original.base.weights if id(weight) not in represented]
    changed = original.vectors_by_id(representation.vectors())
    parts |= _weights_parts("kept", kept, kept_precision, changed)
    return parts | residual_parts(representation.residual)


def residual_parts(residual: Residual | None) -> dict[str, bytes]:
    """Encodes a residual, if there is one."""
    if residual is None:
        return {}
    exponents = np.concatenate([one.ravel() for one in residual.exponents()])
    return {
        "residual.exponents": codec.encode_integers([exponents]),
        "residual.levels": codec.encode_integers(residual.integers()),
    }


def _check_rebuilds(original: OriginalNetwork, architecture: dict[str, Any]) -> None:
    """Raises a ValueError if the base's config and weights do not determine its outputs."""
    base = original.base
    copy = configs.build(architecture, _classes(base))
    copy.set_weights(base.get_weights())
    finalize(copy)
    changed = [path for path, layer, twin in twins(base, copy) if not save_alike(layer, twin)]
    if changed:
        raise ValueError(
            "Expected a base whose only state is its config and weights, as a compact file stores "
            f"nothing else. Received: {base.name!r} with further state in the layers {changed}"
        )
    transfer_seeds(base, copy)
    original.check_copy(copy, purpose="compact file")


def _classes(*layers: keras.layers.Layer) -> dict[str, type]:
    """The classes of layers and of all layers in them, by name."""
    inner = [one for layer in layers for _, one in walk_layers(layer)]
    return {type(layer).__name__: type(layer) for layer in (*layers, *inner)}


def _precision(precision: str, bits: int | None) -> str:
    own = "float32" if bits is None else f"int{bits}"
    is_name = isinstance(precision, str)
    if is_name and precision == "auto":
        return own
    if not is_name or precision not in codec.PRECISIONS:
        raise ValueError(
            f'precision must be "auto" or one of {codec.PRECISIONS}. '
            f"Received: precision={precision!r}"
        )
    if bits is not None and precision not in (own, *codec.FLOATS):
        raise ValueError(
            f"precision must be {own!r} for a predictor of {bits} bits, or a float. "
            f"Received: precision={precision!r}"
        )
    return precision


def _predictor_config(predictor: Predictor) -> dict[str, Any]:
    config = {k: v for k, v in predictor.get_config().items() if k not in OMITTED}
    if predictor.experts == 1:
        config["encoding"] = configs.serialize(predictor.encoding)
    return config


def _config_part(
    config: dict[str, Any], base: keras.Model, encoding: keras.layers.Layer | None
) -> bytes:
    """Encodes the config, and checks that a reader builds the same weights from it."""
    try:
        text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
        part = codec.pack(text.encode())
        read = read_config({"config": part})
        pairs = [(read["architecture"], base)]
        if encoding is not None:
            configs.check_encoding(encoding)
            pairs.append((read["predictor"]["encoding"], encoding))
        classes = _classes(*(own for _, own in pairs))
        for own_config, own in pairs:
            built, specs = configs.weight_specs(own_config, classes), configs.specs_of(own)
            if built != specs:
                both = zip(specs, built, strict=False)
                same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))
                path = [*(weight.path for weight in own.weights), "the last one"][same]
                raise ValueError(
                    f"the config of {own.name!r} builds other weights than it has, from {path!r} on"
                )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "base and encoding must be objects that Keras can build from a config without code. "
            f"Received: {base.name!r} ({error})"
        ) from error
    return part


def _predictor_parts(representation: Representation, precision: str) -> dict[str, bytes]:
    predictor = representation.predictor
    parts: dict[str, bytes] = {}
    if not predictor.layers:
        return parts
    if predictor.experts == 1:
        parts = _weights_parts("predictor.encoding", predictor.encoding.weights, "float32")
    if precision in codec.FLOATS:
        kernels = [_numpy(layer.effective_kernel) for layer in predictor.layers]
        parts["predictor.kernels"] = _pack(kernels, precision)
    else:
        bits = int(precision.removeprefix("int"))
        if predictor.bits is None:
            predictor = quantize_predictor(representation, bits)
        quantized = predictor.quantized()
        parts["predictor.levels"] = codec.encode_levels([one.levels for one in quantized], bits)
        parts["predictor.step_sizes"] = _pack([one.step_sizes for one in quantized], "float16")
    biases = [_numpy(layer.bias) for layer in predictor.layers if layer.bias is not None]
    if biases:
        parts["predictor.biases"] = _pack(biases, codec.bias_type(precision))
    return parts


def quantize_predictor(representation: Representation, bits: int) -> Predictor:
    """Copies a predictor and quantizes the kernels of the copy; see `predictor.gptq`."""
    predictor = representation.predictor
    copy = type(predictor).from_config({**predictor.get_config(), "bits": bits})
    copy.build((None, 3))
    if predictor.experts == 1:
        copy.encoding.set_weights(predictor.encoding.get_weights())
    inputs = representation.sample_inputs()
    compress_into(copy, predictor, inputs, representation.input_layers(inputs))
    return copy


def _weights_parts(
    name: str,
    weights: list[keras.Variable],
    precision: str,
    values: Mapping[int, Tensor] | None = None,
) -> dict[str, bytes]:
    """Encodes weights of several dtypes, with one part for each dtype that is written.

    Args:
        name: of the parts, before the dtype.
        weights: the weights.
        precision: as `kept_precision`.
        values: values to write in place of those of the weights with these ids. Defaults to none.
    """
    by_type: dict[str, list[np.ndarray]] = {}
    for weight in weights:
        dtype = codec.stored_type(keras.backend.standardize_dtype(weight.dtype), precision)
        value = _numpy((values or {}).get(id(weight), weight))
        if codec.count_too_large(value, dtype):
            raise ValueError(
                f"kept_precision must be 'float32', because {dtype} holds numbers up to "
                f"{codec.largest_number(dtype):,.0f}. Received: kept_precision={precision!r}, and "
                f"{weight.path!r} with numbers up to {np.abs(value).max():,.0f}"
            )
        by_type.setdefault(dtype, []).append(value)
    return {f"{name}.{dtype}": _pack(values, dtype) for dtype, values in by_type.items()}


def _pack(arrays: list[np.ndarray], dtype: str) -> bytes:
    return codec.pack_floats(np.concatenate([np.ravel(array) for array in arrays]), dtype)


def _numpy(value: Tensor) -> np.ndarray:
    array = keras.ops.convert_to_numpy(value)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
