"""The events that callbacks receive during a two-phase fit, and the restart of a killed fit.

Callbacks receive one `on_train_begin` and one `on_train_end` per fit:

    on_train_begin
        on_train_batch_begin, on_train_batch_end         every step of the reconstruction
        on_epoch_begin ... batches ... on_epoch_end      every epoch of the distillation
    on_train_end

The reconstruction comes before the first epoch, because its loss is a different sum than that of
the distillation. Callbacks that monitor epochs therefore compare values of the same loss.

`keras.callbacks.BackupAndRestore` restores the weights of a killed fit but not the place in the
data. A restored fit therefore reads its data from the start, skips the batches that the weights
were trained on, and trains on the rest. Callbacks receive no events for skipped batches. Skipping
takes as long as reading the batches.

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

CHECK_EVERY = 50  # steps between checks that losses are finite


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
    """Calls the user's callbacks through both phases of a fit.

    Args:
        callbacks: `None`, a callback, a list of callbacks or a `CallbackList`, as for `fit`.
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
        self._pending_epoch: int | None = None  # begins with the first batch after those skipped
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
        """Calls `on_train_begin`, in which a callback may restore the model or stop training."""
        self.model.stop_training = False
        # BackupAndRestore sets it, and Keras would skip the epochs before it.
        self.model._initial_epoch = None
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                _remove_if_damaged(pathlib.Path(callback.backup_dir, "training_metadata.json"))
        super().on_train_begin()
        self._restored_epoch = self.model._initial_epoch or 0
        self.model._initial_epoch = None

    def end(self) -> None:
        """Calls `on_train_end`."""
        super().on_train_end(self._logs)

    def skip(self, batches: int) -> None:
        """Makes the next inner fit read this many batches before it trains."""
        self._batches_to_skip = batches

    def check_skipped(self, batches: int) -> None:
        """Raises a ValueError if the data ended before all batches were skipped."""
        if self._batches_to_skip:
            raise ValueError(
                f"x must give at least {batches} batches, as many as the restored fit had "
                f"trained on. Received: {batches - self._batches_to_skip} batches"
            )

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts an inner fit of Keras; `begin` has called the user's callbacks."""
        if self._batches_to_skip:
            self.model.train_function = self._skip_then(self.model.train_function)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Ends an inner fit of Keras; `end` calls the user's callbacks."""
        self._logs = logs

    def _skip_then(self, train: Callable) -> Callable:
        def skip(iterator: Any) -> dict:
            for done in range(min(self.model.steps_per_execution, self._batches_to_skip)):
                try:
                    next(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if not done:
                        raise StopIteration from None
                    break  # the last execution of an epoch may have fewer batches
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
    """Stops a fit whose loss is not finite and restores the predictor's last finite weights.

    A check waits for the steps to end, so it is only made every `CHECK_EVERY` steps and at the end
    of epochs and phases. If the user's callbacks include `keras.callbacks.TerminateOnNaN`, the fit
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
        self.model._objective.failure(self.model.phase)  # clears that of an earlier fit
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
    """Replaces `mode="auto"` if Keras cannot infer the direction of the monitored metric."""
    name = str(getattr(callback, "monitor", "")).removeprefix("val_")
    if getattr(callback, "mode", None) == "auto" and name in METRICS:
        callback.mode = "max" if name in INCREASING else "min"


def _remove_if_damaged(metadata: pathlib.Path) -> None:
    """Removes metadata that a killed `BackupAndRestore` left incomplete and would fail to read.

    The weights lie in another file, which is complete, and a fit needs nothing else.
    """
    try:
        json.loads(metadata.read_text())["epoch"]
    except OSError:
        return  # there is no such file
    except (ValueError, KeyError, TypeError):
        metadata.unlink()


class ReconstructionCallbacks(keras.callbacks.Callback):
    """Passes only the batch events of the reconstruction to a fit's callbacks.

    Args:
        callbacks: the `FitCallbacks` of the fit.
        steps_done: steps of the phase that an earlier fit completed.
    """

    def __init__(self, callbacks: FitCallbacks, steps_done: int) -> None:
        super().__init__()
        own = (keras.callbacks.ProgbarLogger, keras.callbacks.History)  # Keras adds its own
        self._callbacks = [c for c in callbacks.callbacks if not isinstance(c, own)]
        self._steps_done = steps_done
        self.async_safe = not self._callbacks  # if False, Keras waits for each step to end

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_begin(batch + self._steps_done, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_end(batch + self._steps_done, logs)
