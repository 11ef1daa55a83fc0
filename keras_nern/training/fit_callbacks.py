"""What callbacks see of a fit of two phases, and how a killed fit goes on.

Callbacks live once through a fit:

    on_train_begin
        on_train_batch_begin, on_train_batch_end         every step of the reconstruction
        on_epoch_begin ... batches ... on_epoch_end      every epoch of the distillation
    on_train_end

The reconstruction comes before the first epoch, so what monitors epochs compares like
with like: the two phases' losses are different sums.

`keras.callbacks.BackupAndRestore` puts a killed fit's weights back, but not the place
in the data, so the rest of the fit would see other images than an undisturbed one. A
restored fit therefore draws its data from the start, drops as many batches as the
weights have seen, and trains from there. That costs what reading them costs. Callbacks
are told of an epoch that has batches left to train on, and of those batches alone.
"""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf


class EpochHistory(keras.callbacks.History):
    """A `keras.callbacks.History` that also knows in which epoch each value was logged.

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
        model: the model that fits.
        **params: as for `keras.callbacks.CallbackList`: `verbose`, `epochs`, `steps`.
    """

    def __init__(self, callbacks: Any, model: keras.Model, **params: Any) -> None:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        self.history = EpochHistory()
        super().__init__(
            [*keras.tree.flatten(callbacks or []), self.history],
            add_progbar=params["verbose"] != 0,
            model=model,
            **params,
        )
        self._batches_to_drop = 0
        self._dropped_last = False
        self._waiting_epoch: int | None = None  # whose first batch to train on has not come yet
        self._restored_epoch = 0
        self._logs: dict | None = None

    @property
    def can_restore(self) -> bool:
        """Whether one of them puts back the weights of a fit that was killed."""
        return any(isinstance(c, keras.callbacks.BackupAndRestore) for c in self.callbacks)

    @property
    def is_dropping(self) -> bool:
        """Whether there are batches left to drop."""
        return self._batches_to_drop > 0

    def begin(self) -> None:
        """Announces the fit; a callback may restore the model or stop the training."""
        self.model.stop_training = False
        # BackupAndRestore (Keras 3.15) writes the epoch it restores to `_initial_epoch`;
        # left there, Keras would skip the data of the epochs before.
        self.model._initial_epoch = None
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                _remove_if_cut(pathlib.Path(callback.backup_dir, "training_metadata.json"))
        super().on_train_begin()
        self._restored_epoch = self.model._initial_epoch or 0
        self.model._initial_epoch = None

    def end(self) -> None:
        """Announces the end of the fit."""
        super().on_train_end(self._logs)

    def drop(self, batches: int) -> None:
        """Lets the next inner fit draw so many batches before it trains."""
        self._batches_to_drop = batches

    def check_dropped(self, batches: int) -> None:
        """Raises a ValueError where the data ended before all batches were dropped."""
        if self._batches_to_drop:
            raise ValueError(
                f"The backup is of a fit that had trained on {batches} batches; x must give at "
                f"least as many again. Received: {batches - self._batches_to_drop}"
            )

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Of an inner fit of Keras: passed on by `begin`."""
        if self._batches_to_drop:
            self.model.train_function = self._draw_then(self.model.train_function)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Of an inner fit of Keras: passed on by `end`."""
        self._logs = logs

    def _draw_then(self, train: Callable) -> Callable:
        def draw(iterator: Any) -> dict:
            for drawn in range(min(self.model.steps_per_execution, self._batches_to_drop)):
                try:
                    next(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if not drawn:
                        raise StopIteration from None
                    break  # the last batches of an epoch, fewer than are run at once
                self._batches_to_drop -= 1
            if not self._batches_to_drop:
                self.model.train_function = train
            return {}

        return draw

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._batches_to_drop:
            self._waiting_epoch = epoch
        else:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._waiting_epoch is None:
            super().on_epoch_end(epoch, logs)
        self._waiting_epoch = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._dropped_last = self.is_dropping
        if self._dropped_last:
            return
        if self._waiting_epoch is not None:
            super().on_epoch_begin(self._waiting_epoch)
            self._waiting_epoch = None
        super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not self._dropped_last:
            super().on_train_batch_end(batch, logs)

    def validation_epochs(self, frequency: int | Iterable[int], epochs: int) -> int | Iterable[int]:
        """Keras's `validation_freq`, without the epochs that ended before."""
        if not self._restored_epoch:
            return frequency
        if isinstance(frequency, int):
            frequency = range(frequency, epochs + 1, frequency)
        return [epoch for epoch in frequency if epoch > self._restored_epoch]


def _remove_if_cut(metadata: pathlib.Path) -> None:
    """Removes what `BackupAndRestore` was killed in writing, as it would fail to read it.

    It is a few bytes beside the weights, which are whole and hold all that a fit goes on from.
    """
    try:
        json.loads(metadata.read_text())["epoch"]
    except OSError:
        return  # there is none
    except (ValueError, KeyError, TypeError):
        metadata.unlink()


class BeforeTheEpochs(keras.callbacks.Callback):
    """Passes the batches of the reconstruction, and nothing else, to a fit's callbacks.

    Args:
        callbacks: a `FitCallbacks`.
        steps_done: steps of the phase that an earlier fit did.
    """

    def __init__(self, callbacks: FitCallbacks, steps_done: int) -> None:
        super().__init__()
        own = (keras.callbacks.ProgbarLogger, keras.callbacks.History)  # Keras adds others
        self._callbacks = [c for c in callbacks.callbacks if not isinstance(c, own)]
        self._steps_done = steps_done
        self.async_safe = not self._callbacks  # else Keras would wait for no step to end

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_begin(batch + self._steps_done, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_end(batch + self._steps_done, logs)
