"""Noise images for training without data.

Distillation compares the original and the rebuilt network on the same inputs, which need not be
photographs (Ashkenazi et al., ICLR 2023, on data-free training). There are three kinds of noise:

* uniform: values between two limits;
* gaussian: values of a given mean and standard deviation;
* batch_norm: Gaussian values with the statistics of the network's training images. The first
  batch normalization stores mean and variance of its inputs. The layers before it, usually a
  convolution and fixed scalings, are affine. The means m and covariances S of the input channels
  that lead to these statistics therefore satisfy

      mean_j     = a_j + sum_c A_jc m_c,
      variance_j = sum_cc' B_jcc' S_cc',

  where a, A and B are measured with constant and random images. Least squares on the first
  equation give m, least squares on the logarithms of the second give S. B depends on the
  correlation of neighboring pixels, so the noise has a spectrum 1 / f^e, whose exponent e (0 for
  white noise) is the one with the best fit.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.network.kernels import check_built, walk_layers
from keras_nern.network.recording import first_normalization
from keras_nern.utils import checks

KINDS = ("uniform", "gaussian", "batch_norm")

# Exponents tried for "batch_norm"; photographs have about 1.
EXPONENTS = np.arange(0.0, 2.51, 0.25)

# Pixels of the random images by which B is measured, in total and per batch.
PROBED_PIXELS = 2**18
PIXELS_AT_ONCE = 2**16


class NoiseDataset(keras.utils.PyDataset):
    """Batches of noise images in a network's input shape.

    Every epoch has different images.

    Args:
        base: the classifier; its input shape and statistics are used.
        kind: `"uniform"`, `"gaussian"` or `"batch_norm"`. Defaults to `"batch_norm"`.
        batch_size: images per batch. Defaults to `64`.
        steps: batches per epoch. Defaults to `100`.
        limits: lowest and highest value of the uniform kind, in units of the base's input.
            Defaults to `(0.0, 1.0)`.
        mean, stddev: mean and standard deviation of the gaussian kind, in the same units: a
            number or one per channel. Default to `0.0` and `1.0`.
        image_size: `(height, width)`, required if the base accepts images of any size and
            ignored otherwise. Defaults to `None`.
        seed: seed of the images. The dataset counts the epochs, so create a new one to train on
            the same images again. Defaults to `0`.
        **kwargs: arguments of `keras.utils.PyDataset` (`workers`, ...).

    Attributes:
        mean: m, float64 `(channels,)`, of the Gaussian kinds.
        mixing: float64 `(channels, channels)`, a matrix L with L L^T = S, of the Gaussian kinds.
        exponent: e, the exponent of the spectrum.

    Raises:
        ValueError: if `kind` is unknown, a size is not an integer of at least 1, `stddev` is
            negative, `limits` are in the wrong order, `image_size` is missing, the base has
            other inputs than images with the channels last, or, for `"batch_norm"`, the base has
            no batch normalization or the first one stores no variances above 0.

    Example:

    >>> noise = keras_nern.NoiseDataset(base, steps=200)
    >>> history = nern.fit(noise, epochs=5)

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    def __init__(
        self,
        base: keras.Model,
        kind: str = "batch_norm",
        batch_size: int = 64,
        steps: int = 100,
        limits: tuple[float, float] = (0.0, 1.0),
        mean: ArrayLike = 0.0,
        stddev: ArrayLike = 1.0,
        image_size: tuple[int, int] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.one_of("kind", kind, KINDS)
        batch_size = checks.integer("batch_size", batch_size, minimum=1)
        steps = checks.integer("steps", steps, minimum=1)
        bounds = checks.reals("limits", limits)
        if bounds.shape != (2,) or bounds[0] > bounds[1]:
            raise ValueError(
                f"limits must be (lowest, highest) values. Received: limits={limits!r}"
            )
        if (checks.reals("stddev", stddev) < 0).any():
            raise ValueError(f"stddev must not be negative. Received: stddev={stddev!r}")
        seed = checks.integer("seed", seed, minimum=0)
        self.image_shape = _image_shape(base, image_size)
        self.kind = kind
        self.batch_size = batch_size
        self.steps = steps
        self.limits = limits
        self.seed = seed
        self.exponent = 0.0
        channels = self.image_shape[-1]
        self.mean = _per_channel("mean", mean, channels)
        self.mixing = np.diag(_per_channel("stddev", stddev, channels))
        if kind == "batch_norm":
            self.mean, self.mixing, self.exponent = match_statistics(base, self.image_shape)
        self._epoch = 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns batch `index`: float32 `(batch_size, height, width, channels)`."""
        rng = np.random.default_rng((self.seed, self._epoch, index))
        images = np.empty((self.batch_size, *self.image_shape), "float32")
        at_once = max(1, PIXELS_AT_ONCE // math.prod(self.image_shape[:2]))
        for start in range(0, self.batch_size, at_once):  # in float64, a few images at once
            part = images[start : start + at_once]
            if self.kind == "uniform":
                part[:] = rng.uniform(*self.limits, part.shape)
            else:
                part[:] = self.mean + colored_noise(rng, part.shape, self.exponent) @ self.mixing.T
        return images

    def on_epoch_end(self) -> None:
        self._epoch += 1


def colored_noise(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> np.ndarray:
    """Draws Gaussian noise of mean 0 and variance 1 with the amplitude spectrum 1 / f^exponent.

    Args:
        rng: a `numpy.random.Generator`.
        shape: `(batch, height, width, channels)`.
        exponent: exponent of the spectrum: 0 for white noise, about 1 for photographs (Field,
            "Relations between the statistics of natural images and the response properties of
            cortical cells", JOSA A 1987).

    Returns:
        float64 array of that shape. The variance is taken over all images; within a smooth
        image it is smaller.
    """
    noise = rng.normal(size=shape)
    if exponent == 0:
        return noise
    height, width = shape[1:3]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0 / max(height, width)  # an image's mean varies like its lowest frequency
    gain = frequency**-exponent
    # rfft2 omits mirrored columns, so that every column that has a mirror image counts twice
    times = np.full(gain.shape[1], 2.0)
    times[0] = 1.0
    if width % 2 == 0:
        times[-1] = 1.0
    gain /= np.sqrt(np.sum(gain**2 * times) / (height * width))
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * gain[None, :, :, None]
    return np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2))


def match_statistics(
    base: keras.Model, image_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits noise to the statistics that the first batch normalization stores.

    Args:
        base: a classifier with a batch normalization.
        image_shape: `(height, width, channels)`.

    Returns:
        `(mean, mixing, exponent)`: see the attributes of `NoiseDataset`.

    Raises:
        ValueError: if the base has no batch normalization, or if the first one stores no
            variances above 0.
    """
    layer, probe = first_normalization(base, np.zeros((1, *image_shape), "float32"))
    target_mean = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), "float64")
    target_variance = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), "float64")

    def responses(images: np.ndarray) -> np.ndarray:
        """The inputs of the batch normalization, float32 (images, positions, filters)."""
        inputs = keras.ops.convert_to_numpy(probe(images.astype("float32")))
        return inputs.astype("float32").reshape(len(images), -1, len(target_mean))

    channels = image_shape[-1]
    offset, *rest = [
        responses(np.broadcast_to(color, (1, *image_shape))).mean(axis=(0, 1), dtype="float64")
        for color in (np.zeros(channels), *np.eye(channels))
    ]
    slopes = np.stack(rest, axis=1) - offset[:, None]  # (filters, channels)
    # divided by the standard deviation, so that all filters have equal weight
    unit = np.sqrt(target_variance) + 1e-12
    mean, *_ = np.linalg.lstsq(slopes / unit[:, None], (target_mean - offset) / unit, rcond=None)

    fits = []
    for exponent in EXPONENTS:
        gains = _gains(responses, mean, image_shape, exponent)
        fits.append((*_fit_covariance(gains, target_variance), exponent))
    _, mixing, exponent = min(fits, key=lambda fit: fit[0])
    return mean, mixing, float(exponent)


