import math

import numpy as np
import pytest

from keras_nern import PositionalEncoding


def _slow_encoding(coordinates, count, base):
    rows = []
    for coordinate in coordinates:
        row = []
        for v in coordinate:
            row += [math.sin(math.pi * int(v) * base**i) for i in range(count)]
            row += [math.cos(math.pi * int(v) * base**i) for i in range(count)]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("count", "base"), [(40, 0.76), (5, 1.25), (1, 0.5)])
def test_matches_the_formula_up_to_index_4095(count, base):
    coordinates = np.random.default_rng(0).integers(0, 4096, (500, 3))
    coordinates[0] = 0, 1, 4095
    features = PositionalEncoding(count, base)(coordinates).numpy()
    assert features.shape == (500, 6 * count)
    np.testing.assert_allclose(features, _slow_encoding(coordinates, count, base), atol=1.5e-6)


def test_by_hand():
    # pi * 1 * 0.5^0 = pi and pi * 1 * 0.5^1 = pi / 2
    features = PositionalEncoding(2, 0.5)(np.array([[1]])).numpy()
    np.testing.assert_allclose(features, [[0, 1, -1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frequencies": 0}, "must be an integer of at least 1. Received: num_frequencies=0"),
        ({"num_frequencies": 9.0}, "at least 1. Received: num_frequencies=9.0"),
        ({"base": 0.0}, "base must be between 0 and 2. Received: base=0.0"),
        ({"base": 2}, "base must be between 0 and 2. Received: base=2"),
        ({"base": "0.76"}, "base must be a finite number. Received: base='0.76'"),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PositionalEncoding(**arguments)
