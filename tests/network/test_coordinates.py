import numpy as np
import pytest

from keras_nern.network.blocks import kernel_coordinates
from keras_nern.permutations.orders import invert

GRIDS = [(3, 2), (2, 3)]


def test_unpermuted_coordinates_name_layer_filter_and_channel():
    expected = [
        (layer, f, c)
        for layer, (cout, cin) in enumerate(GRIDS)
        for f in range(cout)
        for c in range(cin)
    ]
    coordinates = kernel_coordinates(GRIDS)
    assert coordinates.dtype == "int32"
    assert [tuple(row) for row in coordinates] == expected


def test_the_kernel_at_position_p_gets_the_coordinate_of_p():
    orders = [np.random.default_rng(i).permutation(6) for i in range(2)]
    coordinates = kernel_coordinates(GRIDS, orders)
    plain = kernel_coordinates(GRIDS)
    for layer in range(2):
        for kernel in range(6):
            position = list(orders[layer]).index(kernel)
            np.testing.assert_array_equal(
                coordinates[6 * layer + kernel], plain[6 * layer + position]
            )
    # and the inverse order, applied to the rows, undoes it
    undone = np.concatenate([coordinates[:6][orders[0]], coordinates[6:][orders[1]]])
    np.testing.assert_array_equal(undone, plain)
    np.testing.assert_array_equal(coordinates[:6], plain[:6][invert(orders[0])])


@pytest.mark.parametrize("order", [np.arange(5), np.zeros(6, int)])
def test_refuses_what_is_no_permutation(order):
    with pytest.raises(ValueError, match=r"layer 0 must be a permutation of range\(6\)"):
        kernel_coordinates(GRIDS, [order, np.arange(6)])