def _gains(
    responses: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray,
    image_shape: tuple[int, ...],
    exponent: float,
) -> np.ndarray:
    """Measures B, float64 `(filters, channels, channels)`, for a spectrum.

    The noise is added to a constant image and the response to that image subtracted, which
    removes the effect of padding at the border.
    """
    rng = np.random.default_rng(0)
    *size, channels = image_shape
    pixels = math.prod(size) * math.ceil(channels / 3)  # each channel is probed by itself
    batch = max(1, PIXELS_AT_ONCE // pixels)
    batches = max(1, PROBED_PIXELS // pixels // batch)
    at_once = max(1, PIXELS_AT_ONCE // math.prod(size) // batch)  # channels
    units = np.eye(channels)[:, None, None, None]  # (channels, 1, 1, 1, channels)
    constant = responses(np.broadcast_to(mean, (1, *image_shape)))
    gains = np.zeros((constant.shape[-1], channels, channels))
    for _ in range(batches):
        noise = colored_noise(rng, (batch, *size, 1), exponent)
        parts = []
        for start in range(0, channels, at_once):
            images = mean + noise * units[start : start + at_once]
            change = responses(images.reshape(-1, *image_shape))
            change -= constant
            parts.append(change.reshape(len(images), -1, change.shape[-1]))
        changes = np.concatenate(parts)  # float32 (channels, positions, filters)
        for filter_gains, change in zip(gains, np.moveaxis(changes, 2, 0), strict=True):
            change = change.astype("float64")
            filter_gains += change @ change.T / change.shape[1] / batches
    return gains


def _fit_covariance(
    gains: np.ndarray, target: np.ndarray, steps: int = 100
) -> tuple[float, np.ndarray]:
    """Solves log tr(B_j L L^T) = log target_j for L by least squares.

    The method is Gauss-Newton on the entries of L, with Levenberg's damping (Levenberg, 1944).

    Args:
        gains: B, `(filters, channels, channels)`.
        target: `(filters,)`.
        steps: number of steps. Defaults to `100`.

    Returns:
        `(error, L)`: the mean squared error of the logarithms, and L `(channels, channels)`.
    """
    alive = (target > 0) & (np.trace(gains, axis1=1, axis2=2) > 0)
    if not alive.any():
        raise ValueError(
            "The base's first batch normalization must store variances above 0, of inputs that "
            f"depend on the images. Received: none among {len(target)} filters"
        )
    gains, target = gains[alive], target[alive]

    def residuals(root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The errors of the logarithms `(filters,)`, and their slopes by the entries of L."""
        products = gains @ root  # (filters, channels, channels)
        variances = np.einsum("jce,ce->j", products, root)
        slopes = 2 * products / variances[:, None, None]
        return np.log(np.maximum(variances, 1e-30) / target), slopes.reshape(len(target), -1)

    channels = gains.shape[1]
    # Start with independent channels, because filters of color differences respond to them.
    root = np.eye(channels) * np.sqrt(np.median(target / np.trace(gains, axis1=1, axis2=2)))
    error, slopes = residuals(root)
    damping = 1e-2
    for _ in range(steps):
        # (S^T S + D)^-1 S^T = D^-1 S^T (S D^-1 S^T + I)^-1, with a system of filters, not entries
        scaled = slopes / (damping * (np.sum(slopes**2, axis=0) + 1e-12))
        step = scaled.T @ np.linalg.solve(slopes @ scaled.T + np.eye(len(slopes)), error)
        trial = root - step.reshape(root.shape)
        trial_error, trial_slopes = residuals(trial)
        if np.sum(trial_error**2) < np.sum(error**2):
            root, error, slopes, damping = trial, trial_error, trial_slopes, damping / 3
        else:
            damping *= 4
    return float(np.mean(error**2)), root


def _per_channel(name: str, value: ArrayLike, channels: int) -> np.ndarray:
    value = checks.reals(name, value)
    if value.shape not in ((), (channels,)):
        raise ValueError(
            f"{name} must be a number, or an array of one for each of {channels} channels. "
            f"Received: {name} of shape {value.shape}"
        )
    return np.broadcast_to(value, (channels,))


def _image_shape(base: keras.Model, image_size: tuple[int, int] | None) -> tuple[int, ...]:
    check_built("base", base)
    inputs = getattr(base, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(
            "NoiseDataset needs a functional or Sequential base with one input of images (height, "
            f"width, channels). Received: {base.name!r} with inputs of shapes "
            f"{[tuple(one.shape) for one in inputs]}"
        )
    first = [x for _, x in walk_layers(base) if getattr(x, "data_format", None) == "channels_first"]
    if first:
        raise ValueError(
            "NoiseDataset needs a base that takes images with the channels last. Received: "
            f"{base.name!r}, whose layer {first[0].name!r} has data_format='channels_first'"
        )
    *size, channels = inputs[0].shape[1:]
    if image_size is not None:
        checks.instance("image_size", image_size, (list, tuple), "(height, width)")
        for side in image_size:
            checks.integer("image_size", side, minimum=1)
    if image_size is not None or None in size:
        if image_size is None or len(image_size) != len(size):
            raise ValueError(
                "image_size must be (height, width), and is required for a base that takes images "
                f"of any size. Received: image_size={image_size!r}, with an input of "
                f"{base.inputs[0].shape}"
            )
        size = [fixed or chosen for fixed, chosen in zip(size, image_size, strict=True)]
    return (*size, channels)
