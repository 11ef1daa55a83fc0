import numpy as np
import pytest

from keras_nern.analysis import kernel_images


def test_grid_by_hand():
    kernels = np.arange(1, 6).reshape(5, 1, 1)
    x = np.nan
    expected = [[1, x, 2, x, 3], [x] * 5, [4, x, 5, x, x]]
    np.testing.assert_array_equal(kernel_images.mosaic(kernels), expected)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        # of a Dense layer, the weights of filter 0 are one image each
        ((2, 3), [[0.0]]),
        # of a 1-D convolution, a row
        ((2, 2, 2), [[0, 4]]),
        # of a 3-D one, its slices one below the other
        ((2, 2, 2, 1, 1), [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_kernels_of_any_rank_are_images(shape, first):
    images = kernel_images.kernel_images(np.arange(np.prod(shape)).reshape(shape))
    assert len(images) == shape[-1] * shape[-2]
    np.testing.assert_array_equal(images[0], first)


def test_pixels_by_hand():
    original = np.array([2.0, -1.0]).reshape(1, 1, 1, 2)
    predicted = np.array([0.0, -4.0]).reshape(1, 1, 1, 2)  # beyond the scale, which is 2
    image = kernel_images.kernel_image(original, predicted, magnify=1)
    red, half_blue, white, blue = [255, 0, 0], [128, 128, 255], [255] * 3, [0, 0, 255]
    gap, black = [204] * 3, [0] * 3
    np.testing.assert_array_equal(image, [[red, gap, half_blue, black, white, gap, blue]])
    twice = kernel_images.kernel_image(original, predicted, magnify=2)
    np.testing.assert_array_equal(twice, image.repeat(2, axis=0).repeat(2, axis=1))
