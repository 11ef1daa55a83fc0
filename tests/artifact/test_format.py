"""Files that the package writes, read by a reader that was written from docs/format.md."""

import functools

import keras
import numpy as np
import pytest
from artifact_files import assert_same_weights, classifier
from nern_reader import NernReader

import keras_nern
from keras_nern.artifact import container

# The runs have different lengths, in the crop view and in the block view.
LOCAL = {"experts": 3, "hidden_size": 5, "num_layers": 3}
BLOCK_VIEW = {"experts": 4, "hidden_size": 12, "num_layers": 2, "view": "block"}
SINGLE = {"hidden_size": 6, "num_layers": 3, "normalize": "layer"}


@functools.cache
def represented(**arguments):
    """A representation that no test changes."""
    keras.utils.set_random_seed(0)
    return keras_nern.NeRNModel(classifier(), **arguments)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("float16", marks=pytest.mark.slow), "int7"]
)
@pytest.mark.parametrize("permutation", [None, "in_filter", "cross_filter"])
@pytest.mark.parametrize(
    "arguments", [SINGLE, LOCAL, BLOCK_VIEW], ids=["single", "local", "block view"]
)
def test_a_reader_of_the_specification_reads_every_kind(arguments, permutation, precision, path):
    nern = represented(permutation=permutation, **arguments)
    nern.export(path, precision=precision)
    reader = NernReader(path.read_bytes())
    read, loaded = reader.kernels(), keras_nern.load(path)
    assert list(read) == ["stem", "conv", "shrink"]
    for name, kernel in read.items():
        np.testing.assert_allclose(loaded.get_layer(name).kernel, kernel, rtol=1e-4, atol=1e-5)
    if arguments is not SINGLE:
        assert len(set(reader.predictor["run_lengths"])) > 1
        assert reader.parts.keys().isdisjoint({"predictor.biases", "predictor.encoding.float32"})


@pytest.mark.parametrize("arguments", [LOCAL, BLOCK_VIEW], ids=["crop", "block"])
@pytest.mark.parametrize("compression", [None, {"bits": 7}, {"bits": 4, "sparsity": 0.5}])
def test_local_predictors_are_rebuilt_exactly(arguments, compression, path):
    nern = represented(permutation="cross_filter", **arguments)
    if compression is not None:
        nern = keras_nern.compress(nern, **compression)
    nern.export(path)
    assert_same_weights(keras_nern.load(path), nern.reconstruct())


def test_local_predictors_are_exported_as_compress_would_quantize_them(path):
    nern = represented(permutation="in_filter", **LOCAL)
    nern.export(path, precision="int5")
    assert_same_weights(keras_nern.load(path), keras_nern.compress(nern, bits=5).reconstruct())


def test_float16_rounds_the_weights_of_local_predictors(path):
    nern = keras_nern.NeRNModel(classifier(), **LOCAL)
    nern.export(path, precision="float16")
    before = nern.predict_kernels()["conv"]
    for layer in nern.predictor.layers:
        layer.kernel.assign(np.asarray(layer.kernel, "float16"))
    assert np.abs(before - nern.predict_kernels()["conv"]).max() > 1e-5
    assert_same_weights(keras_nern.load(path), nern.reconstruct())


@pytest.mark.parametrize("arguments", [SINGLE, LOCAL, {"size": 0}], ids=["single", "local", "none"])
def test_a_reader_of_the_specification_reads_a_residual(arguments, path):
    small = corrected(represented(permutation="cross_filter", **arguments))
    small.export(path)
    reader = NernReader(path.read_bytes())
    loaded = keras_nern.load(path)
    assert_same_weights(loaded, small.reconstruct())
    for name, kernel in reader.kernels().items():
        np.testing.assert_allclose(loaded.get_layer(name).kernel, kernel, rtol=1e-4, atol=1e-5)


def corrected(nern):
    """A copy of a representation with a residual of random integers."""
    small = nern._with_predictor(residual=True)
    small.predictor.set_weights(nern.predictor.get_weights())
    generator = np.random.default_rng(0)
    shapes = small.residual_layer.shapes
    integers = [generator.integers(-3, 4, shape) for shape in shapes]
    integers[1][:] = 0
    exponents = [generator.integers(-20, -5, (groups, 1, n)) for groups, _, n in shapes]
    small.residual_layer.assign(integers, exponents)
    return small


def test_the_start_of_a_file_is_the_network_without_the_residual(path):
    nern = represented(**SINGLE)
    small = corrected(nern)
    small.export(path)
    whole = path.read_bytes()
    coarse = nern.reconstruct()
    assert_same_weights(keras_nern.load(path, residual=False), coarse)
    sizes = container.lengths(path)
    path.write_bytes(whole[: len(whole) - sizes["sha256"] - 10])
    assert_same_weights(keras_nern.load(path, residual=False), coarse)
    with pytest.raises(ValueError, match=r"residual is cut off, and load\(path, residual=False\)"):
        keras_nern.load(path)
    path.write_bytes(whole[:-40] + bytes(40))  # damage behind the start
    assert_same_weights(keras_nern.load(path, residual=False), coarse)
    with pytest.raises(ValueError, match="it is damaged"):
        keras_nern.load(path)


def test_a_file_without_a_residual_is_read_as_a_whole(path):
    nern = represented(**SINGLE)
    nern.export(path)
    assert_same_weights(keras_nern.load(path, residual=False), nern.reconstruct())


def test_raises_for_the_start_of_a_file_without_a_predictor(path):
    corrected(represented(size=0)).export(path)
    with pytest.raises(ValueError, match="it has no predictor, and its residual is not read"):
        keras_nern.load(path, residual=False)
