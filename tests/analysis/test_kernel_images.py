import numpy as np
import pytest

from keras_nern.analysis.kernel_images import kernel_image, mosaic, to_images


def test_mosaic_has_gaps_between_kernels():
    kernels = np.arange(1, 6).reshape(5, 1, 1)
    gap = np.nan
    expected = [[1, gap, 2, gap, 3], [gap] * 5, [4, gap, 5, gap, gap]]
    np.testing.assert_array_equal(mosaic(kernels, magnify=1), expected)
    row = [1, 1, gap, 2, 2, gap, 3, 3]
    np.testing.assert_array_equal(mosaic(kernels[:3], 2, columns=3), [row, row])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((16, 3, 3), (15, 15)), ((16, 1, 5), (11, 17)), ((2, 5, 1), (5, 3)), ((1, 3, 3), (3, 3))],
)
def test_mosaic_is_about_a_square(shape, expected):
    assert mosaic(np.ones(shape), magnify=1).shape == expected


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((2, 3), [[0.0]]),  # Dense
        ((2, 2, 2), [[0, 4]]),  # a 1-D convolution
        ((2, 2, 2, 1, 1), [[0, 1], [2, 3], [4, 5], [6, 7]]),  # 3-D: slices are stacked
    ],
)
def test_converts_kernels_of_any_rank_to_images(shape, first):
    images = to_images(np.arange(np.prod(shape)).reshape(shape))
    assert len(images) == shape[-1] * shape[-2]
    np.testing.assert_array_equal(images[0], first)


def test_pixels_match_values_by_hand():
    original = np.array([2.0, -1.0]).reshape(1, 1, 1, 2)
    predicted = np.array([0.0, -4.0]).reshape(1, 1, 1, 2)  # -4 is clipped to the scale, 2
    image = kernel_image(original, predicted, magnify=1)
    red, half_blue, white, blue = [255, 0, 0], [128, 128, 255], [255] * 3, [0, 0, 255]
    gap, black = [153] * 3, [0] * 3
    np.testing.assert_array_equal(image, [[red, gap, half_blue, black, white, gap, blue]])
    magnified = kernel_image(original, predicted, magnify=2)
    row = [red, red, gap, half_blue, half_blue, black, black, white, white, gap, blue, blue]
    np.testing.assert_array_equal(magnified, [row, row])
