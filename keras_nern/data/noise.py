"""Noise in place of images, for a network whose data are not at hand.

Distillation asks original and rebuilt network the same questions; the questions need not
be photographs (Ashkenazi et al., ICLR 2023, on data-free training). Noise comes in three
kinds:

* uniform, each value between two limits;
* gaussian, each value of a mean and a standard deviation;
* batch_norm: Gaussian with the statistics that the network itself remembers. Its first
  batch normalisation holds mean and variance of what the training images brought it.
  Before it lie as a rule a convolution and fixed scalings, all affine, so the means m
  and covariances S of the input channels that would bring it the same follow from

      mean_j     = a_j + sum_c A_jc m_c,
      variance_j = sum_cc' B_jcc' S_cc',

  where a, A and B are read off the network's answers to constant and to random images;
  m solves the first by least squares, and S those of the logarithms of the second.
  Neighbouring pixels of an image are alike, and B depends on how much, so the noise has
  a spectrum 1 / f^e whose exponent e, 0 for white noise, is the one that fits best.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.network.kernels import walk_layers
from keras_nern.network.recording import first_normalisation
from keras_nern.utils import checks

KINDS = ("uniform", "gaussian", "batch_norm")

# Spectra tried for "batch_norm": from white noise to what is smoother than photographs.
EXPONENTS = np.arange(0.0, 2.51, 0.25)

# Pixels of random images from which a spectrum's answers are read, in batches of so many.
PROBED_PIXELS = 2**18
PIXELS_AT_ONCE = 2**16


class NoiseDataset(keras.utils.PyDataset):
    """An epoch of noise images that a network takes, other ones in every epoch.

    Args:
        base: the classifier, for its input shape and its statistics.
        kind: `"uniform"`, `"gaussian"` or `"batch_norm"`. Defaults to `"batch_norm"`.
        batch_size: images per batch. Defaults to `64`.
        steps: batches per epoch. Defaults to `100`.
        limits: lowest and highest value of the uniform kind, in units of the base's
            input. Defaults to `(0.0, 1.0)`.
        mean, stddev: of the gaussian kind, in the same units, numbers or one per
            channel. Default to `0.0` and `1.0`.
        image_size: `(height, width)` where the base takes any; not used otherwise.
            Defaults to `None`.
        seed: fixes the images of each epoch. The epochs are counted by the object,
            so a fit that is to see the same images again needs a new one. Defaults to
            `0`.
        **kwargs: `keras.utils.PyDataset` arguments (`workers`, ...).

    Attributes:
        mean: m, float64 `(channels,)`, of the Gaussian kinds.
        mixing: float64 `(channels, channels)`, a root of their covariance S.
        exponent: e, of their spectrum.

    Raises:
        ValueError: for an unknown kind, a size that the base leaves open, sizes below
            1 or no integers, a negative deviation, limits in the wrong order, a base with
            other inputs than images with the channels last, or `"batch_norm"` with one
            that has no batch normalisation, or remembers no variances in the first.

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
        batch_size = checks.integer("batch_size", batch_size, least=1)
        steps = checks.integer("steps", steps, least=1)
        if not limits[0] <= limits[1]:
            raise ValueError(f"limits must be (lowest, highest). Received: limits={limits!r}")
        if not np.all(np.asarray(stddev) >= 0):
            raise ValueError(f"stddev must not be negative. Received: stddev={stddev!r}")
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
        shape = (self.batch_size, *self.image_shape)
        if self.kind == "uniform":
            return rng.uniform(*self.limits, shape).astype("float32")
        noise = coloured_noise(rng, shape, self.exponent)
        return (self.mean + noise @ self.mixing.T).astype("float32")

    def on_epoch_end(self) -> None:
        self._epoch += 1


def coloured_noise(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> np.ndarray:
    """Gaussian noise of mean 0 and variance 1 with the amplitude spectrum 1 / f^exponent.

    Args:
        rng: a `numpy.random.Generator`.
        shape: `(batch, height, width, channels)`.
        exponent: 0 for white noise; photographs have about 1 (Field, "Relations
            between the statistics of natural images and the response properties of
            cortical cells", JOSA A 1987).

    Returns:
        float64 array of that shape; its variance is that over all images, of which a
        smooth one has less within it.
    """
    noise = rng.normal(size=shape)
    if exponent == 0:
        return noise
    height, width = shape[1:3]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0 / max(height, width)  # the mean of an image varies as its slowest wave
    gain = frequency**-exponent
    # rfft2 leaves out the columns that mirror others: count those twice
    twice = np.full(gain.shape[1], 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    gain /= np.sqrt(np.sum(gain**2 * twice) / (height * width))
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * gain[None, :, :, None]
    return np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2))


