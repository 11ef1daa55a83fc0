"""Callbacks for what Keras's own do not know: phases, losses, the rebuilt classifier.

All of Keras's callbacks work beside them; what they see of the two phases is told in
`lifecycle`. What each of these does at a step depends on the model's counters alone, so
it does the same in a fit that `keras.callbacks.BackupAndRestore` brings back.
"""

import importlib
import os
import pathlib
import types
from collections.abc import Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nern.analysis.kernel_images import kernel_image
from keras_nern.losses import relative_error
from keras_nern.model import NeRNModel
from keras_nern.training.objective import DISTILLED
from keras_nern.utils import checks
from keras_nern.utils.backend import count


class EvaluateRebuilt(keras.callbacks.Callback):
    """Evaluates the rebuilt classifier every so many steps, in both phases.

    The results join the step's logs as `val_...`, for callbacks that come after this
    one: `ModelCheckpoint(..., monitor="val_agreement", save_freq=frequency)` keeps
    the best. What is chosen by these results must not be judged by the same images:
    give it validation images, never the test set.

    Args:
        x: images, as `NeRNModel.evaluate` takes them, but for a generator, which
            gives them but once.
        y: labels, for the accuracy. Defaults to `None`.
        frequency: steps of either phase between evaluations. Defaults to `500`.
        **kwargs: further arguments of `evaluate` (`batch_size`, `steps`, ...).

    Attributes:
        history: a list of dicts: `"phase"`, `"step"` of that phase, and the results,
            of the fit in this process.

    Raises:
        ValueError: for a frequency below 1, or a generator.

    Example:

    >>> watch = keras_nern.callbacks.EvaluateRebuilt(images, labels, frequency=100)
    >>> history = nern.fit(images, epochs=5, callbacks=[watch])
    >>> [(result["phase"], result["step"]) for result in watch.history]
    """

    def __init__(self, x: Any, y: Any = None, frequency: int = 500, **kwargs: Any) -> None:
        super().__init__()
        checks.integer("frequency", frequency, least=1)
        if isinstance(x, types.GeneratorType):
            raise ValueError(
                "x must give its images at every evaluation anew. Received: a generator"
            )
        self.data = (x, y)
        self.frequency = frequency
        self._every = Every(frequency)
        self.arguments = {"verbose": 0, **kwargs}
        self.history: list[dict] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.model.examine(*self.data)
        self.history = []
        self._every.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not self._every.has_come(self.model):
            return
        # An evaluation starts Keras's running means anew, which the epoch goes on with.
        variables = self.model.metrics_variables
        means = [keras.ops.convert_to_numpy(variable) for variable in variables]
        results = self.model.evaluate(*self.data, return_dict=True, **self.arguments)
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)
        step = count(self.model.phase_iterations)
        self.history.append({"phase": self.model.phase, "step": step, **results})
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})


class LossWarmup(keras.callbacks.Callback):
    """Lets losses of the distillation grow from nothing to their weights, in equal steps.

    The steps of one execution (`steps_per_execution`) share a weight.

    Args:
        steps: at this step of the distillation they have their full weights, at
            least 1.
        losses: which, of `"logits_loss"`, `"feature_map_loss"` and
            `"reconstruction_loss"`. Defaults to the first two.

    Raises:
        ValueError: for fewer steps than one, or an unknown loss.

    Example:

    >>> history = nern.fit(images, callbacks=[keras_nern.callbacks.LossWarmup(100)])
    """

    def __init__(self, steps: int, losses: Collection[str] = DISTILLED) -> None:
        super().__init__()
        checks.integer("steps", steps, least=1)
        known = ("reconstruction_loss", *DISTILLED)
        if not set(losses) <= set(known):
            raise ValueError(f"losses must be among {known}. Received: losses={losses!r}")
        self.steps = steps
        self.losses = tuple(losses)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        share = 1.0
        if self.model.phase == "distillation":
            share = min(1.0, (count(self.model.phase_iterations) + 1) / self.steps)
        self.model.scale_losses(**dict.fromkeys(self.losses, share))


class SwitchPhase(keras.callbacks.Callback):
    """Ends the reconstruction when the kernels are near enough, and lets `fit` distil.

    The default learning rate falls over the whole of `reconstruction_steps`, and its
    end brings much of the fit: with it, a shorter phase is better than one cut short.

    Args:
        relative_error: the relative squared error of all weights that is enough.
        frequency: steps between looks at it; the phase ends with the step after the
            look. Defaults to `100`.

    Raises:
        ValueError: for a negative error or a frequency below 1.

    Example:

    >>> enough = keras_nern.callbacks.SwitchPhase(relative_error=0.05)
    >>> history = nern.fit(images, callbacks=[enough])
    """

    def __init__(self, relative_error: float, frequency: int = 100) -> None:
        super().__init__()
        if not relative_error >= 0:
            raise ValueError(
                f"relative_error must not be negative. Received: relative_error={relative_error!r}"
            )
        checks.integer("frequency", frequency, least=1)
        self.relative_error = relative_error
        self.frequency = frequency
        self._every = Every(frequency)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._every.start()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # Before a step, not after one: weights are backed up between the two, and a
        # fit that is restored has to look at them as well.
        model = self.model
        if model.phase != "reconstruction" or not self._every.has_come(model):
            return
        if model.relative_error() <= self.relative_error:
            model.finish_reconstruction()


