"""Samplings, which choose the kernels that get gradients in a step.

The cost of a step grows with the number of coordinates that it predicts, so a step takes a batch
of kernels, drawn with replacement:

* all: every kernel, no draw;
* uniform: each kernel with the same probability 1 / N;
* magnitude-weighted: in a share s of the steps, kernel i with probability |w_i| / sum_j |w_j|,
  which lowers the error of the largest kernels first; uniform in the other steps
  (Ashkenazi et al., ICLR 2023, section 3.3 and appendix).

Local predictors compute equally many kernels of each run at once, so these samplings then draw the
same number from every run, and each kernel of a short run more often. Uniform draws are spread
evenly over a run, which lowers the variance of the gradient. A sampling of your own without the
parameter `runs` works, but each step then computes all kernels.
"""

from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.utils import checks
from keras_nern.utils.backend import register
from keras_nern.utils.types import Tensor


@register
class AllKernels:
    """Takes every kernel in every step.

    Example:

    >>> AllKernels().sample(3, seed=keras.random.SeedGenerator(0))

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    by_magnitude = False  # whether `sample` needs `cumulative`

    def sample(
        self,
        count: int,
        seed: keras.random.SeedGenerator,
        cumulative: Tensor | None = None,
        runs: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Returns `None`, which stands for all kernels."""
        return None

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


