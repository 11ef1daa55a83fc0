"""Which events callbacks receive during a fit of two phases, and how a killed fit continues.

Callbacks receive one `on_train_begin` and one `on_train_end` per fit:

    on_train_begin
        on_train_batch_begin, on_train_batch_end         every step of the reconstruction
        on_epoch_begin ... batches ... on_epoch_end      every epoch of the distillation
    on_train_end

The reconstruction comes before the first epoch, because its loss is another sum than that of the
distillation: a callback that monitors epochs compares like with like.

`keras.callbacks.BackupAndRestore` restores the weights of a killed fit but not the place in the
data. A restored fit therefore reads its data from the start, skips as many batches as the weights
have seen, and trains on the rest. Callbacks receive no events for what is skipped. Skipping costs
what reading the batches costs.

`keras.Model._initial_epoch`, to which `BackupAndRestore` writes the epoch it restores, is private
to Keras (tried on Keras 3.15); it is used in `FitCallbacks.begin` only.
"""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_nern.training.evaluation import INCREASING, METRICS

CHECK_EVERY = 50  # steps between looks for losses that are not finite


class EpochHistory(keras.callbacks.History):
    """A `keras.callbacks.History` that also records the epoch of each value.

    Attributes:
        places: dict from the names in `history` to lists of epochs, counted from 1.
        reconstruction: the `history` of the phase before the epochs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[int]] = {}
        self.reconstruction: dict[str, list] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        for name in logs or {}:
            self.places.setdefault(name, []).append(epoch + 1)


class FitCallbacks(keras.callbacks.CallbackList):
    """The user's callbacks, through both phases of a fit.

    Args:
        callbacks: what `fit` takes: `None`, a callback, a list or a `CallbackList`.
        model: the model that is fitted.
        **params: as for `keras.callbacks.CallbackList`: `verbose`, `epochs`, `steps`.
    """

    def __init__(self, callbacks: Any, model: keras.Model, **params: Any) -> None:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        callbacks = keras.tree.flatten(callbacks or [])
        for callback in callbacks:
            _set_direction(callback)
        self.history = EpochHistory()
        stops = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks)
        self.finite_check = FiniteCheck(raises=not stops)
        super().__init__(
            [*callbacks, self.finite_check, self.history],
            add_progbar=params["verbose"] != 0,
            model=model,
            **params,
        )
        self._batches_to_skip = 0
        self._skipped_last = False
        self._pending_epoch: int | None = None  # whose first batch to train on has not come yet
        self._restored_epoch = 0
        self._logs: dict | None = None

    @property
    def can_restore(self) -> bool:
        """Whether one of the callbacks restores the weights of a killed fit."""
        return any(isinstance(c, keras.callbacks.BackupAndRestore) for c in self.callbacks)

    @property
    def is_skipping(self) -> bool:
        """Whether there are batches left to skip."""
        return self._batches_to_skip > 0

    def begin(self) -> None:
        """Announces the fit; a callback may restore the model or stop the training."""
        self.model.stop_training = False
        # Left at the epoch that BackupAndRestore restored, Keras would skip the data before it.
        self.model._initial_epoch = None
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                _remove_if_damaged(pathlib.Path(callback.backup_dir, "training_metadata.json"))
        super().on_train_begin()
        self._restored_epoch = self.model._initial_epoch or 0
        self.model._initial_epoch = None

    def end(self) -> None:
        """Announces the end of the fit."""
        super().on_train_end(self._logs)

    def skip(self, batches: int) -> None:
        """Has the next inner fit read this many batches before it trains."""
        self._batches_to_skip = batches

    def check_skipped(self, batches: int) -> None:
        """Raises a ValueError if the data ended before all batches were skipped."""
        if self._batches_to_skip:
            raise ValueError(
                f"x must give at least {batches} batches, on which the fit of the backup had "
                f"trained. Received: {batches - self._batches_to_skip} batches"
            )

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Of an inner fit of Keras; the user's callbacks receive it from `begin`."""
        if self._batches_to_skip:
            self.model.train_function = self._skip_then(self.model.train_function)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Of an inner fit of Keras; the user's callbacks receive it from `end`."""
        self._logs = logs

    def _skip_then(self, train: Callable) -> Callable:
        def skip(iterator: Any) -> dict:
            for done in range(min(self.model.steps_per_execution, self._batches_to_skip)):
                try:
                    next(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if not done:
                        raise StopIteration from None
                    break  # the last batches of an epoch, fewer than one execution takes
                self._batches_to_skip -= 1
            if not self._batches_to_skip:
                self.model.train_function = train
            return {}

        return skip

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._batches_to_skip:
            self._pending_epoch = epoch
        else:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._pending_epoch is None:
            super().on_epoch_end(epoch, logs)
        self._pending_epoch = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._skipped_last = self.is_skipping
        if self._skipped_last:
            return
        if self._pending_epoch is not None:
            super().on_epoch_begin(self._pending_epoch)
            self._pending_epoch = None
        super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not self._skipped_last:
            super().on_train_batch_end(batch, logs)

    def validation_epochs(self, frequency: int | Iterable[int], epochs: int) -> int | Iterable[int]:
        """Keras's `validation_freq` without the epochs that ended before the restart."""
        if not self._restored_epoch:
            return frequency
        if isinstance(frequency, int):
            frequency = range(frequency, epochs + 1, frequency)
        return [epoch for epoch in frequency if epoch > self._restored_epoch]


class FiniteCheck(keras.callbacks.Callback):
    """Ends a fit whose loss is not finite, with the predictor's weights of some steps before.

    It looks at every `CHECK_EVERY`-th step and at the end of epochs and phases, as each look waits
    for the steps to end. If the user's callbacks include `keras.callbacks.TerminateOnNaN`, the fit
    stops without an error.

    Args:
        raises: whether to raise an error.
    """

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self._raises = raises
        self._steps = 0
        self._weights: list = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.model._objective.failure(self.model.phase)  # of an earlier fit
        self._weights = self.model.predictor.get_weights()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self.check()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.check()

    def check(self) -> None:
        """Raises a ValueError if a loss was not finite."""
        model = self.model
        failure = model._objective.failure(model.phase)
        if failure is None:
            self._weights = model.predictor.get_weights()
            return
        model.predictor.set_weights(self._weights)
        model.stop_training = True
        if self._raises:
            step, cause = failure
            raise ValueError(
                f"Expected a fit whose losses are finite. Received: NaN or infinity in {cause} at "
                f"step {step + 1} of the {model.phase}. The predictor has its last finite weights; "
                "compile again before the next fit, with a lower learning rate unless the images "
                "are the cause"
            )


def _set_direction(callback: keras.callbacks.Callback) -> None:
    """Replaces `mode="auto"` if the callback monitors one of our metrics, unknown to Keras."""
    name = str(getattr(callback, "monitor", "")).removeprefix("val_")
    if getattr(callback, "mode", None) == "auto" and name in METRICS:
        callback.mode = "max" if name in INCREASING else "min"


def _remove_if_damaged(metadata: pathlib.Path) -> None:
    """Removes a file that `BackupAndRestore` was killed in writing and would fail to read.

    It holds a few bytes beside the weights, which are complete and all that a fit needs.
    """
    try:
        json.loads(metadata.read_text())["epoch"]
    except OSError:
        return  # there is no such file
    except (ValueError, KeyError, TypeError):
        metadata.unlink()


class ReconstructionCallbacks(keras.callbacks.Callback):
    """Passes the batches of the reconstruction, and nothing else, to a fit's callbacks.

    Args:
        callbacks: the `FitCallbacks`.
        steps_done: steps of the phase that an earlier fit did.
    """

    def __init__(self, callbacks: FitCallbacks, steps_done: int) -> None:
        super().__init__()
        own = (keras.callbacks.ProgbarLogger, keras.callbacks.History)  # Keras adds others
        self._callbacks = [c for c in callbacks.callbacks if not isinstance(c, own)]
        self._steps_done = steps_done
        self.async_safe = not self._callbacks  # otherwise Keras would not wait for steps to end

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_begin(batch + self._steps_done, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_end(batch + self._steps_done, logs)
