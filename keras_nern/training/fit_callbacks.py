"""The events that callbacks receive during a fit, and the restart of a killed fit.

Callbacks receive one `on_train_begin` and one `on_train_end` per fit:

    on_train_begin
        on_train_batch_begin, on_train_batch_end         every step of the phases before
        on_epoch_begin ... batches ... on_epoch_end      every epoch of the distillation
    on_train_end

Reconstruction and curvature phase come before the first epoch, because their losses are different
sums than that of the distillation. Callbacks that monitor epochs therefore compare values of the
same loss. The logs of a step in an epoch, and of the epoch, are means over the epoch, as always in
Keras. The logs of a step of the phases before are moving means, see `training.fit_progress`.

`keras.callbacks.BackupAndRestore` restores the weights of a killed fit but not the place in the
data. A restored fit therefore reads its data from the start, skips the batches that the weights
were trained on, and trains on the rest. Callbacks receive no events for skipped batches. Skipping
takes as long as reading the batches.

Errors that would occur at the end of an epoch are raised before the first step: callbacks that
monitor values which no epoch logs, and files that callbacks cannot write.

Private parts of Keras, tried on Keras 3.15 and used in this module only: `Model._initial_epoch`, to
which `BackupAndRestore` writes the epoch it restores; `_set_monitor_op`, which callbacks call at
the end of the first epoch; `Metric._direction`, which it reads; and
`ModelCheckpoint._current_epoch`, which has no value before the first epoch.
"""

import json
import math
import pathlib
import string
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.training.evaluation import INCREASING, METRICS
from keras_nern.training.fit_progress import FitProgress, MovingMeans
from keras_nern.training.settings import PHASES
from keras_nern.utils.backend import to_int
from keras_nern.utils.files import check_creatable
from keras_nern.utils.progress import level_of

CHECK_EVERY = 50  # executions of a step function between checks that losses are finite
POINTS = 100  # of the curve of a phase without epochs


class DivergedError(ValueError):
    """Raised if a loss or a weight of a running fit is not finite."""


def check_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Lists the callbacks that `fit` or `evaluate` takes: `None`, one, a list or a `CallbackList`.

    Raises:
        ValueError: if there is something else among them.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    flat = keras.tree.flatten([] if callbacks is None else callbacks)
    for callback in flat:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                "callbacks must be a keras.callbacks.Callback or a list of them. "
                f"Received: {callback!r}"
            )
    return flat


