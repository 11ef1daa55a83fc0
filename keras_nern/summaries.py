"""Kernels and their errors for TensorBoard, beside what `keras.callbacks.TensorBoard` writes.

Keras's callback writes the losses and metrics of a fit. What it cannot know are the kernels:
how well each layer's are predicted,

    layer_error/NAME    sum (W - W^)^2 / sum W^2   of that layer
    kernels/NAME        the largest original kernels to the left, as predicted to the right

Each phase has a folder of its own, a run in TensorBoard, whose steps count from its beginning.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_nern import checks
from keras_nern.callbacks import Every
from keras_nern.losses import relative_error
from keras_nern.mosaics import kernel_image
from keras_nern.runtime import count


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
