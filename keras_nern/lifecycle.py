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
weights have seen, and trains from there. That costs what reading them costs.
"""

import keras
import tensorflow as tf


class FitCallbacks(keras.callbacks.CallbackList):
    """The user's callbacks, through both phases of a fit.

    Args:
        callbacks: what `fit` takes: `None`, a callback, a list or a `CallbackList`.
        model: the model that fits.
        **params: as for `keras.callbacks.CallbackList`: `verbose`, `epochs`, `steps`.
    """

    def __init__(self, callbacks, model, **params):
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        self.history = keras.callbacks.History()
        super().__init__(
            [*keras.tree.flatten(callbacks or []), self.history],
            add_progbar=params["verbose"] != 0,
            model=model,
            **params,
        )
        self._first_epoch = 0  # earlier ones ended before the fit was killed
        self._left = 0  # batches to drop
        self._dropping = False
        self._logs = None

    def begin(self):
        """Announces the fit.

        Returns:
            The epoch a callback has restored the model to, `None` where none has.
        """
        # BackupAndRestore says it here, and Keras would skip the data of those epochs.
        self.model._initial_epoch = None
        super().on_train_begin()
        restored, self.model._initial_epoch = self.model._initial_epoch, None
        self._first_epoch = restored or 0
        return restored

    def end(self):
        """Announces the end of the fit."""
        super().on_train_end(self._logs)

    def on_train_begin(self, logs=None):
        """Of an inner fit of Keras: passed on by `begin`."""
        if self._left:
            self.model.train_function = self._drop_batches(self.model.train_function)

    def on_train_end(self, logs=None):
        """Of an inner fit of Keras: passed on by `end`."""
        self._logs = logs

    def drop(self, batches):
        """Lets the next inner fit draw so many batches before it trains."""
        self._left = batches

    def _drop_batches(self, train):
        def draw(iterator):
            for _ in range(min(self.model.steps_per_execution, self._left)):
                try:
                    next(iterator)
                except tf.errors.OutOfRangeError:
                    raise StopIteration from None
                self._left -= 1
            if not self._left:
                self.model.train_function = train
            return {}

        return draw

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= self._first_epoch:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self._first_epoch:
            super().on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._dropping = self._left > 0
        if not self._dropping:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if not self._dropping:
            super().on_train_batch_end(batch, logs)

    def validation_epochs(self, frequency, epochs):
        """Keras's `validation_freq`, without the epochs that ended before."""
        if not self._first_epoch:
            return frequency
        if isinstance(frequency, int):
            frequency = range(frequency, epochs + 1, frequency)
        return [epoch for epoch in frequency if epoch > self._first_epoch]


class BeforeTheEpochs(keras.callbacks.Callback):
    """Passes the batches of the reconstruction, and nothing else, to a fit's callbacks.

    Args:
        callbacks: a `FitCallbacks`.
        done: steps of the phase that an earlier fit did.
    """

    def __init__(self, callbacks, done):
        super().__init__()
        own = (keras.callbacks.ProgbarLogger, keras.callbacks.History)  # Keras adds others
        self._callbacks = [c for c in callbacks.callbacks if not isinstance(c, own)]
        self._done = done
        self.async_safe = not self._callbacks  # else Keras would wait for no step to end

    def on_train_batch_begin(self, batch, logs=None):
        for callback in self._callbacks:
            callback.on_train_batch_begin(batch + self._done, logs)

    def on_train_batch_end(self, batch, logs=None):
        for callback in self._callbacks:
            callback.on_train_batch_end(batch + self._done, logs)