class FitHistory(keras.callbacks.History):
    """A `keras.callbacks.History` that also records curves of the phases before the epochs.

    Args:
        means: the moving means of the losses.

    Attributes:
        places: dict from the names in `history` to lists of epochs, counted from 1.
        reconstruction, curvature: dicts from names to lists of about `POINTS` moving means each;
            empty if the phase did not run. The last relative error is that of all kernels.
        steps: dict from the names of the phases to lists: the step of the phase at which each
            value of `reconstruction` and `curvature` was recorded, and at which each epoch ended.
    """

    def __init__(self, means: MovingMeans) -> None:
        super().__init__()
        self.places: dict[str, list[int]] = {}
        self.reconstruction: dict[str, list[float]] = {}
        self.curvature: dict[str, list[float]] = {}
        self.steps: dict[str, list[int]] = {phase: [] for phase in PHASES}
        self._means = means
        self._phase: str | None = None  # while there are no epochs
        self._interval = 1
        self._last = 0

    def begin_phase(self, phase: str, steps: int, done: int) -> None:
        """Begins a phase without epochs, of whose steps an earlier fit completed `done`."""
        self._phase = phase
        self._interval = math.ceil(steps / POINTS)
        self._last = done

    def end_phase(self, relative_error: float) -> None:
        """Ends a phase without epochs, after which all kernels have this error."""
        assert self._phase is not None
        self._record(to_int(self.model.phase_iterations))
        getattr(self, self._phase)["relative_error"][-1] = relative_error
        self._phase = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # Before a step, so that Keras need not wait for every step, see `_looks_at_steps`. `batch`
        # is the number of steps that are done.
        is_due = batch // self._interval > self._last // self._interval
        if self._phase is not None and is_due:
            self._record(batch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.steps[self.model.phase].append(to_int(self.model.phase_iterations))
        for name in logs or {}:
            self.places.setdefault(name, []).append(epoch + 1)

    def _record(self, step: int) -> None:
        """Adds the present means to the curve, unless the step is already in it."""
        phase = self._phase
        assert phase is not None
        self._last = step
        if self.steps[phase][-1:] == [step]:
            return
        self.steps[phase].append(step)
        for name, value in self._means.read(phase).items():
            getattr(self, phase).setdefault(name, []).append(value)


class FitCallbacks(keras.callbacks.CallbackList):
    """Calls the user's callbacks through the phases of a fit.

    Args:
        callbacks: `None`, a callback, a list of callbacks or a `CallbackList`, as for `fit`.
        model: the model that is fitted.
        **params: as for `keras.callbacks.CallbackList`: `verbose`, `epochs`, `steps`.

    Raises:
        ValueError: if `callbacks` contains something else, or a callback saves a model that cannot
            be saved.
        OSError: if a callback cannot write its files.
    """

    def __init__(self, callbacks: Any, model: keras.Model, **params: Any) -> None:
        callbacks = check_callbacks(callbacks)
        for callback in callbacks:
            _check_paths(callback)
            checkpoint = isinstance(callback, keras.callbacks.ModelCheckpoint)
            if checkpoint and not callback.save_weights_only:
                model.check_saveable()
        self.history = FitHistory(model._means)
        self.finite_check = FiniteCheck(callbacks)
        has_bar = any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks)
        self.verbose = level_of(params["verbose"])
        self.progress = FitProgress(model._means, self.verbose, with_epochs=not has_bar)
        # The check comes first, so that callbacks do not use or save values that are not finite.
        super().__init__(
            [self.finite_check, *callbacks, self.history, self.progress], model=model, **params
        )
        self._looks_at_steps = any(map(_looks_at_steps, self.callbacks))
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

    @property
    def monitors(self) -> bool:
        """Whether a callback reads values that an epoch logs."""
        return any(
            hasattr(callback, "monitor") or "{" in str(getattr(callback, "filepath", ""))
            for callback in self.callbacks
        )

    def check(self, logged: Collection[str] | None) -> None:
        """Raises an error for callbacks that would fail at the end of the first epoch.

        Args:
            logged: names of the values that an epoch logs; `None` if they are unknown.

        Raises:
            ValueError: if a callback monitors a value that is not logged, or cannot work with the
                optimizer.
        """
        if not all(map(_logs_nothing, self.callbacks)):
            logged = None
        for callback in self.callbacks:
            if logged is not None:
                _check_names(callback, logged)
            if hasattr(callback, "_set_monitor_op") and callback.monitor_op is None:
                _set_direction(callback, self.model)
                callback._set_monitor_op()
            optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
            if isinstance(callback, keras.callbacks.SwapEMAWeights) and not optimizer.use_ema:
                raise ValueError(
                    "SwapEMAWeights needs an optimizer with use_ema=True. Received: "
                    f"{type(optimizer).__name__} with use_ema=False"
                )

    def begin(self) -> None:
        """Calls `on_train_begin`, in which a callback may restore the model or stop training."""
        self.model.stop_training = False
        # BackupAndRestore sets it, and Keras would skip the epochs before it.
        self.model._initial_epoch = None
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                _remove_if_damaged(pathlib.Path(callback.backup_dir, "training_metadata.json"))
            if isinstance(callback, keras.callbacks.ModelCheckpoint):
                callback._current_epoch = 0  # until the first epoch begins
        super().on_train_begin()
        self.finite_check.start()
        self._restored_epoch = self.model._initial_epoch or 0
        self.model._initial_epoch = None

    def begin_steps(self, phase: str, steps: int, done: int) -> None:
        """Begins a phase without epochs, of whose steps an earlier fit completed `done`."""
        self.history.begin_phase(phase, steps, done)
        self.progress.begin_phase(phase, steps, epochs=1, first_epoch=None, done=done)

    def end_steps(self) -> None:
        """Ends a phase without epochs, and records the error of all kernels."""
        relative_error = self.model.relative_error()
        self.history.end_phase(relative_error)
        self.progress.end_phase(relative_error)

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
        if self._looks_at_steps and not self._skipped_last:
            super().on_train_batch_end(batch, logs)

    def validation_epochs(self, frequency: int | Iterable[int], epochs: int) -> int | Iterable[int]:
        """Keras's `validation_freq` without the epochs that ended before the restart."""
        if not self._restored_epoch:
            return frequency
        if isinstance(frequency, int):
            frequency = range(frequency, epochs + 1, frequency)
        return [epoch for epoch in frequency if epoch > self._restored_epoch]


