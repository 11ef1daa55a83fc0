import hashlib
import json
import sys

import artifact_files
import keras
import numpy as np
import pytest
import zstandard
from artifact_files import B1, B2, CONFIG, PARTS, W1, W2, assert_same_weights, sequential

import keras_nern
from keras_nern.artifact import codec, container
from keras_nern.artifact.info import inspect


def test_writes_a_file_byte_by_byte_as_specified(path):
    path.write_bytes(artifact_files.assembled(PARTS))
    base = keras_nern.load(path)
    nern = keras_nern.NeRNModel(
        base,
        2,
        num_layers=2,
        permutation=keras_nern.Permutation([(2, 1)], [np.array([1, 0])]),
        encoding=keras_nern.PositionalEncoding(1, 0.5),
        normalize="layer",
    )
    for weight, value in zip(nern.predictor.weights, (W1, B1, W2, B2), strict=True):
        weight.assign(value)
    nern.scales.assign([2.0])
    nern.export(path)
    parts = container.read(path)
    assert parts.keys() == {*PARTS, "sha256"}
    assert parts["permutation"] == PARTS["permutation"]
    for name in ("kept.float32", "predictor.biases", "predictor.kernels", "predictor.scales"):
        assert zstandard.decompress(parts[name]) == zstandard.decompress(PARTS[name])
    config = json.loads(zstandard.decompress(parts["config"]))
    assert list(config) == list(CONFIG)
    assert list(config["predictor"]) == list(CONFIG["predictor"])
    for name in ("kept_precision", "normalize", "permutation", "blocks", "kernels"):
        assert config[name] == CONFIG[name]
    assert config["versions"]["keras"] == keras.__version__
    weights = b"".join(np.ascontiguousarray(value).tobytes() for value in base.get_weights())
    assert config["base_sha256"] == hashlib.sha256(weights).hexdigest()
    first = path.read_bytes()
    nern.export(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["classifier", "classifier.keras", "classifier.h5"])
def test_raises_for_a_path_that_looks_like_another_file(nern, tmp_path, name):
    with pytest.raises(ValueError, match="filepath must have an extension that is not one of"):
        nern.export(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_writes_the_orders_in_their_number_of_bits(path):
    nern = keras_nern.NeRNModel(artifact_files.classifier(), 4, permutation="cross_filter")
    nern.export(path)
    bits = nern.kernel_permutation().bits
    assert bits <= 8 * len(container.read(path)["permutation"]) <= bits + 64


@pytest.mark.parametrize(
    "bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 5, 8))]
)
def test_integer_precision_matches_compress(nern, compressed, bits, path):
    small = compressed(bits=bits)
    small.export(path)
    assert inspect(path).precision == f"int{bits}"
    assert_same_weights(keras_nern.load(path), small.reconstruct())
    compressed = container.read(path)
    nern.export(path, precision=f"int{bits}")
    exported = container.read(path)
    for name in ("predictor.levels", "predictor.step_sizes", "predictor.biases"):
        assert exported[name] == compressed[name]


def test_integer_precision_keeps_the_zeros_of_a_pruned_predictor(nern, compressed, path):
    nern.export(path, precision="int6")
    full = path.stat().st_size
    pruned = compressed(sparsity=0.5)
    pruned.export(path, precision="int6")
    assert path.stat().st_size < full
    masks = [layer.mask.numpy() for layer in pruned.predictor.layers]
    levels = codec.decode_levels(
        container.read(path)["predictor.levels"], [mask.shape for mask in masks], bits=6
    )
    for mask, one in zip(masks, levels, strict=True):
        assert not one[mask == 0].any()
    both = compressed(bits=6, sparsity=0.5)
    both.export(path)
    assert_same_weights(keras_nern.load(path), both.reconstruct())


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_lower_precisions_round_all_weights(nern, path, kept):
    pruned = keras_nern.compress(nern, sparsity=0.5)
    pruned.export(path, precision="float16", kept_precision=kept)
    for layer in pruned.predictor.layers:
        for weight in (layer.kernel, layer.bias):
            weight.assign(np.asarray(weight, "float16"))
    expected = pruned.reconstruct()
    represented = {id(expected.get_layer(name).kernel) for name in ("stem", "conv", "shrink")}
    for weight in expected.weights:
        if id(weight) not in represented:
            weight.assign(np.asarray(weight, kept).astype("float32"))
    assert_same_weights(keras_nern.load(path), expected)


def test_lower_precisions_take_fewer_bytes(nern, path):
    sizes = []
    for precision in ("float32", "float16", "int8", "int4"):
        nern.export(path, precision=precision)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    before = inspect(path).part_bytes
    sizes = [before["kept"]]
    for kept in ("float16", "bfloat16"):
        nern.export(path, precision="int4", kept_precision=kept)
        after = inspect(path).part_bytes
        assert after["predictor"] == before["predictor"]
        sizes.append(after["kept"])
    assert sizes[2] < sizes[0]
    assert sizes[1] < sizes[0]


def test_other_formats_export_the_rebuilt_classifier(nern, tmp_path):
    images = np.random.default_rng(2).normal(size=(3, 8, 8, 1)).astype("float32")
    nern.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    layer = keras.layers.TFSMLayer(tmp_path / "saved", call_endpoint="serve")
    np.testing.assert_allclose(layer(images), nern(images), atol=1e-5)


def test_raises_for_a_lambda_layer_before_any_work(path, monkeypatch):
    model = sequential(keras.layers.Conv2D(3, 3), keras.layers.Lambda(lambda x: x + 1))
    nern = keras_nern.NeRNModel(model, 4)
    monkeypatch.setattr("keras_nern.artifact.writer.quantize_predictor", None)
    with pytest.raises(ValueError, match=r"'Lambda' is Python code .*a compact file cannot hold"):
        nern.export(path, precision="int4")
    assert not path.exists()


def test_raises_for_a_base_without_a_config(path):
    class NoConfig(keras.Model):
        def __init__(self, conv):
            super().__init__(name="no_config")
            self.conv = conv

        def call(self, inputs):
            return self.conv(inputs)

        def get_config(self):
            raise NotImplementedError("no config here")

    model = NoConfig(keras.layers.Conv2D(2, 3))
    model(np.zeros((1, 8, 8, 1), "float32"))
    with pytest.warns(UserWarning, match="'no_config'"):
        nern = keras_nern.NeRNModel(model, 4)
    message = r"Keras can serialize\. Received: 'no_config' \(NotImplementedError: no config here\)"
    with pytest.raises(ValueError, match=message):
        nern.export(path)


def test_raises_for_a_config_that_builds_other_weights(path):
    @keras.saving.register_keras_serializable(package="test_writer")
    class Forgetful(keras.layers.Layer):
        def __init__(self, width=1, **kwargs):
            super().__init__(**kwargs)
            self.width = width

        def build(self, input_shape):
            self.add_weight(name="w", shape=(self.width,))

        def call(self, inputs):
            return inputs

        def get_config(self):
            return {"name": self.name}

    nern = keras_nern.NeRNModel(sequential(keras.layers.Conv2D(2, 3), Forgetful(3)), 4)
    with pytest.raises(ValueError, match="builds other weights than it has"):
        nern.export(path)


@pytest.mark.parametrize(
    "encoding",
    [
        lambda: keras.Sequential([keras.layers.RepeatVector(2), keras.layers.Flatten()]),
        lambda: keras.layers.Dense(4),
    ],
    ids=["Sequential", "Dense"],
)
def test_raises_for_an_encoding_of_keras_layers(encoding, path):
    nern = keras_nern.NeRNModel(artifact_files.classifier(), 4, encoding=encoding())
    with pytest.raises(ValueError, match="neither a PositionalEncoding nor a layer of a regist"):
        nern.export(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int9"}, r"precision must be \"auto\" or one of .*precision='int9'"),
        ({"kept_precision": "int8"}, r"kept_precision must be one of .*kept_precision='int8'"),
        (
            {"format": "tf_saved_model", "precision": "int8"},
            r"precision and kept_precision need format='nern'\. Received: format='tf_saved_model'",
        ),
        (
            {"verbose": 1},
            r"format='nern' takes precision and kept_precision only\. Received: \{'verbose': 1\}",
        ),
    ],
    ids=["precision", "kept_precision", "format", "other arguments"],
)
def test_raises_for_unknown_arguments(nern, arguments, message, path):
    with pytest.raises(ValueError, match=message):
        nern.export(path, **arguments)


