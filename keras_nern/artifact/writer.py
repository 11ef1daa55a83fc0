"""Writing a representation to a compact file.

What is written is the predictor at the precision asked for, and all that is needed beside it
(see `artifact`). First of all the base is rebuilt from its config, without values, to see that
a reader will be able to: a base that only its own process can build is refused before any work.
"""

import json
import typing
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.artifact import codec, configs, container
from keras_nern.artifact.reader import check_products, read_config
from keras_nern.network.kernels import walk_layers
from keras_nern.predictor.gptq import compress_into
from keras_nern.predictor.predictor import KernelPredictor, effective_kernel
from keras_nern.utils import checks
from keras_nern.utils.files import writable
from keras_nern.utils.types import Tensor
from keras_nern.utils.version import __version__

if typing.TYPE_CHECKING:
    from keras_nern.model import NeRNModel


def write(
    nern: "NeRNModel",
    path: container.Path,
    precision: str = "auto",
    kept_precision: str = "float32",
) -> None:
    """Writes a representation to a compact file; see `NeRNModel.export`.

    Args:
        nern: a `NeRNModel`.
        path: where to; a file that is there is replaced when all is written.
        precision: of the predictor's weights: `"float32"`, `"float16"`, `"int2"` to
            `"int8"`, or `"auto"`. Defaults to `"auto"`.
        kept_precision: of weights that are not represented: `"float32"` (as they are) or
            `"float16"`. Defaults to `"float32"`.

    Raises:
        OSError: where no file can be at `path`.
        ValueError: for other precisions, a predictor whose weights are not finite, and a base
            that cannot be rebuilt from a file.
        ImportError: where the extra `compact` is not installed.
    """
    writable(path)
    precision = _precision(precision, nern.predictor)
    checks.one_of("kept_precision", kept_precision, codec.FLOATS)
    for module in ("safetensors.numpy", "constriction", "zstandard"):
        container.require(module)
    if not all(np.isfinite(_numpy(weight)).all() for weight in nern.predictor.weights):
        raise ValueError(
            "Expected a predictor with finite weights. Received: some NaN or infinite, as after "
            "a fit that diverged"
        )
    check_products(nern._original.blocks.num_blocks, nern.predictor.count_params())
    config = _config(nern, precision, kept_precision)
    parts = {"config": _readable(nern, config)}
    permutation = nern.kernel_permutation()
    if permutation.kind is not None:
        parts["permutation"] = codec.encode_orders(permutation)
    if nern.normalize:
        scales = keras.ops.convert_to_numpy(nern.scales)
        parts["scales"] = codec.pack_floats(scales, "float32")
    parts |= _predictor_parts(nern.predictor, precision, nern._some_coordinates())
    represented = {kernel["weight"] for kernel in config["kernels"]}
    kept = [weight for i, weight in enumerate(nern.base.weights) if i not in represented]
    parts |= _weights_parts("kept", kept, kept_precision)
    container.write(path, parts)


def _precision(precision: str, predictor: KernelPredictor) -> str:
    own = "float32" if predictor.bits is None else f"int{predictor.bits}"
    if precision == "auto":
        return own
    if precision not in codec.PRECISIONS:
        raise ValueError(
            f'precision must be "auto" or one of {codec.PRECISIONS}. '
            f"Received: precision={precision!r}"
        )
    if predictor.bits is not None and precision not in (own, *codec.FLOATS):
        raise ValueError(
            f"precision must be {own!r} for a predictor of {predictor.bits} bits, or a float. "
            f"Received: precision={precision!r}"
        )
    return precision


