"""Compact files assembled by hand from docs/format.md, without the package's writer."""

import copy
import hashlib
import json

import keras
import numpy as np


def plain_frame(data):
    """A zstandard frame of one uncompressed block (RFC 8878, section 3.1.1)."""
    header = bytes.fromhex("28b52ffd a0") + len(data).to_bytes(4, "little")
    return header + (1 | len(data) << 3).to_bytes(3, "little") + data


def planes(values, dtype="<f4"):
    """Encodes numbers in byte planes, uncompressed."""
    data = np.asarray(values, dtype).tobytes()
    size = np.dtype(dtype).itemsize
    return plain_frame(b"".join(data[i::size] for i in range(size)))


def assembled(parts):
    """The bytes of a file with these parts, a dict from name to bytes."""
    parts = {**parts, "sha256": b""}
    if any(name.startswith("residual") for name in parts):
        parts["prefix"] = b""
    header, end = {"__metadata__": {"keras_nern": "1"}}, 0
    for name in sorted(parts):
        size = 32 if name in ("prefix", "sha256") else len(parts[name])
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text
    for name in sorted(parts):
        is_hash = name in ("prefix", "sha256")
        data += hashlib.sha256(data).digest() if is_hash else parts[name]
    return data


def with_config(config, held=None, **parts):
    """The bytes of a file with another config, and with other parts if any are given.

    The file has the parts `held`, by default `PARTS`.
    """
    part = plain_frame(json.dumps(config).encode())
    return assembled({**(PARTS if held is None else held), **parts, "config": part})


def changed(*changes, config=None):
    """A copy of a config, by default `CONFIG`, with other values.

    A change is a tuple of keys and the new value.
    """
    config = copy.deepcopy(CONFIG if config is None else config)
    for *keys, last, value in changes:
        place = config
        for key in keys:
            place = place[key]
        place[last] = value
    return config


def function(module, name):
    """The Keras config of a function."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def constant(dtype):
    """The Keras config of an initializer that holds an array."""
    array = {"class_name": "__numpy__", "config": {"value": ["a"] * 8, "dtype": dtype}}
    return {
        "module": "keras.initializers",
        "class_name": "Constant",
        "config": {"value": array},
        "registered_name": None,
    }


LAYER = {"module": "keras.layers", "registered_name": None}
LAYERS = ("architecture", "config", "layers")
ACTIVATION = (*LAYERS, 1, "config", "activation")
LAMBDA = {**LAYER, "class_name": "Lambda", "config": {"function": "relu"}}
DOTTED_LAMBDA = {**LAMBDA, "module": "keras", "class_name": "layers.Lambda"}
GET_FILE_CLASS = {**LAYER, "module": "keras.utils", "class_name": "get_file", "config": {}}

# A Conv2D of two filters of 2 x 1, crop view, and a predictor with two layers.
CONFIG = {
    "versions": {"by": "hand"},
    "base_sha256": "c0ffee",
    "kept_precision": "float32",
    "normalize": True,
    "residual": False,
    "permutation": "cross_filter",
    "blocks": {"view": "crop", "block_size": None, "include_dense": False},
    "kernels": [{"name": "c", "weight": 0, "shape": [2, 1, 1, 2], "grid": [2, 1]}],
    "predictor": {
        "precision": "float32",
        "hidden_size": 2,
        "num_layers": 2,
        "block_length": 4,
        "encoding": {
            "module": "keras_nern",
            "class_name": "PositionalEncoding",
            "registered_name": "keras_nern>PositionalEncoding",
            "config": {"num_frequencies": 1, "base": 0.5},
        },
    },
    "architecture": {
        "module": "keras",
        "class_name": "Sequential",
        "registered_name": None,
        "config": {
            "name": "by_hand",
            "layers": [
                {**LAYER, "class_name": "InputLayer", "config": {"batch_shape": [None, 2, 1, 1]}},
                {
                    **LAYER,
                    "class_name": "Conv2D",
                    "config": {"name": "c", "filters": 2, "kernel_size": [2, 1]},
                },
            ],
        },
    },
}
HIDDEN = {"hidden_size": 2, "num_layers": 2}
W1, B1 = np.arange(12).reshape(6, 2) / 8 - 0.5, np.array([0.25, -0.25])
W2, B2 = np.arange(8).reshape(2, 4) / 4, np.array([1.0, 2.0, 3.0, 4.0])
PARTS = {
    "config": plain_frame(json.dumps(CONFIG).encode()),
    "kept.float32": planes([0.5, -1.5]),
    "permutation": bytes(4),  # the order [1, 0], see test_codec.py
    "predictor.biases": planes([*B1, *B2]),
    "predictor.kernels": planes([*W1.ravel(), *W2.ravel()]),
    "predictor.scales": planes([2.0]),
}

# The same classifier with two local predictors, each for a run of one block.
LOCAL_CONFIG = changed(
    ("predictor", {"precision": "float32", "run_lengths": [1, 1], **HIDDEN, "block_length": 4})
)
W1_LOCAL = np.arange(64).reshape(2, 16, 2) / 32 - 1  # (experts, features, units)
W2_LOCAL = np.arange(16).reshape(2, 2, 4) / 4
LOCAL_PARTS = {
    "config": plain_frame(json.dumps(LOCAL_CONFIG).encode()),
    **{name: PARTS[name] for name in ("kept.float32", "permutation", "predictor.scales")},
    "predictor.kernels": planes([*W1_LOCAL.ravel(), *W2_LOCAL.ravel()]),
}


def randomized(model):
    """Assigns values to all weights that differ from their initial ones, and returns the model."""
    rng = np.random.default_rng(5)
    for weight in model.weights:
        values = rng.uniform(0.5, 1.5, weight.shape)
        weight.assign(np.rint(values) if "int" in weight.dtype else values)
    return model


def sequential(*layers, shape=(8, 8, 1)):
    """A Sequential model with weights that differ from their initial ones."""
    return randomized(keras.Sequential([keras.Input(shape), *layers]))


def classifier():
    """A classifier with kernels of 3x3 and 1x1, a batch normalization and a Dense layer."""
    return sequential(
        keras.layers.Conv2D(4, 3, use_bias=False, name="stem"),
        keras.layers.BatchNormalization(name="stem_bn"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Conv2D(6, 3, name="conv"),
        keras.layers.Conv2D(5, 1, name="shrink"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(3, name="fc"),
    )


def assert_same_weights(model, other, atol=1e-6):
    """Asserts that two models have weights of the same shapes, dtypes and values."""
    assert [w.shape for w in model.weights] == [w.shape for w in other.weights]
    for weight, value in zip(model.weights, other.weights, strict=True):
        assert weight.dtype == value.dtype
        difference = np.asarray(weight, "float64") - np.asarray(value, "float64")
        assert np.abs(difference).max() <= atol, weight.path
