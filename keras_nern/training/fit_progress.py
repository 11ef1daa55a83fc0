"""What a fit shows while it runs: the present losses, and how long the rest will take.

The mean of a loss over all steps of a phase is far above the present loss. What a fit shows, and
the curves of its history, are therefore moving means over about the last 1 / (1 - d) = 50 steps.
With the value v_i of step i,

    mean_t = sum_{i <= t} d^(t - i) v_i / sum_{i <= t} d^(t - i),    d = 0.98.

The means lie in a variable. A step only updates it; a fit reads it a few times per second, and at
the steps of its curves.
"""

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_nern.training.evaluation import LOGGED, METRICS
from keras_nern.utils.backend import to_int
from keras_nern.utils.progress import Part, Progress, Screen
from keras_nern.utils.types import Tensor

DECAY = 0.98

# What a line shows, the most important first. In the phases before the distillation, the loss is
# the only term. Values of callbacks and compiled metrics follow those of the validation data.
FIRST = {
    "reconstruction": ("loss", "relative_error"),
    "curvature": ("loss", "relative_error"),
    "distillation": ("loss",),
}
RESULTS = ("agreement", "accuracy")
VALIDATION = tuple(f"val_{name}" for name in RESULTS)
LAST = ("logits_loss", "feature_map_loss", "relative_error")


class MovingMeans:
    """Moving means of the losses of training steps; see the module."""

    def __init__(self) -> None:
        # d-weighted sums of the values of METRICS and, last, of 1
        self._sums = keras.Variable(
            np.zeros(len(METRICS) + 1, "float32"),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
        )

    def reset(self) -> None:
        """Forgets all steps."""
        self._sums.assign(np.zeros(self._sums.shape, "float32"))

    def update(self, terms: Mapping[str, Tensor]) -> None:
        """Adds the scalars of a step, by names in `METRICS`."""
        values = [keras.ops.cast(terms.get(name, 0.0), "float32") for name in METRICS]
        step = keras.ops.stack([*values, keras.ops.ones((), "float32")])
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            step = context.all_reduce(tf.distribute.ReduceOp.MEAN, step)
        self._sums.assign(DECAY * keras.ops.convert_to_tensor(self._sums) + step)

    def read(self, phase: str) -> dict[str, float]:
        """The means of what a phase logs, which waits for the last step; empty after `reset`."""
        *sums, count = keras.ops.convert_to_numpy(self._sums).astype("float64").tolist()
        if not count:
            return {}
        return {name: sums[METRICS.index(name)] / count for name in LOGGED[phase]}