def _config(nern: "NeRNModel", precision: str, kept_precision: str) -> dict[str, Any]:
    """All that is no array, as docs/format.md has it."""
    base, predictor, blocks = nern.base, nern.predictor, nern._original.blocks
    place = {id(weight): index for index, weight in enumerate(base.weights)}
    return {
        "versions": {
            "keras_nern": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "base_sha256": nern._original.digest().tobytes().hex(),
        "kept_precision": kept_precision,
        "normalize": nern.normalize is not None,
        "permutation": nern.permutation,
        "view": nern.view,
        "block_size": nern.block_size,
        "include_dense": bool(nern.include_dense),
        "kernels": [
            {
                "name": kernel.name,
                "weight": place[id(kernel.variable)],
                "shape": list(kernel.shape),
                "grid": list(grid),
            }
            for kernel, grid in zip(blocks.kernels, blocks.grids, strict=True)
        ],
        "predictor": {
            "precision": precision,
            "hidden_size": predictor.hidden_size,
            "num_layers": predictor.num_layers,
            "block_length": predictor.block_length,
            "activation": keras.activations.serialize(predictor.activation),
            "encoding": configs.serialize(predictor.encoding),
        },
        "architecture": configs.serialize(base),
    }


def _readable(nern: "NeRNModel", config: dict[str, Any]) -> bytes:
    """The config as bytes, from which a reader will build the same weights."""
    base, encoding = nern.base, nern.predictor.encoding
    try:
        text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
        part = codec.pack(text.encode())
        read = read_config({"config": part})
        layers = [base, encoding, *(layer for _, layer in walk_layers(base))]
        classes = {type(layer).__name__: type(layer) for layer in layers}
        configs.check_encoding(encoding)
        for config, own in (
            (read["architecture"], base),
            (read["predictor"]["encoding"], encoding),
        ):
            shapes = configs.weight_specs(config, classes)
            if shapes != configs.shapes(own):
                raise ValueError(f"the config of {own.name!r} builds other weights than it has")
            configs.check_initializers(config, shapes)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "base must be a model, and its encoding a layer, that Keras can build from its "
            f"config, without code in it. Received: {base.name!r} ({error})"
        ) from error
    return part


def _predictor_parts(
    predictor: KernelPredictor, precision: str, coordinates: Tensor
) -> dict[str, bytes]:
    parts = _weights_parts("predictor.encoding", predictor.encoding.weights, "float32")
    if precision in codec.FLOATS:
        kernels = [_numpy(effective_kernel(layer)) for layer in predictor.layers]
        parts["predictor.kernels"] = _packed(kernels, precision)
    else:
        bits = int(precision.removeprefix("int"))
        if predictor.bits is None:
            predictor = _quantized(predictor, bits, coordinates)
        quantized = predictor.quantized()
        parts["predictor.levels"] = codec.encode_levels([one.levels for one in quantized], bits)
        parts["predictor.step_sizes"] = _packed([one.step_sizes for one in quantized], "float16")
    biases = [_numpy(layer.bias) for layer in predictor.layers]
    parts["predictor.biases"] = _packed(biases, codec.bias_type(precision))
    return parts


def _quantized(predictor: KernelPredictor, bits: int, coordinates: Tensor) -> KernelPredictor:
    copy = KernelPredictor(
        predictor.hidden_size,
        predictor.num_layers,
        predictor.block_length,
        predictor.encoding,
        predictor.activation,
        bits=bits,
        pruned=predictor.pruned,
    )
    copy.build((None, 3))
    compress_into(copy, predictor, coordinates)
    return copy


def _weights_parts(name: str, weights: list[keras.Variable], precision: str) -> dict[str, bytes]:
    """Weights of several types, a part for each type they are written in."""
    by_type: dict[str, list[np.ndarray]] = {}
    for weight in weights:
        dtype = codec.stored_type(keras.backend.standardize_dtype(weight.dtype), precision)
        value = _numpy(weight)
        if codec.too_large(value, dtype):
            raise ValueError(
                f"kept_precision must be 'float32': float16 holds numbers up to "
                f"{np.finfo(dtype).max:,.0f}. Received: kept_precision={precision!r}, and "
                f"{weight.path!r} up to {np.abs(value).max():,.0f}"
            )
        by_type.setdefault(dtype, []).append(value)
    return {f"{name}.{dtype}": _packed(values, dtype) for dtype, values in by_type.items()}


def _packed(arrays: list[np.ndarray], dtype: str) -> bytes:
    return codec.pack_floats(np.concatenate([np.ravel(array) for array in arrays]), dtype)


def _numpy(value: Tensor) -> np.ndarray:
    array = keras.ops.convert_to_numpy(value)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
