import json
import math
import random
import signal
import sys
import time

import artifact_files
import keras
import numpy as np
import peaks
import processes
import pytest
import zstandard
from artifact_files import (
    ACTIVATION,
    CONFIG,
    DOTTED_LAMBDA,
    GET_FILE_CLASS,
    LAMBDA,
    LAYER,
    LAYERS,
    LOCAL_CONFIG,
    LOCAL_PARTS,
    PARTS,
    assembled,
    assert_same_weights,
    changed,
    constant,
    function,
    plain_frame,
    planes,
    randomized,
    sequential,
    with_config,
)

import keras_nern
from keras_nern.artifact.info import inspect

MAX_BYTES = 2**29


def test_reads_a_file_assembled_by_hand(path):
    path.write_bytes(assembled(PARTS))
    model = keras_nern.load(path)
    assert not model.compiled
    expected = np.zeros((2, 1, 1, 2))
    for filter in range(2):
        # The order puts filter 0 at position 1 and filter 1 at position 0. The features of an
        # index v are sin(pi v) and cos(pi v). The kernel is the center crop of its 2 x 2 block:
        # both rows, the first column.
        features = np.concatenate(
            [[np.sin(np.pi * v), np.cos(np.pi * v)] for v in (0, 1 - filter, 0)]
        )
        hidden = np.maximum(features @ artifact_files.W1 + artifact_files.B1, 0)
        block = hidden @ artifact_files.W2 + artifact_files.B2
        expected[:, 0, 0, filter] = 2 * block.reshape(2, 2)[:, 0]
    np.testing.assert_allclose(model.get_layer("c").kernel, expected, rtol=1e-5)
    np.testing.assert_array_equal(model.get_layer("c").bias, [0.5, -1.5])


def test_reads_local_predictors_assembled_by_hand(path):
    path.write_bytes(assembled(LOCAL_PARTS))
    kernel = keras_nern.load(path).get_layer("c").kernel
    features = [0.0] * 8 + [1.0] * 8  # of the only place of a run
    for filter in range(2):
        expert = 1 - filter  # of the filter's position in the order
        hidden = np.sin(features @ artifact_files.W1_LOCAL[expert])
        block = hidden @ artifact_files.W2_LOCAL[expert]
        expected = 2 * block.reshape(2, 2)[:, 0]
        np.testing.assert_allclose(kernel[:, 0, 0, filter], expected, rtol=1e-5)