def test_raises_for_other_bits_than_those_of_the_predictor(compressed, path):
    small = compressed(bits=4)
    with pytest.raises(ValueError, match="precision must be 'int4' for a predictor of 4 bits, or"):
        small.export(path, precision="int8")
    small.export(path, precision="float32")
    assert_same_weights(keras_nern.load(path), small.reconstruct())


def test_raises_for_kept_weights_that_float16_cannot_hold(path):
    base = artifact_files.classifier()
    base.get_layer("stem_bn").moving_variance.assign([1.0, 2.0, 3.0, 1e6])
    message = (
        r"kept_precision must be 'float32', because float16 holds numbers up to 65,504\. Received: "
        r".*/stem_bn/moving_variance' with numbers up to 1,000,000"
    )
    with pytest.raises(ValueError, match=message):
        keras_nern.NeRNModel(base, 4).export(path, kept_precision="float16")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_raises_for_a_predictor_that_is_not_finite(precision, path):
    nern = keras_nern.NeRNModel(artifact_files.classifier(), 4)
    bias = nern.predictor.layers[-1].bias
    bias.assign(np.full(bias.shape, np.nan))
    with pytest.raises(ValueError, match=r"The predictor must have finite weights\. Received"):
        nern.export(path, precision=precision)
    assert not path.exists()


def test_raises_without_predictor_and_residual(nern, path):
    nothing = keras_nern.NeRNModel(nern.base, size=0)
    with pytest.raises(ValueError, match="with a predictor or a residual to write: compress"):
        nothing.export(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("place", "error"), [("folder.nern", IsADirectoryError), ("no/a.nern", OSError)]
)
def test_raises_for_a_path_that_cannot_be_written_before_any_work(
    nern, place, error, tmp_path, monkeypatch
):
    monkeypatch.setattr("keras_nern.artifact.writer._config_part", None)
    (tmp_path / "folder.nern").mkdir()
    with pytest.raises(error, match=f"Expected .*{place}'"):
        nern.export(tmp_path / place)


@pytest.mark.parametrize("module", ["safetensors.numpy", "constriction", "zstandard"])
def test_raises_for_a_package_that_is_not_installed(nern, module, path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "keras-nern\[compact\]"'):
        nern.export(path)
    assert not path.exists()


def test_a_path_without_an_extension_is_asked_for_its_format(nern, tmp_path):
    with pytest.raises(ValueError, match=r"an extension.*format='tf_saved_model'.*folder"):
        nern.export(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
