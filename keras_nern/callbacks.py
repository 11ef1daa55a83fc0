"""Callbacks for the phases of a fit.

`EvaluateRebuilt` evaluates the rebuilt classifier during training, `LossWarmup` and `SwitchPhase`
control the losses and the phases, and `KernelSummaries` writes kernels and their errors for
TensorBoard. Keras's own callbacks work as well: `training.fit_callbacks` documents which events
callbacks receive.

The callbacks use the model's step counters, so they act at the same steps in a fit that
`keras.callbacks.BackupAndRestore` restores.
"""

import inspect
import pathlib
import types
from collections.abc import Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nern.analysis.kernel_images import kernel_image
from keras_nern.losses import relative_error
from keras_nern.model import NeRNModel
from keras_nern.training.settings import DISTILLATION_LOSSES
from keras_nern.utils import checks
from keras_nern.utils.backend import to_int
from keras_nern.utils.optional import require
from keras_nern.utils.types import Path


class EvaluateRebuilt(keras.callbacks.Callback):
    """Evaluates the rebuilt classifier at regular steps of all phases.

    The results are added to the logs of the step as `val_...`, where later callbacks find them:
    `ModelCheckpoint(..., monitor="val_agreement", save_freq=frequency)` keeps the best weights.
    Use validation images: accuracy on images that were used to choose weights or settings is
    not a test accuracy.

    Args:
        x: images, as for `NeRNModel.evaluate`. A generator is not accepted, because it can be
            read only once.
        y: labels, for the accuracy. Defaults to `None`.
        frequency: number of steps between evaluations, counted in each phase. Defaults to
            `500`.
        **kwargs: further arguments of `NeRNModel.evaluate` (`batch_size`, `steps`, ...).

    Attributes:
        history: list of a dict per evaluation in the current fit: `"phase"`, `"step"` of that
            phase, and the results.

    Raises:
        ValueError: if `frequency` is not an integer of at least 1, if `x` is a generator, or if
            `evaluate` does not take an argument; at the start of a fit, if the data do not fit.

    Example:

    >>> watch = keras_nern.callbacks.EvaluateRebuilt(images, labels, frequency=100)
    >>> history = nern.fit(images, epochs=5, callbacks=[watch])
    >>> [(result["phase"], result["step"]) for result in watch.history]
    """

    def __init__(self, x: Any, y: Any = None, frequency: int = 500, **kwargs: Any) -> None:
        super().__init__()
        checks.integer("frequency", frequency, minimum=1)
        if isinstance(x, types.GeneratorType):
            raise ValueError(
                "x must be data that can be read at every evaluation, such as an array or a "
                "tf.data.Dataset. Received: a generator"
            )
        known = inspect.signature(NeRNModel.evaluate).parameters
        unknown = sorted(set(kwargs) - set(known) | set(kwargs) & {"callbacks", "return_dict"})
        if unknown:
            raise ValueError(
                "EvaluateRebuilt takes batch_size, steps, sample_weight and verbose for evaluate. "
                f"Received: {unknown}"
            )
        for name in ("batch_size", "steps"):
            if kwargs.get(name) is not None:
                checks.integer(name, kwargs[name], minimum=1)
        self.data = (x, y)
        self.frequency = frequency
        self.arguments = {"verbose": 0, **kwargs}
        self.history: list[dict] = []
        self._interval = _StepInterval(frequency)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.model.check_data(*self.data, sample_weight=self.arguments.get("sample_weight"))
        self.history = []
        self._interval.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not self._interval.is_due(self.model):
            return
        # evaluate resets the running means of the current epoch, so they are restored after it.
        variables = self.model.metrics_variables
        means = [keras.ops.convert_to_numpy(variable) for variable in variables]
        results = self.model.evaluate(*self.data, return_dict=True, **self.arguments)
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)
        step = to_int(self.model.phase_iterations)
        self.history.append({"phase": self.model.phase, "step": step, **results})
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})


class LossWarmup(keras.callbacks.Callback):
    """Increases weights of losses linearly over the first steps of the distillation.

    With `steps_per_execution`, all steps of an execution have the same weight.

    Args:
        steps: step of the distillation at which the losses reach their full weights, at least 1.
        losses: names of the losses, among `"logits_loss"`, `"feature_map_loss"` and
            `"reconstruction_loss"`. Defaults to the first two.

    Raises:
        ValueError: if `steps` is not an integer of at least 1, or if a loss is unknown.

    Example:

    >>> history = nern.fit(images, callbacks=[keras_nern.callbacks.LossWarmup(100)])
    """

    def __init__(self, steps: int, losses: Collection[str] = DISTILLATION_LOSSES) -> None:
        super().__init__()
        checks.integer("steps", steps, minimum=1)
        known = ("reconstruction_loss", *DISTILLATION_LOSSES)
        checks.instance("losses", losses, (list, tuple, set), "a list of names of losses")
        if not set(losses) <= set(known):
            raise ValueError(f"losses must be among {known}. Received: losses={losses!r}")
        self.steps = steps
        self.losses = tuple(losses)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        share = 1.0
        if self.model.phase == "distillation":
            share = min(1.0, (to_int(self.model.phase_iterations) + 1) / self.steps)
        self.model.scale_losses(**dict.fromkeys(self.losses, share))