@keras.saving.register_keras_serializable(package="test_reader")
class Scaled(keras.layers.Layer):
    """A custom layer with weights of several dtypes."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        self.half = self.add_weight(name="half", shape=(2,), dtype="bfloat16")
        self.count = self.add_weight(name="count", shape=(3,), dtype="int64", trainable=False)
        self.flag = self.add_weight(name="flag", shape=(2,), dtype="bool", trainable=False)

    def call(self, inputs):
        return inputs * self.scale


@keras.saving.register_keras_serializable(package="test_reader")
class Subclassed(keras.Model):
    """A model with a variable made from a value, which holds a loss, a metric and a schedule."""

    def __init__(self, loss, metric, schedule, **kwargs):
        super().__init__(**kwargs)
        self.held = {"loss": loss, "metric": metric, "schedule": schedule}
        self.conv = keras.layers.Conv2D(4, 3)
        self.head = keras.layers.Dense(3)
        self.factor = keras.Variable(0.5, name="factor")

    def call(self, inputs):
        return self.head(keras.ops.mean(self.conv(inputs), axis=(1, 2)) * self.factor)

    def get_config(self):
        held = {name: keras.saving.serialize_keras_object(o) for name, o in self.held.items()}
        return {**super().get_config(), **held}

    @classmethod
    def from_config(cls, config):
        held = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("loss", "metric", "schedule")
        }
        return cls(**{**config, **held})


def layers_of_many_kinds():
    return sequential(
        keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3, activation="tanh")]),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]),
        keras.layers.SeparableConv2D(3, 3),
        keras.layers.Conv2DTranspose(2, 2, strides=2),
        Scaled(),
        keras.layers.Dropout(0.1),
        keras.layers.Conv2D(3, 3, dtype="mixed_float16"),
        keras.layers.BatchNormalization(dtype="mixed_float16"),
        keras.layers.GlobalAveragePooling2D(dtype="float64"),
        keras.layers.Dense(2, dtype="float64"),
    )


def subclassed():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 5)
    model = Subclassed(keras.losses.MeanSquaredError(), keras.metrics.Mean(), schedule)
    model(np.zeros((1, 8, 8, 1), "float32"))
    return randomized(model)


@pytest.mark.parametrize("base", [layers_of_many_kinds, subclassed])
def test_rebuilds_any_base(base, path):
    nern = keras_nern.NeRNModel(base(), 8, permutation="in_filter", view="block")
    nern.export(path)
    rebuilt = keras_nern.load(path)
    assert type(rebuilt) is type(nern.base)
    assert_same_weights(rebuilt, nern.reconstruct())


@keras.saving.register_keras_serializable(package="test_reader")
class Embedded(keras.layers.Layer):
    """An encoding with weights."""

    def build(self, input_shape):
        self.table = self.add_weight(name="table", shape=(7, 5))

    def call(self, inputs):
        features = keras.ops.take(self.table, inputs % 7, axis=0)  # (n, 3, 5)
        return keras.ops.reshape(features, (-1, 15))


@pytest.mark.parametrize(
    "arguments",
    [
        {"permutation": "cross_filter", "normalize": "layer", "view": "block"},
        {"include": ["conv", "fc"], "include_dense": True, "view": "block", "block_size": 2},
        {"exclude": "stem", "encoding": Embedded, "num_layers": 2},
    ],
    ids=["permutation and scales", "Dense layers and block_size", "encoding with weights"],
)
def test_rebuilds_any_representation(arguments, path):
    arguments = {name: v() if v is Embedded else v for name, v in arguments.items()}
    nern = keras_nern.NeRNModel(artifact_files.classifier(), 8, **arguments)
    nern.export(path)
    assert_same_weights(keras_nern.load(path), nern.reconstruct())


def test_an_adapted_normalization_computes_as_before(path):
    images = np.random.default_rng(2).normal(size=(12, 8, 8, 1)).astype("float32")
    layer = keras.layers.Normalization()
    layer.adapt(5 + 3 * images)
    model = sequential(layer, keras.layers.Conv2D(3, 3))
    layer.finalize_state()  # `sequential` assigned its weights
    nern = keras_nern.NeRNModel(model, 8)
    nern.export(path)
    expected = nern(images)
    for rebuilt in (keras_nern.load(path), nern.reconstruct()):
        np.testing.assert_allclose(rebuilt(images), expected, rtol=1e-4, atol=1e-4)


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def test_finds_custom_classes_only_if_they_are_given(path):
    nern = keras_nern.NeRNModel(sequential(keras.layers.Conv2D(2, 3), Unregistered()), 4)
    nern.export(path)
    with pytest.raises(
        ValueError, match=r"Keras cannot build it: \w+: Could not locate class 'Unregistered'"
    ):
        keras_nern.load(path)
    objects = {"Unregistered": Unregistered}
    assert_same_weights(keras_nern.load(path, objects), nern.reconstruct())
    with keras.saving.custom_object_scope(objects):
        assert_same_weights(keras_nern.load(path), nern.reconstruct())


def test_ignores_unknown_parts_and_fields(path):
    path.write_bytes(assembled(PARTS))
    expected = keras_nern.load(path)
    more = changed(("later", {"a": 1}), ("kernels", 0, "later", 2))
    path.write_bytes(with_config(more, **{"a": b"anything", "kept.float64": b"other"}))
    assert_same_weights(keras_nern.load(path), expected, atol=0)


# Hostile files with the right format and hash.

KERNEL = CONFIG["kernels"][0]
BLOCK_VIEW = {"view": "block", "block_size": None, "include_dense": False}
ENCODING = ("predictor", "encoding")
GRID = [2**24, 1]
HUGE_DENSE = {**LAYER, "class_name": "Dense", "config": {"units": 2**24}}
HUB = {**LAYER, "module": "keras_hub.models", "class_name": "Backbone", "config": {}}
VOCABULARY = {**LAYER, "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}
INITIALIZER = (*LAYERS, 1, "config", "bias_initializer")
CALLED_ON_CONSTANT = {
    "module": "keras.src.models.functional",
    "class_name": "Functional",
    "registered_name": "Functional",
    "config": {
        "name": "padded",
        "layers": [
            {
                **LAYER,
                "class_name": "ZeroPadding1D",
                "config": {"name": "pad", "padding": 2**23},
                "name": "pad",
                "inbound_nodes": [
                    {
                        "args": [
                            {
                                "class_name": "__tensor__",
                                "config": {"value": [[[1.0] * 16]], "dtype": "float32"},
                            }
                        ],
                        "kwargs": {},
                    }
                ],
            }
        ],
        "input_layers": [],
        "output_layers": [["pad", 0, 0]],
    },
}
SEQUENTIAL_ENCODING = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "name": "network",
        "layers": [
            {**LAYER, "class_name": "RepeatVector", "config": {"n": 2**16}},
            {**LAYER, "class_name": "GlobalAveragePooling1D", "config": {}},
        ],
        "build_input_shape": [None, 3],
    },
    "registered_name": None,
}
PREDICTOR_ENCODING = {
    "module": "keras_nern",
    "class_name": "KernelPredictor",
    "registered_name": "keras_nern>KernelPredictor",
    "config": {
        "hidden_size": 2,
        "num_layers": 2,
        "block_length": 2,
        "encoding": CONFIG["predictor"]["encoding"],
    },
}
NOT_AN_ENCODING = "is neither a PositionalEncoding nor a layer of a registered class"
CODE_AND_FILES = {
    "a Lambda layer": (changed((*LAYERS, 1, LAMBDA)), "'Lambda' is Python code"),
    "a Lambda layer under another name": (
        changed((*LAYERS, 1, DOTTED_LAMBDA)),
        "'layers.Lambda' is Python code",
    ),
    "a pickled lambda": (
        changed((*ACTIVATION, {"class_name": "__lambda__", "config": {"value": ["4wAAAAA="]}})),
        "'__lambda__' is Python code",
    ),
    "a download": (
        changed((*ACTIVATION, function("keras.utils", "get_file"))),
        "keras.utils.get_file is not a function for a layer",
    ),
    "a download under another name": (
        changed((*ACTIVATION, function("keras", "utils.get_file"))),
        "keras.utils.get_file is not a function for a layer",
    ),
    "a download as a class": (
        changed((*ACTIVATION, GET_FILE_CLASS)),
        "keras.utils.get_file is not part of a network",
    ),
    "a function of a module with a similar name": (
        changed((*ACTIVATION, function("keras.ops_of_mine", "relu"))),
        "keras.ops_of_mine.relu is not a function for a layer",
    ),
    "an import": (changed((*LAYERS, 1, HUB)), "keras_hub.models.Backbone is not registered"),
    "a system call": (
        changed((*ACTIVATION, function("os", "system"))),
        "Could not locate function 'system'",
    ),
    "another file": (changed((*LAYERS, 1, VOCABULARY)), "vocabulary from the file '/etc/passwd'"),
    "a compile config": (
        changed(("architecture", "compile_config", {"optimizer": "x"})),
        "it has a compile_config",
    ),
}
MEMORY = {
    "an array of long strings": (
        changed((*INITIALIZER, constant("U67108864"))),
        "an array of the type 'U67108864'",
    ),
    "an array without a type": (changed((*INITIALIZER, constant(None))), "array of the type None"),
    "weights of text": (
        changed((*LAYERS, 1, "config", "dtype", "string")),
        "it has weights of the type 'string'",
    ),
    "a large layer": (
        changed((*LAYERS, [*CONFIG["architecture"]["config"]["layers"], *[HUGE_DENSE] * 2])),
        r"its classifier takes 1,125,\d{3},.* bytes, more than max_bytes=536,870,912",
    ),
    "a large integer": (
        changed((*LAYERS, 1, "config", "filters", 10**12)),
        "it has filters=1000000000000, more than 16,777,216",
    ),
    "a layer called on a constant": (
        changed(("architecture", CALLED_ON_CONSTANT)),
        "it calls a layer on constants, or in the format of Keras 2",
    ),
    "a call in the format of Keras 2": (
        changed(
            ("architecture", CALLED_ON_CONSTANT),
            (*LAYERS, 0, "inbound_nodes", [[["image", 0, 0, {}]]]),
        ),
        "it calls a layer on constants, or in the format of Keras 2",
    ),
    "a wide predictor": (
        changed(("predictor", "hidden_size", 2**16), ("predictor", "num_layers", 3)),
        r"its predictor takes 17,18\d,.* bytes, more than max_bytes",
    ),
    "a deep predictor": (
        changed(("predictor", "num_layers", 10**9)),
        "its predictor has more than 1024 layers",
    ),
    "a predictor of large blocks": (
        changed(("predictor", "block_length", 2**40)),
        "it has block_length=1099511627776, more than 65,536",
    ),
    "an encoding of many features": (
        changed((*ENCODING, "config", "num_frequencies", 2**24)),
        "it has num_frequencies=16777216, more than 65,536",
    ),
    "an encoding that is a network": (changed((*ENCODING, SEQUENTIAL_ENCODING)), NOT_AN_ENCODING),
    "an encoding that is a predictor": (changed((*ENCODING, PREDICTOR_ENCODING)), NOT_AN_ENCODING),
    "an encoding that is a Keras layer": (
        changed((*ENCODING, {**LAYER, "class_name": "Dense", "config": {"units": 2}})),
        f"its encoding 'dense.*' {NOT_AN_ENCODING}",
    ),
    "an encoding with a function of Keras": (
        changed((*ENCODING, "config", "activation", function("keras.ops", "diagflat"))),
        "keras.ops.diagflat is not a function for a layer",
    ),
    "an encoding whose output is multiplied by itself": (
        changed((*ENCODING, "config", "activity_regularizer", "orthogonal_regularizer")),
        "its encoding 'positional_encoding.*' has an activity_regularizer",
    ),
    "a grid of many blocks": (
        changed(("kernels", 0, "grid", [2**24, 2**24])),
        "the order of its blocks takes .* more than max_bytes",
    ),
    "a grid of large blocks": (
        changed(
            ("kernels", 0, "grid", [2**20, 1]),
            ("blocks", {**BLOCK_VIEW, "block_size": 16}),
            ("predictor", "block_length", 256),
        ),
        "the kernel 'c' in blocks takes 1,073,741,824 bytes, more than max_bytes",
    ),
    "many blocks of one weight": (
        changed(
            ("kernels", 0, {"name": "c", "weight": 0, "shape": [1, 1, 1, 2**24], "grid": GRID}),
            (*LAYERS, 1, "config", {"name": "c", "filters": 2**24, "kernel_size": [1, 1]}),
            ("predictor", "block_length", 1),
            ("permutation", None),
        ),
        "the order of its blocks takes 1,073,741,824 bytes, more than max_bytes=536,870,912",
    ),
}
DAMAGE = {
    "a list": ([CONFIG], "its config must be an object"),
    "no fields": ({}, "its config has the invalid field versions=None"),
    "no architecture": (
        changed(("architecture", {})),
        "its architecture has the invalid field class_name=None",
    ),
    "a layer for a classifier": (
        changed(("architecture", HUGE_DENSE)),
        "its architecture is that of a Dense, not of a model",
    ),
    "nested lists": (
        changed((*INITIALIZER, json.loads("[" * 900 + "]" * 900))),
        "Keras cannot build it: RecursionError",
    ),
    "a width of text": (changed(("predictor", "hidden_size", "2")), "hidden_size='2'"),
    "a depth of true": (changed(("predictor", "num_layers", True)), "num_layers=True"),
    "an unknown field of the predictor": (
        changed(("predictor", "activation", "relu")),
        r"its predictor has the unknown fields \['activation'\]",
    ),
    "an unknown precision": (
        changed(("predictor", "precision", "int9")),
        "its precision must be one of .*='int9'",
    ),
    "a precision without its part": (
        changed(("predictor", "precision", "int4")),
        "it has no part 'predictor.levels'",
    ),
    "an unknown view": (changed(("blocks", "view", "fish")), "its view must be one of .*='fish'"),
    "an unknown field of the blocks": (
        changed(("blocks", {**BLOCK_VIEW, "include": "c"})),
        r"its blocks has the unknown fields \['include'\]",
    ),
    "a negative block size": (
        changed(("blocks", {**BLOCK_VIEW, "block_size": -2})),
        "block_size must be an integer of at least 1. Received: block_size=-2",
    ),
    "blocks of another length": (
        changed(("predictor", "block_length", 5)),
        "its blocks have 4 weights, but its predictor returns 5",
    ),
    "another grid": (
        changed(("kernels", 0, "grid", [1, 2])),
        r"its kernels have the grids \[\(1, 2\)\], but its classifier's have \[\(2, 1\)\]",
    ),
    "a kernel beyond the last weight": (
        changed(("kernels", 0, "weight", 2)),
        "is not one of 2 weights",
    ),
    "a kernel before the first weight": (
        changed(("kernels", 0, "weight", -2)),
        "is not one of 2 weights",
    ),
    "a kernel twice": (
        changed(("kernels", [KERNEL, KERNEL])),
        r"its kernels must be different weights, but are \[0, 0\]",
    ),
    "a kernel of another shape": (
        changed(("kernels", 0, "shape", [1, 2, 1, 2])),
        r"has the shape \(2, 1, 1, 2\)",
    ),
    "a bias for a kernel": (
        changed(("kernels", 0, {**KERNEL, "weight": 1, "shape": [1, 2]})),
        r"has the shape \(2,\)",
    ),
    "no kernels": (changed(("kernels", [])), r"kernels must be different weights, but are \[\]"),
    "a kernel of text": (
        changed(("kernels", 0, "c")),
        "one of its kernels must be an object, but is 'c'",
    ),
    "a kernel without weights": (
        changed(("kernels", 0, "shape", [2, 0, 1, 2])),
        "one of its kernels has no valid shape and grid",
    ),
}


def local(*changes):
    return changed(*changes, config=LOCAL_CONFIG)


RUNS = ("predictor", "run_lengths")
NOT_RUNS = "its run_lengths must be at least 2 positive integers whose sum is 2, .*, but are "


def one_layer(filters, block_sides, lengths, **predictor):
    """The config of a layer with one block per filter, and runs of these lengths."""
    block_length = math.prod(block_sides)
    own = {"block_length": block_length, "run_lengths": lengths, **predictor}
    return local(
        ("kernels", [{**KERNEL, "shape": [*block_sides, 1, filters], "grid": [filters, 1]}]),
        (*LAYERS, 1, "config", {"name": "c", "filters": filters, "kernel_size": block_sides}),
        (*LAYERS, 1, "config", "padding", "same"),
        (*LAYERS, 1, "config", "use_bias", False),
        ("predictor", LOCAL_CONFIG["predictor"] | own),
        ("permutation", None),
    )


LOCAL = {
    "no runs": (local((*RUNS, [])), NOT_RUNS + r"\[\]"),
    "one run": (local((*RUNS, [2])), NOT_RUNS + r"\[2\]"),
    "an empty run": (local((*RUNS, [2, 0])), NOT_RUNS + r"\[2, 0\]"),
    "a run of negative length": (local((*RUNS, [3, -1])), NOT_RUNS + r"\[3, -1\]"),
    "a run of true length": (local((*RUNS, [True, 1])), NOT_RUNS + r"\[True, 1\]"),
    "a fraction of a run": (local((*RUNS, [1, 1.0])), NOT_RUNS + r"\[1, 1.0\]"),
    "a run of text": (local((*RUNS, ["1", 1])), NOT_RUNS + r"\['1', 1\]"),
    "a function for a run": (local((*RUNS, [function("os", "system"), 1])), NOT_RUNS),
    "a number of runs": (local((*RUNS, 2)), "its predictor has the invalid field run_lengths=2"),
    "fewer places than blocks": (
        changed((*RUNS, [1, 1]), ("kernels", 0, "grid", [3, 1]), config=LOCAL_CONFIG),
        r"whose sum is 3, the number of blocks, but are \[1, 1\]",
    ),
    "more places than blocks": (
        local((*RUNS, [1] * 9)),
        NOT_RUNS + r"\[1, 1, 1, 1, 1, 1, \.\.\.\]",
    ),
    "a long run beyond the blocks": (local((*RUNS, [1, 2**70])), NOT_RUNS),
    "a number of experts": (
        local(("predictor", "experts", 2)),
        r"its predictor has the unknown fields \['experts'\]",
    ),
    "experts with an encoding": (
        local((*ENCODING, CONFIG["predictor"]["encoding"])),
        r"its predictor has the unknown fields \['encoding'\]",
    ),
    "experts of a negative width": (
        local(("predictor", "hidden_size", -40)),
        "hidden_size must be an integer of at least 1.*=-40",
    ),
    "experts of one layer": (
        local(("predictor", "num_layers", 1)),
        "num_layers must be an integer of at least 2.*=1",
    ),
    "experts without a width": (
        local(("predictor", {"precision": "int8", "run_lengths": [1, 1], "num_layers": 2})),
        "its predictor has the invalid field block_length=None",
    ),
    "wide experts": (
        local(("predictor", "hidden_size", 2**16), ("predictor", "num_layers", 3)),
        r"its predictor takes 34,370,\d{3},.* bytes, more than max_bytes=536,870,912",
    ),
    "a long run": (
        one_layer(2**23, [1, 1], [2**22, 2**22], hidden_size=64),
        "a run of its blocks takes 1,073,741,824 bytes, more than max_bytes=536,870,912",
    ),
    # 2^10 runs of one block and one of 2^20 blocks: 4 bytes for each of the 1025 x 2^20 slots
    "a long run after many short ones": (
        one_layer(2**20 + 2**10, [1, 1], [1] * 2**10 + [2**20]),
        "a table of its runs takes 4,299,161,600 bytes, more than max_bytes=536,870,912",
    ),
    # 2^7 runs of one block and one of 2^17 blocks: 129 x 2^17 slots of 4 x 9 bytes
    "a kernel of a long run and many short ones": (
        one_layer(2**17 + 2**7, [3, 3], [1] * 2**7 + [2**17]),
        "a kernel in runs takes 608,698,368 bytes, more than max_bytes=536,870,912",
    ),
    "levels without step sizes": (
        local(("predictor", "precision", "int4")),
        "it has no part 'predictor.levels'",
    ),
}
HOSTILE = CODE_AND_FILES | MEMORY | DAMAGE | LOCAL


def test_a_run_may_be_longer_than_a_predictor_may_be_wide(path):
    lengths = [2**17, 2**16 + 1]
    path.write_bytes(with_config(one_layer(sum(lengths), [1, 1], lengths), LOCAL_PARTS))
    assert inspect(path).predictor["run_lengths"] == lengths


@pytest.mark.parametrize("name", HOSTILE)
def test_raises_for_a_hostile_config(name, path):
    config, message = HOSTILE[name]
    path.write_bytes(with_config(config, LOCAL_PARTS if name in LOCAL else PARTS))
    with peaks.grows_by_at_most(256), pytest.raises(ValueError, match=message) as caught:
        keras_nern.load(path, max_bytes=MAX_BYTES)
    assert str(caught.value).startswith("Expected a file that NeRNModel.export wrote. Received: ")
    assert "classifier.nern" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"config": None}, "it has no part 'config'"),
        ({"config": plain_frame(b"[" * 90_000)}, "its config is not JSON"),
        ({"config": plain_frame(b'{"a": \xff}')}, "its config is not JSON"),
        (
            {"config": zstandard.compress(bytes(10**8))},
            "it unpacks to 100,000,000 bytes instead of at most 1,",
        ),
        (
            {"config": zstandard.compress(random.Random(0).randbytes(2**23 + 1))},
            "it unpacks to 8,388,609 bytes instead of at most 8,388,608",
        ),
        ({"kept.float32": None}, "it has no part 'kept.float32'"),
        ({"kept.float32": planes([0.5])}, "it unpacks to 4 bytes instead of 8"),
        ({"predictor.scales": planes([0.5, 1.0])}, "it unpacks to 8 bytes instead of 4"),
        (
            {"predictor.kernels": zstandard.compress(bytes(10**7))},
            "it unpacks to 10,000,000 bytes instead of 80",
        ),
        ({"permutation": b""}, "0 bytes are too few for the order of 2 blocks"),
        ({"permutation": bytes(400)}, "the range coder has words left over"),
        ({"permutation": bytes(3)}, "3 bytes are not a whole number of 4-byte words"),
    ],
)
def test_raises_for_damaged_parts(parts, message, path):
    parts = {**PARTS, **parts}
    path.write_bytes(assembled({name: part for name, part in parts.items() if part is not None}))
    with pytest.raises(ValueError, match=message):
        keras_nern.load(path)


@pytest.mark.parametrize(
    ("precision", "parts", "message"),
    [
        (
            "float32",
            {"predictor.kernels": planes([0.5] * 79)},
            "it unpacks to 316 bytes instead of 320",
        ),
        ("float16", {}, "it unpacks to 320 bytes instead of 160"),
        (
            "int8",
            {"predictor.levels": b"", "predictor.step_sizes": planes([1.0], "<f2")},
            "it unpacks to 2 bytes instead of 8",
        ),
    ],
)
def test_raises_for_damaged_parts_of_local_predictors(precision, parts, message, path):
    config = local(("predictor", "precision", precision))
    path.write_bytes(with_config(config, LOCAL_PARTS, **parts))
    with pytest.raises(ValueError, match=message):
        keras_nern.load(path)


def test_raises_for_code_in_the_unsafe_mode_of_keras(path):
    config, message = CODE_AND_FILES["a pickled lambda"]
    path.write_bytes(with_config(config))
    keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ValueError, match=message):
            keras_nern.load(path)
    finally:
        keras.utils.clear_session(free_memory=False)


def test_raises_for_a_classifier_larger_than_max_bytes(path):
    path.write_bytes(assembled(PARTS))
    with pytest.raises(ValueError, match="its classifier takes 24 bytes, more than max_bytes=23"):
        keras_nern.load(path, max_bytes=23)


def test_does_not_read_a_file_larger_than_max_bytes_allows(path):
    with open(path, "wb") as file:
        file.truncate(400_000_000)  # the disk stores next to nothing
    with (
        peaks.grows_by_at_most(64),
        pytest.raises(ValueError, match="it has 400,000,000 bytes, more than 11,388,608"),
    ):
        keras_nern.load(path, max_bytes=10**6)


@pytest.mark.parametrize("max_bytes", [0, float("nan"), float("inf"), None, "1"])
def test_raises_for_a_max_bytes_that_is_not_a_positive_integer(max_bytes, path):
    with pytest.raises(ValueError, match=r"max_bytes must be an integer of at least 1\. Received"):
        keras_nern.load(path, max_bytes=max_bytes)


def test_raises_for_custom_objects_that_are_not_a_dict(path):
    with pytest.raises(ValueError, match=r"custom_objects must be a dict .* Received: .*='x'"):
        keras_nern.load(path, custom_objects="x")


@pytest.mark.parametrize("module", ["constriction", "zstandard"])
def test_raises_for_a_package_that_is_not_installed(module, path, monkeypatch):
    path.write_bytes(assembled(PARTS))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{module} .*pip install "keras-nern\[compact\]"'):
        keras_nern.load(path)


def mutated(value, rng):
    """A JSON value with something in it changed."""
    odd = [None, True, -1, 0, 1, 3, 2**23, 2**40, 1.5, "", "relu", "keras.layers", [], {}, [1, 2]]
    odd += [function("keras.ops", "diagflat"), function("keras.activations", "softmax")]
    odd += [constant("U99999999"), constant("float32"), LAMBDA, DOTTED_LAMBDA, GET_FILE_CLASS]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.05:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        return [*value[:index], mutated(value[index], rng), *value[index + 1 :]]
    return rng.choice(odd)


@pytest.mark.parametrize("trials", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_reads_or_rejects_mutations_with_the_right_hash(trials, path):
    rng = random.Random(2)
    outcomes = {"read": 0, "refused": 0}
    with peaks.grows_by_at_most(512):
        for trial in range(trials):
            config, parts = (CONFIG, PARTS) if trial % 2 else (LOCAL_CONFIG, LOCAL_PARTS)
            parts = dict(parts)
            if trial % 3:
                for _ in range(rng.randint(1, 2)):
                    config = mutated(config, rng)
                parts["config"] = plain_frame(json.dumps(config).encode())
            else:
                name = rng.choice(list(parts))
                part = bytearray(parts[name])
                part[rng.randrange(len(part))] = rng.randrange(256)
                parts[name] = bytes(part[: rng.choice([len(part), rng.randrange(len(part) + 1)])])
            path.write_bytes(assembled(parts))
            try:
                str(inspect(path))
                keras_nern.load(path)
                outcomes["read"] += 1
            except ValueError:
                outcomes["refused"] += 1
    assert outcomes["read"] > trials / 30
    assert outcomes["refused"] > trials / 3


EXPORTS = """
import sys
import keras
import numpy as np
import keras_nern
from processes import classifier
nerns = [keras_nern.NeRNModel(classifier(), 16, name=f"n{i}") for i in range(2)]
for i, nern in enumerate(nerns):
    nern.base.layers[-1].bias.assign(np.full(3, i))
while True:
    for nern in nerns:
        nern.export(sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_export_leaves_a_file_that_loads(path):
    process = processes.start(EXPORTS, path)
    try:
        end = time.monotonic() + 240
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(random.Random(3).uniform(0.3, 1.0))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    bias = keras_nern.load(path).layers[-1].bias.numpy().tolist()
    assert bias in ([0, 0, 0], [1, 1, 1])


def test_a_file_of_keras_points_to_keras(nern, tmp_path):
    nern.save(tmp_path / "nern.keras")
    nern.save_weights(tmp_path / "nern.weights.h5")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"keras\.models\.load_model loads those of Keras"):
            keras_nern.load(path)
