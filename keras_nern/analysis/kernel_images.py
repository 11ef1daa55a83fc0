"""Kernels as pictures of pixels: many small grids of weights, side by side, without matplotlib.

A mosaic is a float array with a weight for each pixel and NaN in the gaps between kernels.
"""

import keras
import numpy as np
from numpy.typing import ArrayLike


def kernel_image(
    original: ArrayLike, predicted: ArrayLike, limit: int = 64, magnify: int = 8
) -> np.ndarray:
    """The picture that `plots.plot_kernels` draws as pixels alone, without matplotlib.

    Args:
        original, predicted, limit: as for `plots.plot_kernels`.
        magnify: pixels along the side of a weight. Defaults to `8`.

    Returns:
        uint8 array `(height, width, 3)`: the original's kernels to the left of the
        predicted ones, with black between them.

    Raises:
        ValueError: as `plots.plot_kernels` does.

    Example:

    >>> kernel_image(np.ones((3, 3, 1, 1)), np.zeros((3, 3, 1, 1)), magnify=1).shape
    (3, 7, 3)
    """
    grids, scale = largest_kernels(original, predicted, limit)
    parts = []
    for grid in grids:
        value = np.clip(grid / scale, -1, 1)[..., None]  # (height, width, 1)
        colours = 1 - np.abs(value) * np.where(value > 0, [0, 1, 1], [1, 1, 0])
        parts.append(np.nan_to_num(np.repeat(np.repeat(colours, magnify, 0), magnify, 1), nan=0.8))
    parts.insert(1, np.zeros((len(parts[0]), magnify, 3)))
    return np.rint(255 * np.concatenate(parts, axis=1)).astype("uint8")


def kernel_images(kernel: ArrayLike) -> np.ndarray:
    """A kernel `(..., cin, cout)` as images `(cout * cin, height, width)`, filter by filter."""
    values = np.asarray(keras.ops.convert_to_numpy(kernel))
    if not 2 <= values.ndim <= 5:
        raise ValueError(
            f"Expected a kernel of shape (..., cin, cout). Received: one of shape {values.shape}"
        )
    *spatial, cin, cout = values.shape
    width = spatial[-1] if spatial else 1
    values = values.reshape(-1, width, cin, cout).transpose(3, 2, 0, 1)
    return values.reshape(cin * cout, -1, width)


def largest_kernels(
    original: ArrayLike, predicted: ArrayLike, limit: int
) -> tuple[list[np.ndarray], float]:
    """The grids of the kernels of largest norm, original and predicted, and their scale."""
    if np.shape(original) != np.shape(predicted):
        raise ValueError(
            "Expected two kernels of one shape (..., cin, cout). "
            f"Received: {np.shape(original)} and {np.shape(predicted)}"
        )
    kernels = [kernel_images(one) for one in (original, predicted)]
    largest = np.argsort(-np.linalg.norm(kernels[0], axis=(1, 2)))[:limit]
    scale = np.abs(kernels[0][largest]).max() or 1.0
    return [mosaic(one[largest]) for one in kernels], scale


def mosaic(kernels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Kernels `(n, kh, kw)` as one image, with a gap of one pixel between them."""
    n, kh, kw = kernels.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    lines = int(np.ceil(n / columns))
    grid = np.full((lines * (kh + 1) - 1, columns * (kw + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (kh + 1), i % columns * (kw + 1)
        grid[top : top + kh, left : left + kw] = kernel
    return grid
