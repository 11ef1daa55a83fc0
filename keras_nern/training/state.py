"""How a representation is saved, and what of it is refused when it is loaded.

A file holds the predictor, the base with its weights, and where a fit was: the phase, the
optimizer with its plan, and the state of the sampling, so that a loaded representation
goes on as the saved one would have. Weights say of which base they are, by a SHA-256 of its own,
and are taken for no other.
"""

import os
from typing import Any

import keras
import numpy as np

from keras_nern.permutations.orders import KINDS
from keras_nern.training.fit import RepresentationTrainer
from keras_nern.utils.files import atomic_write


class RepresentationSaver(RepresentationTrainer):
    """The saving half of `NeRNModel`, whose config is its own.

    `NeRNModel` sets `permutation`, and `_base_is_own` where its base comes from a file and has
    no weights yet.
    """

    permutation: str | None
    _base_is_own: bool

    def save(
        self,
        filepath: str | os.PathLike,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves as `keras.Model.save` does; a file that is there stays until all is written."""
        with atomic_write(filepath, overwrite and zipped in (None, True)) as path:
            super().save(path, overwrite=overwrite, zipped=zipped, **kwargs)

    def save_weights(
        self,
        filepath: str | os.PathLike,
        overwrite: bool = True,
        max_shard_size: float | None = None,
    ) -> None:
        """Saves as `keras.Model.save_weights` does; see `save`."""
        with atomic_write(filepath, overwrite and max_shard_size is None) as path:
            super().save_weights(path, overwrite=overwrite, max_shard_size=max_shard_size)

    def load_weights(self, filepath: str | os.PathLike, **kwargs: Any) -> None:
        """Loads weights as `keras.Model.load_weights` does, or leaves all as it was.

        Args:
            filepath: a file that `save_weights` or `save` wrote.
            **kwargs: as for `keras.Model.load_weights`.

        Raises:
            ValueError: where they belong to a representation of another base.
        """
        variables = [*self.variables, *self.base.variables, *self.optimizer.variables]
        variables.append(self._seed.state)
        before = [keras.ops.convert_to_numpy(variable) for variable in variables]
        progress = self.phase, self.reconstruction_finished, self._base_is_own
        schedule = self._runtime.schedule
        plan = schedule.get_config() if schedule else {}
        try:
            super().load_weights(filepath, **kwargs)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            self.phase, self.reconstruction_finished, self._base_is_own = progress
            if schedule:
                schedule.plan(**plan)
            raise

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["sampling_seed"] = self._seed.state.numpy()
        store["permutation"] = np.array(KINDS.index(self.permutation))
        store["phase"] = np.array([self.phase == "distillation", self.reconstruction_finished])
        if self._runtime.schedule:
            plan = self._runtime.schedule.get_config()
            store["plan"] = np.array([plan["initial_learning_rate"], plan["decay_steps"]])
        store["base_digest"] = self._original.digest()

    def load_own_variables(self, store: Any) -> None:
        digest = np.asarray(store["base_digest"])
        if not self._base_is_own and not np.array_equal(digest, self._original.digest()):
            raise ValueError(
                "Expected weights of a representation of this base. Received: those of one with "
                f"other weights than {self.base.name!r} has (their SHA-256 differ)."
            )
        kind = KINDS[int(np.asarray(store["permutation"]))]
        if kind != self.permutation:
            raise ValueError(
                f"Expected weights with permutation={self.permutation!r}. Received: {kind!r}"
            )
        self._seed.state.assign(np.asarray(store["sampling_seed"]))
        keys = set(store.keys())
        distils, finished = np.asarray(store["phase"])
        self.phase = "distillation" if distils else "reconstruction"
        self.reconstruction_finished = bool(finished)
        if self._runtime.schedule and "plan" in keys:
            rate, steps = np.asarray(store["plan"]).tolist()
            self._runtime.schedule.plan(rate, int(steps))
        weights = keys - {"sampling_seed", "base_digest", "phase", "plan", "permutation"}
        super().load_own_variables({key: store[key] for key in weights})
        self._base_is_own = False  # its weights come next, and are then the ones to keep