class Every:
    """Tells, execution by execution, which took its phase to a multiple of so many steps.

    With several steps in an execution it may have gone past one. After a restart it is taken
    that the last execution was a full one.

    Args:
        frequency: the number of steps.
    """

    def __init__(self, frequency: int) -> None:
        self.frequency = frequency
        self._last: tuple[str, int] | None = None

    def start(self) -> None:
        """Forgets: a fit begins."""
        self._last = None

    def has_come(self, model: NeRNModel) -> bool:
        """Whether the execution since the last call did; to be called after each, once."""
        steps = count(model.phase_iterations)
        before = steps - model.steps_per_execution
        if self._last is not None and self._last[0] == model.phase:
            before = self._last[1]
        self._last = (model.phase, steps)
        return steps // self.frequency > max(0, before) // self.frequency


# Kernels and their errors for TensorBoard, beside what `keras.callbacks.TensorBoard` writes.
#
# Keras's callback writes the losses and metrics of a fit. What it cannot know are the kernels:
# how well each layer's are predicted,
#
#     layer_error/NAME    sum (W - W^)^2 / sum W^2   of that layer
#     kernels/NAME        the largest original kernels to the left, as predicted to the right
#
# Each phase has a folder of its own, a run in TensorBoard, whose steps count from its beginning.


class KernelSummaries(keras.callbacks.Callback):
    """Writes pictures of kernels, and each layer's error, for TensorBoard.

    Args:
        log_dir: folder of the runs `reconstruction` and `distillation`; may be the one
            given to `keras.callbacks.TensorBoard`.
        frequency: steps of either phase between summaries; or `"epoch"` for one before
            the first epoch and after each, which leaves out the steps of a reconstruction
            before the epochs. Defaults to `"epoch"`.
        layers: names of the kernels to draw, as `NeRNModel.predict_kernels` has them;
            `None` for all. Errors are written of all. Defaults to `None`.
        limit: kernels of a layer to draw, at most. Defaults to `64`.

    Raises:
        ValueError: for another frequency or a limit below 1; when a fit begins, for layers
            that are not represented.
        ImportError: where TensorBoard is not installed.

    Example:

    >>> callbacks = [
    ...     keras.callbacks.TensorBoard("logs", update_freq=100),
    ...     keras_nern.KernelSummaries("logs", frequency=500),
    ... ]
    >>> history = nern.fit(images, epochs=5, callbacks=callbacks)

    Then `tensorboard --logdir logs`.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        frequency: int | str = "epoch",
        layers: Sequence[str] | None = None,
        limit: int = 64,
    ) -> None:
        super().__init__()
        if isinstance(frequency, str) and frequency != "epoch":
            raise ValueError(
                f'frequency must be "epoch" or a number of steps. Received: frequency={frequency!r}'
            )
        if not isinstance(frequency, str):
            checks.integer("frequency", frequency, least=1)
        checks.integer("limit", limit, least=1)
        try:
            importlib.import_module("tensorboard")
        except ImportError as error:
            raise ImportError(
                "KernelSummaries needs `pip install keras-nern[tensorboard]`"
            ) from error
        self.log_dir = pathlib.Path(log_dir)
        self.frequency = frequency
        self._every = None if isinstance(frequency, str) else Every(frequency)
        self.layers = layers
        self.limit = limit
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        known = list(self.model.original_kernels())
        unknown = sorted(set(self.layers or ()) - set(known))
        if unknown:
            raise ValueError(f"layers must be among {known}. Received: {unknown}")
        if self._every:
            self._every.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._every and self._every.has_come(self.model):
            self._write()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.frequency == "epoch" and count(self.model.phase_iterations) == 0:
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.frequency == "epoch":
            self._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write(self) -> None:
        model, step = self.model, count(self.model.phase_iterations)
        if model.phase not in self._writers:
            folder = str(self.log_dir / model.phase)
            self._writers[model.phase] = tf.summary.create_file_writer(folder)
        writer = self._writers[model.phase]
        originals, predicted = model.original_kernels(), model.predict_kernels()
        # Keras's TensorBoard lets nothing be recorded between its own summaries.
        with writer.as_default(step), tf.summary.record_if(True):
            for name, original in originals.items():
                error = relative_error(original, predicted[name], 1.0)
                tf.summary.scalar(f"layer_error/{name}", error)
            for name in originals if self.layers is None else self.layers:
                image = kernel_image(originals[name], predicted[name], self.limit)
                tf.summary.image(f"kernels/{name}", image[None])
        writer.flush()
