import re

import numpy as np
import pytest

import keras_nern
from keras_nern.predictor.size import (
    auto_experts,
    byte_budget,
    choose_shape,
    max_width,
    predictor_bytes,
    size_bytes,
)


def test_bytes_by_hand():
    # Dense(6, 10), Dense(10, 10), Dense(10, 9): 60 + 100 + 90 weights, 10 + 10 + 9 units
    assert predictor_bytes(10, 3, 9, 6) == 4 * 250 + 4 * 29
    assert predictor_bytes(10, 3, 9, 6, bits=5) == 250 * 5 / 8 + (4 + 2) * 29
    # without biases, and with a step size for each expert and layer
    assert predictor_bytes(10, 3, 9, 6, experts=7) == 4 * 7 * 250
    assert predictor_bytes(10, 3, 9, 6, bits=5, experts=7) == 7 * (250 * 5 / 8 + 2 * 3)


@pytest.mark.parametrize("bits", [None, 2, 7])
@pytest.mark.parametrize("num_layers", [2, 5])
def test_counts_the_weights_of_a_built_predictor(num_layers, bits):
    predictor = keras_nern.KernelPredictor(7, num_layers, block_length=4, bits=bits, pruned=True)
    predictor.build((None, 3))
    weights = sum(layer.kernel.numpy().size for layer in predictor.layers)
    units = sum(layer.bias.numpy().size for layer in predictor.layers)
    expected = 4 * (weights + units) if bits is None else weights * bits / 8 + 6 * units
    assert predictor_bytes(7, num_layers, 4, 240, bits) == predictor.num_bytes == expected


@pytest.mark.parametrize("bits", [None, 2, 7])
@pytest.mark.parametrize("num_layers", [2, 5])
def test_counts_the_weights_of_built_local_predictors(num_layers, bits):
    predictor = keras_nern.LocalPredictor([100] * 3, 7, num_layers, 4, bits=bits, pruned=True)
    predictor.build()
    weights = sum(layer.kernel.numpy().size for layer in predictor.layers)
    expected = 4 * weights
    if bits is not None:
        steps = sum(layer.step_sizes.numpy().size for layer in predictor.layers)
        expected = weights * bits / 8 + 2 * steps
    assert predictor_bytes(7, num_layers, 4, 16, bits, 3) == predictor.num_bytes == expected


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("bits", [None, 5])
def test_max_width_is_the_largest_that_fits(bits, experts):
    for budget in (350, 1234.5, 98_765, 10**7):
        width = max_width(budget, 4, 9, 12, bits, experts)
        assert width > 0
        assert predictor_bytes(width, 4, 9, 12, bits, experts) <= budget
        assert predictor_bytes(width + 1, 4, 9, 12, bits, experts) > budget


def test_max_width_may_use_the_whole_budget():
    assert max_width(predictor_bytes(160, 5, 9, 240), 5, 9, 240) == 160
    assert max_width(predictor_bytes(160, 5, 9, 240) - 1, 5, 9, 240) == 159


def test_max_width_is_0_if_the_budget_is_too_small():
    assert [max_width(budget, 5, 9, 240) for budget in (-5, 0, 1, 1000)] == [0, 0, 0, 0]


# Choosing a shape for a size.

NUM_BLOCKS, NUM_WEIGHTS = 30_064, 270_576  # about those of ResNet20 in the block view


@pytest.mark.parametrize("bits", [None, 6])
@pytest.mark.parametrize("experts", ["auto", 1, 5])
@pytest.mark.parametrize("size", [0.05, 0.1, 0.4, 2, "30 kB", "200 kB", "1.5 MB"])
def test_uses_at_most_and_most_of_the_budget(size, experts, bits):
    other = 12_345.5
    shape = choose_shape(
        NUM_BLOCKS, NUM_WEIGHTS, 9, experts=experts, size=size, bits=bits, other_bytes=other
    )
    if isinstance(size, str):
        budget = float(size.split()[0]) * {"kB": 1e3, "MB": 1e6}[size.split()[1]] - other
    else:
        budget = size * NUM_WEIGHTS * (4 if bits is None else bits / 8)
    features = 240 if shape.experts == 1 else 16

    def used(width):
        return predictor_bytes(width, shape.num_layers, 9, features, bits, shape.experts)

    assert used(shape.hidden_size) <= budget < used(shape.hidden_size + 1)
    if experts != "auto":
        assert shape.experts == experts
    elif shape.experts > 1:
        assert used(shape.hidden_size) > 0.93 * budget
        assert 28 <= shape.hidden_size <= 36
        if shape.experts > 10:
            assert used(shape.hidden_size) > 0.985 * budget
    assert shape.num_layers == (5 if shape.experts == 1 else 9)