class FiniteCheck(keras.callbacks.Callback):
    """Stops a fit whose loss is not finite and restores the model's last finite state.

    A check waits for the steps to end, so it is only made every `CHECK_EVERY` steps, at the end of
    epochs and phases, and when the model is saved. If the user's callbacks include
    `keras.callbacks.TerminateOnNaN`, which waits for each step, the check is made after each step,
    and the fit stops without an error.

    Args:
        callbacks: list of the user's callbacks.
    """

    looks_at_steps = False  # on_train_batch_end does nothing unless TerminateOnNaN looks at them

    def __init__(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        super().__init__()
        self._stops = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks)
        self._steps = 0
        self._state: list[tuple[keras.Variable, np.ndarray]] = []

    def start(self) -> None:
        """Raises a ValueError if the predictor is not finite before the first step."""
        self.model._objective.failure(self.model.phase)  # clears that of an earlier fit
        bad = self.model.predictor.not_finite()
        if bad:
            raise ValueError(
                f"Expected a predictor with finite weights. Received: NaN or infinity in {bad}"
            )
        self.model._finite_check = self

    def end(self) -> None:
        """Restores the model's last finite state if the fit ends with an error between checks."""
        self.restore()
        self.model._finite_check = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self.check()
            self.keep_state()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._stops:
            self.check()

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.check()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.check()
        self.keep_state()

    def check(self) -> None:
        """Raises a DivergedError if a loss or a weight is not finite."""
        failure = self.restore()
        if failure is None:
            return
        self.model.stop_training = True
        if not self._stops:
            step, cause = failure
            raise DivergedError(
                f"Expected a fit whose losses are finite. Received: NaN or infinity in {cause} at "
                f"step {step + 1} of the {self.model.phase}. The model has its last finite state; "
                "compile it with a lower learning rate before the next fit, unless the images are "
                "the cause"
            )

    def restore(self) -> tuple[int, str] | None:
        """Restores the model's last finite state if a loss or a weight is not finite.

        Returns:
            The step and the cause, or `None` if all are finite.
        """
        model = self.model
        failure = model._objective.failure(model.phase)
        for cause, variables in (
            ("the predictor", model.predictor.weights),
            ("the optimizer", model.optimizer.variables),
        ):
            if failure is None and not all(map(_is_finite, variables)):  # since the last loss
                failure = max(0, to_int(model.phase_iterations) - 1), cause
        if failure is not None:
            for variable, value in self._state:
                variable.assign(value)
        return failure

    def keep_state(self) -> None:
        """Records the state of the model, which is finite, for `restore`."""
        model = self.model
        variables = [
            *model.predictor.weights,
            *model.optimizer.variables,
            *(model.reconstruction_iterations, model.curvature_iterations),
            *(model.phase_iterations, model._seed.state),
        ]
        self._state = [(one, np.array(keras.ops.convert_to_numpy(one))) for one in variables]


def _is_finite(variable: keras.Variable) -> bool:
    return bool(np.isfinite(keras.ops.convert_to_numpy(variable)).all())


