import pytest

import keras_nern
from keras_nern.predictor.size import max_width, predictor_bytes


def test_bytes_by_hand():
    # Dense(6, 10), Dense(10, 10), Dense(10, 9): 60 + 100 + 90 weights, 10 + 10 + 9 units
    assert predictor_bytes(10, 3, 9, 6) == 4 * 250 + 4 * 29
    assert predictor_bytes(10, 3, 9, 6, bits=5) == 250 * 5 / 8 + (4 + 2) * 29


@pytest.mark.parametrize("bits", [None, 2, 7])
@pytest.mark.parametrize("num_layers", [2, 5])
def test_counts_the_weights_of_a_built_predictor(num_layers, bits):
    predictor = keras_nern.KernelPredictor(7, num_layers, block_length=4, bits=bits, pruned=True)
    predictor.build((None, 3))
    weights = sum(layer.kernel.numpy().size for layer in predictor.layers)
    units = sum(layer.bias.numpy().size for layer in predictor.layers)
    expected = 4 * (weights + units) if bits is None else weights * bits / 8 + 6 * units
    assert predictor_bytes(7, num_layers, 4, 240, bits) == predictor.num_bytes == expected


@pytest.mark.parametrize("bits", [None, 5])
def test_max_width_is_the_largest_that_fits(bits):
    for budget in (150, 1234.5, 98_765, 10**7):
        width = max_width(budget, 4, 9, 12, bits)
        assert width > 0
        assert predictor_bytes(width, 4, 9, 12, bits) <= budget
        assert predictor_bytes(width + 1, 4, 9, 12, bits) > budget


def test_max_width_may_use_the_whole_budget():
    assert max_width(predictor_bytes(160, 5, 9, 240), 5, 9, 240) == 160
    assert max_width(predictor_bytes(160, 5, 9, 240) - 1, 5, 9, 240) == 159


def test_max_width_is_0_if_the_budget_is_too_small():
    assert [max_width(budget, 5, 9, 240) for budget in (-5, 0, 1, 1000)] == [0, 0, 0, 0]
