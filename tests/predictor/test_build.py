import keras
import numpy as np
import pytest

from keras_nern import KernelPredictor, LocalPredictor, PositionalEncoding
from keras_nern.predictor.build import build_predictor
from keras_nern.predictor.runs import run_lengths
from keras_nern.predictor.size import predictor_bytes


def _build(layer_sizes=(4, 24, 24), **arguments):
    return build_predictor(layer_sizes, sum(layer_sizes) * 9, 9, **arguments)


def test_builds_one_predictor():
    predictor = _build(hidden_size=6, num_layers=3, bits=4, pruned=True, permutation=None)
    assert type(predictor) is KernelPredictor
    assert (predictor.experts, predictor.hidden_size, predictor.num_layers) == (1, 6, 3)
    assert (predictor.block_length, predictor.bits, predictor.pruned) == (9, 4, True)
    assert type(predictor.encoding) is PositionalEncoding
    assert predictor.name == "predictor"


def test_builds_local_predictors():
    predictor = _build(experts=5, hidden_size=6, num_layers=3, bits=4, pruned=True)
    assert type(predictor) is LocalPredictor
    assert (predictor.experts, predictor.hidden_size, predictor.num_layers) == (5, 6, 3)
    assert predictor.run_lengths == run_lengths([4, 24, 24], 5)
    assert (predictor.block_length, predictor.bits, predictor.pruned) == (9, 4, True)
    assert predictor.name == "predictor"


@pytest.mark.parametrize("experts", [1, 3])
def test_step_sizes_fit_the_initial_kernels(experts):
    predictor = _build(experts=experts, hidden_size=6, bits=8)
    for layer in predictor.layers:
        kernel = layer.kernel.numpy()
        error = np.abs(layer.quantized().values() - kernel).max()
        assert error < 0.05 * np.abs(kernel).max()


def test_bytes_of_the_other_parts_are_subtracted():
    sizes = [
        _build([10_000, 20_000], size="200 kB", other_bytes=other, experts=experts).num_bytes
        for experts in (1, 7, "auto")
        for other in (0, 50_000)
    ]
    np.testing.assert_allclose(sizes, [200_000, 150_000] * 3, rtol=0.07)
    assert max(sizes[::2]) <= 200_000
    assert max(sizes[1::2]) <= 150_000


def test_an_encoding_belongs_to_one_predictor_and_counts_by_its_features():
    encoding = keras.layers.Rescaling(0.1)
    predictor = _build([30_000], encoding=encoding, size=0.4)
    assert predictor.encoding is encoding
    assert predictor.experts == 1
    budget = 0.4 * 270_000 * 4
    assert predictor.num_bytes <= budget
    assert predictor_bytes(predictor.hidden_size + 1, 5, 9, 3) > budget
    assert _build(encoding=encoding, experts=1, hidden_size=4).encoding is encoding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"encoding": PositionalEncoding(), "experts": 3},
            "experts must be 1 with an encoding, .* Received: experts=3, encoding=<Positional",
        ),
        ({"encoding": "sines", "hidden_size": 4}, "encoding must be a Keras layer .*'sines'"),
        (
            {"experts": 53, "hidden_size": 4},
            "experts must be at most 52, the number of blocks. Received: experts=53",
        ),
        ({"size": "many"}, "size must be a share of the weights or bytes .*size='many'"),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        _build(**arguments)
