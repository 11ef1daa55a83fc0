"""The state that is saved with a representation's weights: its fit's progress and its base's hash.

A loaded representation continues its fit as the saved one would have. The state includes the
SHA-256 of the base's weights, so that weights load only into a representation of the same base.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.permutations.orders import KINDS
from keras_nern.training.settings import PHASES


@dataclasses.dataclass(frozen=True)
class FitState:
    """The state of a fit, as arrays to save.

    Attributes:
        phase: index in `PHASES`.
        reconstruction_finished: whether `finish_reconstruction` was called.
        permutation: index of the permutation's kind in `orders.KINDS`.
        sampling_seed: state of the sampling's seed generator.
        base_digest: SHA-256 of the base's weights, uint8 `(32,)`.
        plan: rate, steps and fixed rate of the default schedule `(3,)`, the last one NaN if there
            is none; empty if there is no default schedule.
    """

    phase: ArrayLike
    reconstruction_finished: ArrayLike
    permutation: ArrayLike
    sampling_seed: ArrayLike
    base_digest: ArrayLike
    plan: ArrayLike

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """Reads the state of a `NeRNModel`."""
        schedule = model._schedule
        plan = schedule.get_config() if schedule else {}
        return cls(
            phase=PHASES.index(model.phase),
            reconstruction_finished=model.reconstruction_finished,
            permutation=KINDS.index(model.permutation),
            sampling_seed=keras.ops.convert_to_numpy(model._seed.state),
            base_digest=model._original.digest(),
            plan=np.array(list(plan.values()), "float64"),  # None becomes NaN
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """A dict from the names of the attributes to arrays."""
        return {field: np.asarray(getattr(self, field)) for field in FIELDS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The inverse of `to_arrays`; other entries are ignored."""
        return cls(**{field: np.asarray(arrays[field]) for field in FIELDS})

    def restore(self, model: keras.Model) -> None:
        """Sets the state of a `NeRNModel`.

        Raises:
            ValueError: if the state belongs to another base or another kind of permutation.
        """
        if not model._base_is_new and not np.array_equal(
            self.base_digest, model._original.digest()
        ):
            raise ValueError(
                "Expected weights of a representation of this base. Received: weights for another "
                f"base, whose weights differ from those of {model.base.name!r} (by SHA-256)."
            )
        kind = KINDS[int(np.asarray(self.permutation))]
        if kind != model.permutation:
            raise ValueError(
                f"Expected weights with permutation={model.permutation!r}. Received: {kind!r}"
            )
        model._seed.state.assign(self.sampling_seed)
        model.phase = PHASES[int(np.asarray(self.phase))]
        model.reconstruction_finished = bool(self.reconstruction_finished)
        if model._schedule and np.size(self.plan):
            rate, steps, fixed = np.asarray(self.plan).tolist()
            model._schedule.plan(rate, int(steps))
            model._schedule.fix(None if math.isnan(fixed) else fixed)


FIELDS = tuple(field.name for field in dataclasses.fields(FitState))