def test_the_number_of_experts_grows_with_the_network_and_their_width_does_not():
    shapes = [choose_shape(n // 9, n, 9) for n in (270_000, 2_700_000, 27_000_000)]
    experts = np.array([shape.experts for shape in shapes])
    np.testing.assert_allclose(experts / experts[0], [1, 10, 100], rtol=0.5)
    assert {28 <= shape.hidden_size <= 36 for shape in shapes} == {True}
    costs = [shape.hidden_size**2 / 1e3 for shape in shapes]  # of a block
    assert max(costs) / min(costs) < 1.66


def test_auto_is_one_predictor_if_two_experts_do_not_fit():
    pair = predictor_bytes(28, 9, 9, 16, experts=2)
    assert auto_experts(pair, 1000, None, 9, None) == 2
    assert auto_experts(pair - 1, 1000, None, 9, None) == 1
    assert choose_shape(1000, 9000, 9, size=f"{pair:.0f} B") == (2, 28, 9)
    assert choose_shape(1000, 9000, 9, size=f"{pair - 1:.0f} B").experts == 1


def test_there_are_no_more_experts_than_blocks():
    assert choose_shape(5, 45, 9, size="1 MB").experts == 5


def test_the_default_size_is_0_4_but_at_least_width_8():
    assert choose_shape(NUM_BLOCKS, NUM_WEIGHTS, 9) == choose_shape(
        NUM_BLOCKS, NUM_WEIGHTS, 9, size=0.4
    )
    assert choose_shape(52, 300, 9) == (1, 8, 5)
    assert choose_shape(52, 300, 9, experts=3) == (3, 8, 9)


def test_given_numbers_are_kept():
    assert choose_shape(52, 300, 9, hidden_size=16) == (1, 16, 5)
    assert choose_shape(52, 300, 9, hidden_size=16, num_layers=3) == (1, 16, 3)
    assert choose_shape(52, 300, 9, hidden_size=16, experts=4) == (4, 16, 9)
    shape = choose_shape(NUM_BLOCKS, NUM_WEIGHTS, 9, num_layers=4)
    assert (shape.num_layers, shape.experts > 1) == (4, True)
    assert 28 <= shape.hidden_size <= 36
    # another encoding leaves another width
    wide = choose_shape(NUM_BLOCKS, NUM_WEIGHTS, 9, experts=1, features=3)
    assert wide.hidden_size > choose_shape(NUM_BLOCKS, NUM_WEIGHTS, 9, experts=1).hidden_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("200 kB", 200_000),
        ("200kB", 200_000),
        (" 1.5 MB ", 1_500_000),
        ("7 B", 7),
        ("2 GB", 2_000_000_000),
        ("3 KiB", 3 * 1024),
        ("0.5 MiB", 2**19),
        ("1 GiB", 2**30),
    ],
)
def test_bytes_of_a_string(size, expected):
    assert size_bytes(size, num_weights=10**6) == expected
    assert size_bytes(size, num_weights=5, bits=4, other_bytes=3.5) == expected - 3.5


def test_a_budget_is_a_number_of_bytes_or_bytes_in_a_unit():
    assert byte_budget("max_bytes", "1.5 KiB") == byte_budget("max_bytes", 1536) == 1536
    assert byte_budget("max_bytes", np.int64(7)) == 7
    message = r"max_bytes must be a number of bytes or bytes in one of B, kB, .*max_bytes='2 bits'"
    with pytest.raises(ValueError, match=message):
        byte_budget("max_bytes", "2 bits")
    with pytest.raises(ValueError, match=r"limit must be a finite number above 0.*limit=0"):
        byte_budget("limit", 0)


def test_bytes_of_a_share():
    assert size_bytes(0.5, num_weights=1000) == 2000
    assert size_bytes(np.float32(2), num_weights=1000, bits=3, other_bytes=99) == 2000 * 3 / 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": 0}, "experts must be an integer of at least 1. Received: experts=0"),
        ({"experts": "many"}, "experts must be an integer .*experts='many'"),
        ({"experts": 2.5}, "experts must be an integer .*experts=2.5"),
        ({"num_layers": 1}, "num_layers must be .* at least 2. Received: num_layers=1"),
        ({"bits": float("nan")}, "bits must be an integer from 2 to 8. Received: bits=nan"),
        ({"hidden_size": 0}, "hidden_size must be .* at least 1. Received: hidden_size=0"),
        (
            {"hidden_size": 8, "size": 0.4},
            re.escape("Expected hidden_size or size. Received: hidden_size=8, size=0.4"),
        ),
        ({"size": 0}, "size must be .*positive.*|size must be .*above 0.*size=0"),
        ({"size": -0.5}, "size must be .*size=-0.5"),
        ({"size": float("nan")}, "size must be .*size=nan"),
        ({"size": [1]}, r"size must be .*size=\[1\]"),
        ({"size": "200"}, "share of the weights or bytes in one of B, kB, .*size='200'"),
        ({"size": "200 kb"}, "size must be a share .* such as '200 kB'. Received: size='200 kb'"),
        ({"size": "-2 kB"}, "size must be a share .*size='-2 kB'"),
        ({"size": "1e3 kB"}, "size must be a share .*size='1e3 kB'"),
        (
            {"size": "1 kB"},
            # one predictor of width 1: 240 + 3 + 9 weights, 4 + 9 biases
            "size must leave at least 1,060 bytes for the predictor. "
            "Received: size='1 kB', which leaves 1,000",
        ),
        (
            {"size": "1 kB", "experts": 20, "other_bytes": 1001.0},
            # 20 (16 + 7 + 9) weights
            "must leave at least 2,560 bytes .*size='1 kB', which leaves 0",
        ),
        ({"size": 1e-6}, "must leave at least 1,060 bytes .*size=1e-06, which leaves 1"),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_shape(NUM_BLOCKS, NUM_WEIGHTS, 9, **arguments)