@register
class UniformSampling(AllKernels):
    """Draws a batch of equally likely kernels; takes all kernels if they fit the batch.

    Args:
        batch_size: kernels per step, at least 1. Defaults to `4096`.

    Raises:
        ValueError: if `batch_size` is not an integer of at least 1.

    Example:

    >>> sampling = UniformSampling(batch_size=2)
    >>> sampling.sample(3, keras.random.SeedGenerator(0)).shape
    TensorShape([2])

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    def __init__(self, batch_size: int = 4096) -> None:
        self.batch_size = checks.integer("batch_size", batch_size, minimum=1)

    def sample(
        self,
        count: int,
        seed: keras.random.SeedGenerator,
        cumulative: Tensor | None = None,
        runs: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Draws a batch.

        Args:
            count: number of kernels, or of slots of all runs.
            seed: a `keras.random.SeedGenerator`.
            cumulative: not used. Defaults to `None`.
            runs: `None`, or the number of kernels of each run. Every run then has
                `count / len(runs)` slots, of which the first hold its kernels. Defaults to `None`.

        Returns:
            int32 indices `(batch_size,)`, or `None` for all. With runs, `batch_size` is rounded up
            to a multiple of their number, and the indices are slots, sorted by run.
        """
        if count <= self.batch_size:
            return None
        return self._uniform(count, seed, runs)

    def _uniform(
        self, count: int, seed: keras.random.SeedGenerator, runs: Sequence[int] | None
    ) -> Tensor:
        if runs is None:
            return keras.random.randint((self.batch_size,), 0, count, seed=seed)
        number, draws = len(runs), -(-self.batch_size // len(runs))
        lengths = np.asarray(runs, "int32")[:, None]
        # one draw in each of `draws` equal pieces of the run, which are shifted around at random
        pieces = keras.ops.arange(draws, dtype="float32")
        within = keras.random.uniform((number, draws), seed=seed)
        shift = keras.random.uniform((number, 1), seed=seed)
        places = (pieces + within) / draws + shift
        places = (places - keras.ops.floor(places)) * lengths.astype("float32")
        places = keras.ops.minimum(keras.ops.cast(places, "int32"), lengths - 1)
        starts = count // number * np.arange(number, dtype="int32")[:, None]
        return keras.ops.reshape(starts + places, (-1,))

    def get_config(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


@register
class MagnitudeSampling(UniformSampling):
    """Draws a batch of kernels, in a share of the steps in proportion to their norms.

    Args:
        batch_size: kernels per step, at least 1. Defaults to `4096`.
        share: share of the steps that draw by norm, 0 to 1. Defaults to `0.2`.

    Raises:
        ValueError: if `batch_size` is below 1 or `share` is not between 0 and 1.

    Example:

    >>> sampling = MagnitudeSampling(batch_size=2, share=1.0)
    >>> only_first = cumulative_magnitude(np.array([1.0, 0.0]))
    >>> sampling.sample(2, keras.random.SeedGenerator(0), only_first).numpy()
    array([0, 0], dtype=int32)

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554.
    """

    by_magnitude = True

    def __init__(self, batch_size: int = 4096, share: float = 0.2) -> None:
        super().__init__(batch_size)
        self.share = checks.share("share", share)

    def sample(
        self,
        count: int,
        seed: keras.random.SeedGenerator,
        cumulative: Tensor | None = None,
        runs: Sequence[int] | None = None,
    ) -> Tensor:
        """Draws a batch.

        Args:
            count: number of kernels, or of slots of all runs.
            seed: a `keras.random.SeedGenerator`.
            cumulative: float32 `(count,)`, as `cumulative_magnitude` returns, where slots without a
                kernel have the norm 0; required. Defaults to `None`, which raises an error.
            runs: as for `UniformSampling.sample`; with runs, probabilities are proportional to the
                norms within each run. Defaults to `None`.

        Returns:
            int32 indices `(batch_size,)`, see `UniformSampling.sample`.

        Raises:
            ValueError: if `cumulative` is `None`.
        """
        if cumulative is None:
            raise ValueError(
                "MagnitudeSampling needs cumulative, as cumulative_magnitude(norms) returns. "
                "Received: cumulative=None"
            )
        uniform = self._uniform(count, seed, runs)
        if runs is None:
            draws = keras.random.uniform((self.batch_size,), seed=seed)
            first, last = 0, count - 1
        else:
            length = count // len(runs)
            ends = keras.ops.pad(cumulative[length - 1 :: length], [[1, 0]])[:, None]
            draws = keras.random.uniform((len(runs), -(-self.batch_size // len(runs))), seed=seed)
            draws = keras.ops.reshape(ends[:-1] + draws * (ends[1:] - ends[:-1]), (-1,))
            run = uniform // length
            first = run * length
            last = first + keras.ops.take(np.asarray(runs, "int32"), run) - 1
        # side="right" skips kernels of norm 0, whose interval is empty; a draw that rounding puts
        # past the end goes to the last kernel.
        weighted = keras.ops.searchsorted(cumulative, draws, side="right")
        weighted = keras.ops.clip(keras.ops.cast(weighted, "int32"), first, last)
        by_norm = keras.random.uniform((), seed=seed) < self.share
        return keras.ops.where(by_norm, weighted, uniform)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "share": self.share}


def cumulative_magnitude(norms: ArrayLike) -> np.ndarray:
    """The distribution function from which `MagnitudeSampling` draws.

    Args:
        norms: array `(kernels,)`, |w_i|.

    Returns:
        float32 array `(kernels,)`: entry i is (|w_0| + ... + |w_i|) / sum_j |w_j|. If all norms
        are 0, all kernels are equally likely.
    """
    norms = np.asarray(norms, "float64")
    total = np.cumsum(norms if norms.any() else np.ones_like(norms))
    return (total / total[-1]).astype("float32")


_BY_NAME = {"all": AllKernels, "uniform": UniformSampling, "magnitude": MagnitudeSampling}


def get(identifier: Any, name: str = "sampling") -> Any:
    """Converts a name or a config to a sampling.

    Args:
        identifier: `"all"`, `"uniform"`, `"magnitude"`, a serialized sampling, or an object or
            class with the method `sample(count, seed, cumulative)`.
        name: the argument's name, for the error. Defaults to `"sampling"`.

    Returns:
        The sampling.

    Raises:
        ValueError: if `identifier` is none of these.
    """
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if hasattr(identifier, "sample"):
        return identifier() if isinstance(identifier, type) else identifier
    raise ValueError(
        f"{name} must be one of {sorted(_BY_NAME)} or have a method "
        f"sample(count, seed, cumulative). Received: {name}={identifier!r}"
    )