def match_statistics(
    base: keras.Model, image_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Finds the noise whose answers the first batch normalisation takes for images'.

    Args:
        base: a classifier with a batch normalisation.
        image_shape: `(height, width, channels)`.

    Returns:
        `(mean, mixing, exponent)`: see `NoiseDataset`.

    Raises:
        ValueError: where there is no batch normalisation.
    """
    layer, probe = first_normalisation(base, np.zeros((1, *image_shape), "float32"))
    wanted_mean = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), "float64")
    wanted_variance = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), "float64")

    def answers(images: np.ndarray) -> np.ndarray:
        seen = keras.ops.convert_to_numpy(probe(images.astype("float32")))
        return seen.astype("float64").reshape(-1, len(wanted_mean))

    channels = image_shape[-1]
    offset, *rest = [
        answers(np.broadcast_to(colour, (1, *image_shape))).mean(axis=0)
        for colour in (np.zeros(channels), *np.eye(channels))
    ]
    slopes = np.stack(rest, axis=1) - offset[:, None]  # (filters, channels)
    # in units of the standard deviation, so that no filter counts for its size
    unit = np.sqrt(wanted_variance) + 1e-12
    mean, *_ = np.linalg.lstsq(slopes / unit[:, None], (wanted_mean - offset) / unit, rcond=None)

    fits = []
    for exponent in EXPONENTS:
        gains = _gains(answers, mean, image_shape, exponent)
        fits.append((*_fit_covariance(gains, wanted_variance), exponent))
    _, mixing, exponent = min(fits, key=lambda fit: fit[0])
    return mean, mixing, float(exponent)


def _gains(
    answers: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray,
    image_shape: tuple[int, ...],
    exponent: float,
) -> np.ndarray:
    """B: what noise of variance 1 in the channels brings the filters.

    It is measured as a change of a grey image, whose own border is no part of it.

    Returns:
        float64 array `(filters, channels, channels)`.
    """
    rng = np.random.default_rng(0)
    *size, channels = image_shape
    batch = max(1, PIXELS_AT_ONCE // math.prod(size))
    batches = max(1, PROBED_PIXELS // math.prod(size) // batch)
    grey = answers(np.broadcast_to(mean, (batch, *image_shape)))
    gains = np.zeros((grey.shape[-1], channels, channels))
    for _ in range(batches):
        noise = coloured_noise(rng, (batch, *size, 1), exponent)
        changed = [answers(mean + noise * one) for one in np.eye(channels)]
        seen = np.stack(changed, axis=-1) - grey[..., None]  # (positions, filters, channels)
        gains = gains + np.einsum("pjc,pjd->jcd", seen, seen) / len(seen) / batches
    return gains


def _fit_covariance(
    gains: np.ndarray, wanted: np.ndarray, steps: int = 100
) -> tuple[float, np.ndarray]:
    """Finds L with log tr(B_j L L^T) = log wanted_j in the sense of least squares.

    By Gauss-Newton with Levenberg's damping (Levenberg, 1944) on the entries of L.

    Args:
        gains: B, `(filters, channels, channels)`.
        wanted: `(filters,)`.

    Returns:
        `(error, L)`: the mean squared error of the logarithms, and `(channels, channels)`.
    """
    alive = (wanted > 0) & (np.trace(gains, axis1=1, axis2=2) > 0)
    if not alive.any():
        raise ValueError(
            "Expected a first batch normalisation that remembers variances above 0 of inputs that "
            f"follow the images. Received: none among {len(wanted)} filters"
        )
    gains, wanted = gains[alive], wanted[alive]

    def residuals(root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variances = np.einsum("jcd,ce,de->j", gains, root, root)
        return np.log(np.maximum(variances, 1e-30) / wanted), variances

    channels = gains.shape[1]
    # Where all channels vary alike, filters that compare them would see nothing.
    root = np.eye(channels) * np.sqrt(np.median(wanted / np.trace(gains, axis1=1, axis2=2)))
    error, variances = residuals(root)
    damping = 1e-2
    for _ in range(steps):
        slopes = 2 * np.einsum("jcd,de->jce", gains, root) / variances[:, None, None]
        slopes = slopes.reshape(len(wanted), -1)
        normal = slopes.T @ slopes
        normal += damping * (np.diag(np.diag(normal)) + 1e-12 * np.eye(len(normal)))
        step = np.linalg.lstsq(normal, slopes.T @ error, rcond=None)[0].reshape(root.shape)
        trial = root - step
        trial_error, trial_variances = residuals(trial)
        if np.sum(trial_error**2) < np.sum(error**2):
            root, error, variances, damping = trial, trial_error, trial_variances, damping / 3
        else:
            damping *= 4
    return float(np.mean(error**2)), root


def _per_channel(name: str, value: ArrayLike, channels: int) -> np.ndarray:
    value = np.asarray(value, "float64")
    if value.shape not in ((), (channels,)):
        raise ValueError(
            f"{name} must be a number or one for each of {channels} channels. "
            f"Received: {name} of shape {value.shape}"
        )
    return np.broadcast_to(value, (channels,))


def _image_shape(base: keras.Model, image_size: tuple[int, int] | None) -> tuple[int, ...]:
    inputs = getattr(base, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(
            "NoiseDataset makes images (height, width, channels) for a functional or Sequential "
            f"base with one input. Received: {base.name!r} with inputs of shapes "
            f"{[tuple(one.shape) for one in inputs]}"
        )
    first = [x for _, x in walk_layers(base) if getattr(x, "data_format", None) == "channels_first"]
    if first:
        raise ValueError(
            "NoiseDataset makes images with the channels last. Received: "
            f"{base.name!r}, whose {first[0].name!r} has data_format='channels_first'"
        )
    *size, channels = inputs[0].shape[1:]
    given = list(image_size or ())
    if not all(side >= 1 for side in given):
        raise ValueError(f"image_size must be at least (1, 1). Received: image_size={image_size!r}")
    if None in size:
        if len(given) != len(size):
            raise ValueError(
                "Expected image_size=(height, width) for a base that takes images of any size. "
                f"Received: image_size={image_size!r}, with an input of {base.inputs[0].shape}"
            )
        size = [known or asked for known, asked in zip(size, given, strict=True)]
    return (*size, channels)