class FitProgress(keras.callbacks.Callback):
    """Shows the progress of the phases and epochs of a fit.

    It stands last in a list of callbacks, because it shows values that others log. It reads the
    means before a step, so that Keras need not wait for every step.

    Args:
        means: the moving means.
        verbose: 0 to show nothing, 1 to show lines during a phase, 2 for a line after it and after
            each epoch.
        with_epochs: whether to show epochs, which a `keras.callbacks.ProgbarLogger` shows as well.
    """

    looks_at_steps = False  # on_train_batch_end only looks at what others have logged

    def __init__(self, means: MovingMeans, verbose: int, with_epochs: bool) -> None:
        super().__init__()
        self.screen = Screen()
        self._means = means
        self._verbose = verbose
        self._with_epochs = with_epochs
        self._progress: Progress | None = None  # of the phase
        self._phase = ""
        self._epoch_length: int | None = None
        self._first_epoch: int | None = None  # None in a phase without epochs
        self._epochs = 1
        self._epoch = 0
        self._epoch_start = 0  # steps of the phase before the epoch
        self._others: dict[str, float] = {}  # values of validation data and callbacks

    def say(self, text: str) -> None:
        """Shows a line of text."""
        if self._verbose:
            self.screen.end(text)

    def begin_phase(
        self,
        phase: str,
        epoch_length: int | None,
        epochs: int,
        first_epoch: int | None,
        done: int,
    ) -> None:
        """Begins a phase.

        Args:
            phase: name of the phase.
            epoch_length: steps per epoch, or of a phase without epochs; `None` if unknown.
            epochs: number of the last epoch.
            first_epoch: index of the first epoch; `None` for a phase without epochs.
            done: steps of the phase that an earlier fit completed.
        """
        self._phase, self._epoch_length = phase, epoch_length
        self._first_epoch, self._epochs = first_epoch, epochs
        self._epoch_start = 0
        self._others = {}
        total = None if epoch_length is None else epoch_length * (epochs - (first_epoch or 0))
        shows = self._verbose and (first_epoch is None or self._with_epochs)
        self._progress = None
        if shows:
            self._progress = Progress(total, verbose=self._verbose, screen=self.screen, done=done)

    def end_phase(self, relative_error: float) -> None:
        """Ends a phase without epochs.

        Args:
            relative_error: the error of all kernels, which is shown in place of its mean.
        """
        if self._progress is not None:
            values = {**self._values(), "relative_error": relative_error}
            self._progress.end(to_int(self.model.phase_iterations), values)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        if self._epoch_length is not None and self._first_epoch is not None:
            self._epoch_start = (epoch - self._first_epoch) * self._epoch_length

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        done = self._epoch_start + batch
        if self._progress is not None and self._progress.is_due(done):
            self._progress.update(done, self._values(), self._part(batch))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._note(logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._note(logs)
        if self._progress is None:
            return
        done = to_int(self.model.phase_iterations)
        self._progress.end(done, self._values(), self._part(done - self._epoch_start))
        if self._epoch_length is None:
            self._epoch_start = done

    def _note(self, logs: dict | None) -> None:
        """Keeps the numbers that the steps of a phase do not log."""
        for name, value in (logs or {}).items():
            if name not in LOGGED[self._phase] and isinstance(value, numbers.Real):
                self._others[name] = float(value)

    def _part(self, done: int) -> Part:
        is_one_of_many = self._first_epoch is not None and self._epochs > 1
        title = f"Epoch {self._epoch + 1}/{self._epochs}: " if is_one_of_many else ""
        return Part(title, done, self._epoch_length)

    def _values(self) -> dict[str, float]:
        """The values to show, in their order."""
        values = {**self._means.read(self._phase), **self._others}
        others = [name for name in self._others if name.removeprefix("val_") not in METRICS]
        order = dict.fromkeys((*FIRST[self._phase], *VALIDATION, *others, *LAST))
        return {name: values[name] for name in order if name in values}


class EvaluationProgress(keras.callbacks.Callback):
    """Shows the progress of an evaluation, and its results.

    Args:
        verbose: 1 to show lines during the evaluation, 2 for a line at its end.
    """

    def __init__(self, verbose: int) -> None:
        super().__init__()
        self._verbose = verbose
        self._progress: Progress | None = None
        self._done: float = 0  # with the steps that have begun

    def on_test_begin(self, logs: dict | None = None) -> None:
        self._progress = Progress(self.params["steps"], verbose=self._verbose)

    def on_test_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        assert self._progress is not None
        self._progress.update(batch)
        self._done = min(batch + self.model.steps_per_execution, self.params["steps"] or math.inf)

    def on_test_end(self, logs: dict | None = None) -> None:
        assert self._progress is not None
        results = logs or {}
        compiled = [name for name in results if name not in METRICS]
        order = dict.fromkeys((*RESULTS, *compiled, "relative_error", "loss", *LAST))
        self._progress.end(
            int(self._done), {name: results[name] for name in order if name in results}
        )


def with_progress(
    batches: Iterable, images: int, verbose: int, screen: Screen | None = None
) -> Iterator:
    """Yields batches of inputs for the curvature and shows how many of `images` they held.

    Args:
        batches: an iterable of inputs.
        images: the number of images that batches may have.
        verbose, screen: as for `utils.progress.Progress`; a `verbose` of 0 shows nothing.
    """
    progress = Progress(images, "image", verbose, screen) if verbose else None
    if progress is not None:
        progress.screen.end(f"Curvature of the losses, from up to {images} images:")
    count = 0
    for batch in batches:
        yield batch
        count += len(keras.tree.flatten(batch)[0])
        if progress is not None:
            progress.update(count)
    if progress is not None:
        progress.end(count, part=Part("", count, count))  # there may be fewer images
