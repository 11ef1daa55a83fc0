import math
import re

import pytest

import keras_nern


def test_counts_by_hand(base):
    table = keras_nern.NeRNModel(base, hidden_size=10, permutation="cross_filter").summary_table()
    assert [(row.name, row.blocks, row.weights) for row in table.layers] == [
        ("stem", 4, 36),
        ("conv", 24, 216),
        ("shortcut", 24, 24),
    ]
    assert (table.blocks, table.weights) == (52, 276)
    # Dense(240, 10), 3 x Dense(10, 10), Dense(10, 9)
    assert table.predictor_parameters == 2410 + 3 * 110 + 99
    # two BN of 4 and 6 channels, the shortcut's bias, Dense(6, 3)
    assert table.kept_weights == 4 * 4 + 4 * 6 + 6 + 21
    bits = math.log2(math.factorial(4)) + 2 * math.log2(math.factorial(24))
    assert table.permutation_bits == pytest.approx(bits)
    assert table.scales == 0
    size = 4 * 2839 + bits / 8
    assert table.representation_bytes == pytest.approx(size)
    assert table.kernel_ratio == pytest.approx(4 * 276 / size)
    assert table.network_ratio == pytest.approx((4 * 276 + 4 * 67) / (size + 4 * 67))


def test_layer_scales_are_counted(base):
    plain = keras_nern.NeRNModel(base, hidden_size=10).summary_table()
    scaled = keras_nern.NeRNModel(base, hidden_size=10, normalize="layer").summary_table()
    assert scaled.scales == 3
    assert scaled.representation_bytes == plain.representation_bytes + 12


def test_prints_a_row_per_layer_and_the_totals(base):
    text = str(keras_nern.NeRNModel(base, hidden_size=10).summary_table())
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["conv"] == ["conv", "3x3x4x6", "24", "216", "0"]
    assert lines["total"] == ["total", "52", "276", "0"]
    assert lines["predictor"] == ["predictor", "bytes", "11,356"]
    assert lines["predictors"] == ["predictors", "1", "of", "5", "x", "10"]
    assert re.search(r"predictor parameters +2,839\n", text)
