import numpy as np
import pytest

from keras_nern import plots


def test_grid_by_hand():
    kernels = np.arange(1, 6).reshape(5, 1, 1)
    x = np.nan
    expected = [[1, x, 2, x, 3], [x] * 5, [4, x, 5, x, x]]
    np.testing.assert_array_equal(plots._grid(kernels), expected)


def test_shows_the_largest_kernels_of_both_on_one_scale(tmp_path):
    original = np.array([1.0, -3.0, 0.5, 2.0]).reshape(1, 1, 2, 2)
    figure = plots.plot_kernels(original, original / 2, "layer", limit=3)
    left, right = (axes.images[0] for axes in figure.axes[:2])
    # kernels in filter-major order are 1, 0.5, -3, 2; by size -3, 2, 1
    np.testing.assert_array_equal(left.get_array()[::2, ::2].compressed(), [-3, 2, 1])
    np.testing.assert_array_equal(right.get_array()[::2, ::2].compressed(), [-1.5, 1, 0.5])
    assert left.get_clim() == right.get_clim() == (-3, 3)
    figure.savefig(tmp_path / "layer.png")
    assert (tmp_path / "layer.png").stat().st_size > 1000


def test_refuses_kernels_of_two_shapes():
    with pytest.raises(ValueError, match=r"Received: \(3, 3, 1, 2\) and \(3, 3, 2, 1\)"):
        plots.plot_kernels(np.zeros((3, 3, 1, 2)), np.zeros((3, 3, 2, 1)))