def _logs_nothing(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback is known to add no values to the logs of an epoch."""
    known = ("keras.src.callbacks.", "keras_nern.callbacks", "keras_nern.training.")
    is_known = f"{type(callback).__module__}.".startswith(known)
    return is_known and not isinstance(callback, keras.callbacks.LambdaCallback)


def _check_names(callback: keras.callbacks.Callback, logged: Collection[str]) -> None:
    """Raises a ValueError if a callback reads values that an epoch does not log."""
    rate = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
    known = {*logged, "learning_rate"} if isinstance(callback, rate) else {*logged}
    names = set()
    if getattr(callback, "save_freq", "epoch") == "epoch":
        if getattr(callback, "save_best_only", True) and hasattr(callback, "monitor"):
            names.add(callback.monitor)
        fields = string.Formatter().parse(str(getattr(callback, "filepath", "")))
        names |= {field for _, field, _, _ in fields if field} - {"epoch"}
    if names <= known:
        return
    needs, has = (any(name.startswith("val_") for name in some) for some in (names, known))
    raise ValueError(
        f"callbacks must read values that an epoch logs: {sorted(known)}. Received: "
        f"{type(callback).__name__} with {sorted(names - known)}"
        + " but no validation_data"
        * (needs and not has)
    )


def _check_paths(callback: keras.callbacks.Callback) -> None:
    """Raises an error if a callback cannot write its files."""
    for name in ("backup_dir", "log_dir"):
        if hasattr(callback, name):
            check_creatable(getattr(callback, name), is_folder=True)
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        path = callback.filepath
        if path.endswith(".h5") and not callback.save_weights_only:
            raise ValueError(
                "filepath of ModelCheckpoint must end in .keras, because an HDF5 file would hold "
                f"only the weights. Received: filepath={path!r}"
            )
        fixed, brace, _ = path.partition("{")
        check_creatable(pathlib.Path(f"{fixed}x").parent if brace else path, is_folder=bool(brace))


def _set_direction(callback: keras.callbacks.Callback, model: keras.Model) -> None:
    """Replaces `mode="auto"` if Keras cannot infer the direction of the monitored metric."""
    name = str(callback.monitor).removeprefix("val_")
    if callback.mode != "auto":
        return
    if name in METRICS:
        callback.mode = "max" if name in INCREASING else "min"
        return
    compiled = [one for metric in model.metrics for one in getattr(metric, "metrics", [])]
    for metric in compiled:
        if f"compiled_{metric.name}" == name and getattr(metric, "_direction", None):
            callback.mode = "max" if metric._direction == "up" else "min"


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


class PhaseCallbacks(keras.callbacks.CallbackList):
    """Passes only the batch events of a phase without epochs to a fit's callbacks.

    Args:
        callbacks: the `FitCallbacks` of the fit.
        phase: name of the phase.
        steps_done: steps of the phase that an earlier fit completed.
    """

    def __init__(self, callbacks: FitCallbacks, phase: str, steps_done: int) -> None:
        bar = keras.callbacks.ProgbarLogger  # which counts the steps of epochs only
        passed = [c for c in callbacks.callbacks if not isinstance(c, bar)]
        super().__init__(passed, model=callbacks.model)
        self._phase = phase
        self._steps_done = steps_done
        self._looks_at_steps = any(map(_looks_at_steps, passed))

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Does nothing: `FitCallbacks` has called it."""

    def on_train_end(self, logs: dict | None = None) -> None:
        """Does nothing: `FitCallbacks` will call it."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Does nothing: the phase has no epochs."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Does nothing: the phase has no epochs."""

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_begin(batch + self._steps_done, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._looks_at_steps:
            logs = self.model._means.read(self._phase)
            super().on_train_batch_end(batch + self._steps_done, logs)


def _looks_at_steps(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback has a method for the end of a step, which waits for the step's logs."""
    methods = (callback.on_train_batch_end, callback.on_batch_end)
    inherited = (
        keras.callbacks.Callback.on_train_batch_end,
        keras.callbacks.Callback.on_batch_end,
    )
    has_none = tuple(getattr(method, "__func__", None) for method in methods) == inherited
    return getattr(callback, "looks_at_steps", not has_none)
