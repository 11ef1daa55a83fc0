"""Kernels as images of pixels, without matplotlib.

Many kernels are drawn side by side in a *mosaic*: a float array with a square of pixels for each
weight, and NaN in the gaps between kernels, which are one pixel wide.
"""

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.utils import checks


def kernel_image(
    original: ArrayLike, predicted: ArrayLike, limit: int = 64, magnify: int = 8
) -> np.ndarray:
    """Draws a layer's original and predicted kernels into an RGB image.

    The image shows what `plots.plot_kernels` shows, without axes and titles.

    Args:
        original, predicted, limit: as for `plots.plot_kernels`.
        magnify: width and height of a weight in pixels. Defaults to `8`.

    Returns:
        uint8 array `(height, width, 3)`: the original kernels on the left, the predicted ones
        on the right, and a black bar between them.

    Raises:
        ValueError: if the shapes differ or are not those of a kernel.

    Example:

    >>> kernel_image(np.ones((3, 3, 1, 1)), np.zeros((3, 3, 1, 1)), magnify=1).shape
    (3, 7, 3)
    """
    mosaics, scale = largest_kernels(original, predicted, limit, magnify)
    parts = []
    for weights in mosaics:
        value = np.clip(weights / scale, -1, 1)[..., None]  # (height, width, 1)
        colors = 1 - np.abs(value) * np.where(value > 0, [0, 1, 1], [1, 1, 0])
        parts.append(np.nan_to_num(colors, nan=0.6))  # grey gaps, as zeros are white
    parts.insert(1, np.zeros((len(parts[0]), magnify, 3)))
    return np.rint(255 * np.concatenate(parts, axis=1)).astype("uint8")


def to_images(kernel: ArrayLike, name: str = "kernel") -> np.ndarray:
    """Converts a kernel `(..., cin, cout)` to images `(cout * cin, height, width)`.

    Images are ordered filter by filter. The slices of a 3-D kernel are stacked vertically.

    Raises:
        ValueError: if `kernel`, the argument `name` of the user, is something else.
    """
    is_array = hasattr(kernel, "shape") or isinstance(kernel, (list, tuple))
    values = np.asarray(keras.ops.convert_to_numpy(kernel) if is_array else None)
    if not 2 <= values.ndim <= 5 or values.dtype.kind in "OSUc" or 0 in values.shape:
        raise ValueError(
            f"{name} must be a kernel of real numbers and of shape (..., cin, cout). "
            f"Received: {name} of type {type(kernel).__name__} and shape {np.shape(kernel)}"
        )
    *spatial, cin, cout = values.shape
    width = spatial[-1] if spatial else 1
    values = values.reshape(-1, width, cin, cout).transpose(3, 2, 0, 1)
    return values.reshape(cin * cout, -1, width)


def largest_kernels(
    original: ArrayLike, predicted: ArrayLike, limit: int, magnify: int
) -> tuple[list[np.ndarray], float]:
    """Draws the kernels of largest norm in the original.

    Returns:
        `(mosaics, scale)`: the original and the predicted kernels as mosaics, and the largest
        absolute weight of the original ones.
    """
    checks.integer("limit", limit, minimum=1)
    kernels = [to_images(original, "original"), to_images(predicted, "predicted")]
    if np.shape(original) != np.shape(predicted):
        raise ValueError(
            "original and predicted must be kernels of one shape (..., cin, cout). "
            f"Received: {np.shape(original)} and {np.shape(predicted)}"
        )
    largest = np.argsort(-np.linalg.norm(kernels[0], axis=(1, 2)))[:limit]
    scale = np.abs(kernels[0][largest]).max() or 1.0
    return [mosaic(one[largest], magnify) for one in kernels], scale


def mosaic(kernels: np.ndarray, magnify: int, columns: int | None = None) -> np.ndarray:
    """Arranges kernels `(n, kh, kw)` in rows, a weight as `magnify` by `magnify` pixels.

    Without `columns`, the mosaic is about as high as it is wide.
    """
    kernels = kernels.repeat(magnify, axis=1).repeat(magnify, axis=2)
    n, height, width = kernels.shape
    columns = columns or min(n, int(np.ceil(np.sqrt(n * (height + 1) / (width + 1)))))
    rows = -(-n // columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = kernel
    return grid