class SwitchPhase(keras.callbacks.Callback):
    """Ends the reconstruction phase once the kernels are close enough to the original's.

    The default learning rate decays over all `reconstruction_steps`, and the last steps reduce
    the error most. With the default optimizer, a smaller `reconstruction_steps` is therefore
    better than ending a long phase early.

    Args:
        relative_error: relative squared error of all weights at which the phase ends.
        frequency: number of steps between checks of the error. The phase ends with the step
            after the check. Defaults to `100`.

    Raises:
        ValueError: if `relative_error` is negative or `frequency` is not an integer of at least
            1.

    Example:

    >>> switch = keras_nern.callbacks.SwitchPhase(relative_error=0.05)
    >>> history = nern.fit(images, callbacks=[switch])
    """

    def __init__(self, relative_error: float, frequency: int = 100) -> None:
        super().__init__()
        self.relative_error = checks.number("relative_error", relative_error, minimum=0)
        checks.integer("frequency", frequency, minimum=1)
        self.frequency = frequency
        self._interval = _StepInterval(frequency)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._interval.start()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # The check comes before a step, because BackupAndRestore saves weights after a step: a
        # restored fit then checks the weights that it starts from.
        model = self.model
        if model.phase != "reconstruction" or not self._interval.is_due(model):
            return
        if model.relative_error() <= self.relative_error:
            model.finish_reconstruction()


class KernelSummaries(keras.callbacks.Callback):
    """Writes images of kernels, and the error of every layer, for TensorBoard.

    `keras.callbacks.TensorBoard` writes the losses and metrics of a fit. This callback adds

        layer_error/NAME    sum (W - W^)^2 / sum W^2 of that layer
        kernels/NAME        the largest kernels, original on the left and predicted on the right

    Each phase is a separate run, which counts its own steps.

    Args:
        log_dir: folder of the runs `reconstruction`, `curvature` and `distillation`. It may be the
            folder of `keras.callbacks.TensorBoard`.
        frequency: number of steps between summaries, counted in each phase; or `"epoch"` for
            summaries before the first epoch and after each epoch, and none during a
            reconstruction before the epochs. Defaults to `"epoch"`.
        layers: names of the kernels to draw, as in `NeRNModel.predict_kernels`; `None` for all.
            Errors are written for all layers. Defaults to `None`.
        limit: maximum number of kernels to draw for each layer. Defaults to `64`.

    Raises:
        ValueError: if `frequency` is neither `"epoch"` nor an integer of at least 1, or if
            `limit` is not an integer of at least 1; at the start of a fit, if a layer is not
            represented.
        ImportError: if TensorBoard is not installed.

    Example:

    >>> callbacks = [
    ...     keras.callbacks.TensorBoard("logs", update_freq=100),
    ...     keras_nern.KernelSummaries("logs", frequency=500),
    ... ]
    >>> history = nern.fit(images, epochs=5, callbacks=callbacks)

    `tensorboard --logdir logs` displays the summaries.
    """

    def __init__(
        self,
        log_dir: Path,
        frequency: int | str = "epoch",
        layers: Sequence[str] | None = None,
        limit: int = 64,
    ) -> None:
        super().__init__()
        checks.path("log_dir", log_dir)
        if layers is not None:
            checks.instance("layers", layers, (list, tuple), "a list of names or None")
            for name in layers:
                checks.instance("layers", name, str, "a list of names or None")
        self._interval = None
        if not isinstance(frequency, str):
            checks.integer("frequency", frequency, minimum=1)
            self._interval = _StepInterval(frequency)
        elif frequency != "epoch":
            raise ValueError(
                f'frequency must be "epoch" or a number of steps. Received: frequency={frequency!r}'
            )
        checks.integer("limit", limit, minimum=1)
        require("tensorboard", "tensorboard")
        self.log_dir = pathlib.Path(log_dir)
        self.frequency = frequency
        self.layers = layers
        self.limit = limit
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        known = list(self.model.original_kernels())
        unknown = sorted(set(self.layers or ()) - set(known))
        if unknown:
            raise ValueError(f"layers must be among {known}. Received: {unknown}")
        if self._interval:
            self._interval.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._interval and self._interval.is_due(self.model):
            self._write()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self._interval and to_int(self.model.phase_iterations) == 0:
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if not self._interval:
            self._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write(self) -> None:
        model, step = self.model, to_int(self.model.phase_iterations)
        if model.phase not in self._writers:
            folder = str(self.log_dir / model.phase)
            self._writers[model.phase] = tf.summary.create_file_writer(folder)
        writer = self._writers[model.phase]
        originals, predicted = model.original_kernels(), model.predict_kernels()
        # Keras's TensorBoard callback turns recording off between its own summaries.
        with writer.as_default(step), tf.summary.record_if(True):
            for name, original in originals.items():
                error = relative_error(original, predicted[name], 1.0)
                tf.summary.scalar(f"layer_error/{name}", error)
            for name in originals if self.layers is None else self.layers:
                image = kernel_image(originals[name], predicted[name], self.limit)
                tf.summary.image(f"kernels/{name}", image[None])
        writer.flush()


class _StepInterval:
    """Tells when the steps of a phase reach or pass a multiple of `frequency`.

    An execution of several steps (`steps_per_execution`) may pass a multiple without stopping at
    it. The first execution after a restart is assumed to have the full number of steps.
    """

    def __init__(self, frequency: int) -> None:
        self.frequency = frequency
        self._last: tuple[str, int] | None = None  # phase and step at the last call

    def start(self) -> None:
        """Resets the interval at the start of a fit."""
        self._last = None

    def is_due(self, model: NeRNModel) -> bool:
        """Whether a multiple was passed since the last call; called once per execution."""
        step = to_int(model.phase_iterations)
        before = step - model.steps_per_execution
        if self._last is not None and self._last[0] == model.phase:
            before = self._last[1]
        self._last = (model.phase, step)
        return step // self.frequency > max(0, before) // self.frequency
