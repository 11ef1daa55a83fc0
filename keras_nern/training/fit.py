"""The phases of a fit.

* *Reconstruction* needs no images. Each step draws a batch of kernels, predicts them from their
  coordinates and minimizes  a_1 L_rec.
* *Curvature* needs images once, to gather the curvature of the distillation losses. Each step
  predicts all kernels and minimizes  L_curvature, the second-order approximation of
  a_2 L_logits + a_3 L_maps.
* *Distillation* rebuilds the whole network from predicted kernels, runs it and the original on the
  same batch of images and minimizes  a_1 L_rec + a_2 L_logits + a_3 L_maps.

Both networks run in inference mode, and only the predictor learns. The paper (Ashkenazi et al.,
ICLR 2023, sections 3.1 and 3.3) minimizes the sum for hundreds of epochs from the start. Here the
phases are separate: the first is cheap and removes most of the error, so that the second needs few
and small steps.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.data.inputs import (
    are_arrays,
    first_batches,
    input_batches,
    never_ends,
    steps_per_epoch_of,
    unpack,
    unpack_validation,
)
from keras_nern.data.noise import NoiseDataset
from keras_nern.training.evaluation import LOGGED
from keras_nern.training.fit_callbacks import FitCallbacks, PhaseCallbacks
from keras_nern.training.fit_progress import with_progress
from keras_nern.training.objective import Objective
from keras_nern.training.optimizer import PhaseOptimizer
from keras_nern.training.settings import LOSSES, PHASES, Settings
from keras_nern.utils import checks
from keras_nern.utils.backend import require_tensorflow, to_int

# Length assumed for an epoch of unknown length, for which the learning rate stays at its peak.
UNKNOWN_STEPS = 10**9
CURVATURE_IMAGES = 512  # from which `fit` gathers the curvature


class PhasedFit:
    """One call of `NeRNModel.fit`.

    Args:
        model: a compiled `NeRNModel`.
        keras_fit: the model's `keras.Model.fit`, which runs the epochs of a phase.
    """

    def __init__(
        self, model: keras.Model, keras_fit: Callable[..., keras.callbacks.History]
    ) -> None:
        self._model = model
        self._keras_fit = keras_fit
        self._settings: Settings = model._settings
        self._objective: Objective = model._objective
        self._signature = model._original.signature
        self._optimizer = PhaseOptimizer(model, model._schedule)

    def run(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        callbacks: Any,
        class_weight: dict[int, float] | None,
        **arguments: Any,
    ) -> keras.callbacks.History:
        """Checks the arguments of `NeRNModel.fit`, then runs the phases.

        Args:
            x, y, sample_weight, callbacks, class_weight: as for `NeRNModel.fit`.
            **arguments: the other arguments of `NeRNModel.fit`.
        """
        require_tensorflow("fit")
        model = self._model
        arguments = _checked(arguments)
        class_weight = _checked_class_weight(class_weight)
        x, y, sample_weight = unpack(x, y, sample_weight, self._signature)
        x, arguments = self._check(x, y, sample_weight, arguments)
        if class_weight is not None:
            self._check_class_weight(x, y, sample_weight)
        steps = arguments["steps_per_epoch"] or steps_per_epoch_of(
            x, arguments["batch_size"], arguments["validation_split"]
        )
        fit_callbacks = FitCallbacks(
            callbacks,
            model,
            verbose=arguments["verbose"],
            epochs=arguments["epochs"],
            steps=steps,
        )
        for callback in fit_callbacks.callbacks:
            self._optimizer.check_callback(callback)
        # The base may have been trained since the last fit.
        self._objective.refresh_targets(self._settings)
        held_out = arguments["validation_data"]
        if held_out is None:
            held_out = (x, y, sample_weight)
        evaluated = self._try_evaluation(held_out, fit_callbacks.monitors, arguments)
        fit_callbacks.check(self._logged(x, evaluated, arguments))
        arguments["verbose"] = 0  # `fit_callbacks.progress` shows what there is to show
        try:
            x = self._gather_curvature(x, arguments["batch_size"], fit_callbacks)
            arguments |= {"y": y, "sample_weight": sample_weight, "class_weight": class_weight}
            self._run_phases(fit_callbacks, x, steps, **arguments)
        finally:  # also after Ctrl-C
            fit_callbacks.progress.screen.close()
            fit_callbacks.finite_check.end()
            self._optimizer.end()
            model.history = fit_callbacks.history
            model.scale_losses(**dict.fromkeys(LOSSES, 1.0))
        return fit_callbacks.history

    def _check(
        self, x: Any, y: Any, sample_weight: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Raises a ValueError for data that would fail later; returns checked data."""
        model = self._model
        model._original.check_copyable()
        if not model.trainable_variables:
            raise ValueError(
                "Expected a representation with a predictor or a residual to train: "
                "compress(nern, max_bytes=...) adds a residual. Received: one with neither"
            )
        if x is None and model.residual:
            raise ValueError(
                "A residual is trained on images, without a reconstruction. Received: x=None"
            )
        split, validation_data = arguments["validation_split"], arguments["validation_data"]
        split = 0.0 if validation_data is not None else split  # as in Keras
        if x is not None:
            x = model.check_data(x, y, validation_split=split, sample_weight=sample_weight)
        elif y is not None or sample_weight is not None or split:
            raise ValueError(
                "fit needs x for y, sample_weight and validation_split. Received: x=None"
            )
        count = keras.tree.flatten(x)[0].shape[0] if split else None
        if count is not None and not 0 < math.floor(count * (1 - split)) < count:
            raise ValueError(
                f"validation_split must leave images for training and validation. Received: "
                f"validation_split={split!r} of {count} images"
            )
        steps = arguments["steps_per_epoch"]
        if steps is None and (x is None or never_ends(x)):
            raise ValueError(
                "fit needs steps_per_epoch if x is None (reconstruction only) or never ends. "
                f"Received: x={x!r}, steps_per_epoch=None"
            )
        if validation_data is not None:
            held_x, held_y, weight = unpack_validation(validation_data)
            held_x = model.check_data(held_x, held_y, "validation_data", sample_weight=weight)
            validation_data = keras.utils.pack_x_y_sample_weight(held_x, held_y, weight)
            if arguments["validation_steps"] is None and never_ends(held_x):
                raise ValueError(
                    "fit needs validation_steps if validation_data never ends. "
                    "Received: validation_steps=None"
                )
        checked = {"validation_split": split, "validation_data": validation_data}
        return x, {**arguments, **checked}

    def _check_class_weight(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Raises a ValueError for data whose images Keras cannot weight by their classes."""
        element: Any = None
        if isinstance(x, tf.data.Dataset):
            element = x.element_spec
        elif isinstance(x, keras.utils.PyDataset):
            element = x[0]
        elif x is not None and are_arrays(x):
            element = (x, y, sample_weight)
        _, labels, weights = keras.utils.unpack_x_y_sample_weight(element)
        if labels is None:
            raise ValueError(
                "class_weight needs images with labels, in arrays, a tf.data.Dataset or a "
                f"keras.utils.PyDataset. Received: x of type {type(x).__name__}, without labels or "
                "of another kind"
            )
        if weights is not None:
            raise ValueError(
                "class_weight must be None if images have weights. Received: class_weight and "
                "sample_weight"
            )
        shapes = self._model._original.label_shapes
        if shapes is not None and [len(shape) for shape in shapes.values()] != [1]:
            raise ValueError(
                "class_weight needs a base with one output that has one class per image. "
                f"Received: outputs of shapes {list(shapes.values())}"
            )

    def _try_evaluation(
        self, data: Any, monitored: bool, arguments: dict[str, Any]
    ) -> list[str] | None:
        """Evaluates one batch if compiled metrics are not built or callbacks monitor values.

        Metrics that the labels do not suit fail here. Under a distribution strategy, Keras builds
        them before the first step, but the steps of the reconstruction have no images nor labels.

        Args:
            data: `(x, y, sample_weight)` or a dataset.
            monitored: whether callbacks monitor values.
            arguments: of the fit.

        Returns:
            The names of the results; `None` if no batch was evaluated.
        """
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if x is None or isinstance(x, types.GeneratorType):
            return None
        if not (self._model._unbuilt_metrics or monitored):
            return None
        size = arguments["validation_batch_size"] or arguments["batch_size"]
        results = self._model.evaluate(
            x, y, size, sample_weight=weight, steps=1, verbose=0, return_dict=True
        )
        self._model._unbuilt_metrics = False
        return list(results)

    def _logged(
        self, x: Any, evaluated: list[str] | None, arguments: dict[str, Any]
    ) -> set[str] | None:
        """The names of the values that an epoch logs; `None` if they are unknown."""
        names = set(LOGGED["reconstruction" if x is None else "distillation"])
        if self._model.residual:
            names.add("rate_loss")
        if arguments["validation_data"] is None and not arguments["validation_split"]:
            return names
        return None if evaluated is None else names | {f"val_{name}" for name in evaluated}

    def _steps_left(self, phase: str) -> int:
        """The remaining steps of a phase before the distillation."""
        if phase == "reconstruction" and self._model.reconstruction_finished:
            return 0
        done = to_int(getattr(self._model, f"{phase}_iterations"))
        return max(0, self._settings.steps(phase) - done)

    def _gather_curvature(self, x: Any, batch_size: int | None, fit_callbacks: FitCallbacks) -> Any:
        """Gathers the curvature from the first images, before the model is restored.

        A restored fit thereby reads its data as often as an uninterrupted one.

        Returns:
            `x`, or, for a generator, an equivalent generator that still yields every batch.
        """
        model = self._model
        if x is None or self._objective.has_curvature or not self._steps_left("curvature"):
            return x
        read = x
        if isinstance(x, types.GeneratorType):
            read, x = first_batches(x, CURVATURE_IMAGES)
        batches = input_batches(read, CURVATURE_IMAGES, batch_size or 32, self._signature)
        screen = fit_callbacks.progress.screen
        batches = with_progress(batches, CURVATURE_IMAGES, fit_callbacks.verbose, screen)
        self._objective.gather_curvature(self._settings, batches, CURVATURE_IMAGES)
        model._retrace()
        return x

    def _run_phases(
        self, callbacks: FitCallbacks, x: Any, steps: int | None, **arguments: Any
    ) -> None:
        model = self._model
        model.phase_iterations.assign(0)
        callbacks.begin()
        if model.stop_training:
            callbacks.end()
            return
        restored = callbacks.can_restore and to_int(model.phase_iterations) > 0
        for phase in PHASES[:-1] if x is not None else ():
            if restored and PHASES.index(model.phase) > PHASES.index(phase):
                continue
            continues = restored and model.phase == phase
            self._run_steps(phase, callbacks, continues)
            if model.stop_training and (phase == "curvature" or not model.reconstruction_finished):
                callbacks.end()
                return
            model.stop_training = False  # `finish_reconstruction` ended that phase only
            if continues:
                restored = False
        history = callbacks.history
        epochs, initial_epoch = arguments["epochs"], arguments["initial_epoch"]
        if epochs > initial_epoch and (history.reconstruction or history.curvature):
            callbacks.progress.say("Distillation:")
        phase = "reconstruction" if x is None else "distillation"
        continues = restored and model.phase == phase
        if not continues:
            model.phase_iterations.assign(0)
        seen = to_int(model.phase_iterations)
        callbacks.skip(seen)
        callbacks.progress.begin_phase(phase, steps, epochs, initial_epoch, seen)
        if continues:
            arguments["validation_freq"] = callbacks.validation_epochs(
                arguments["validation_freq"], arguments["epochs"]
            )
        try:
            self._run(
                phase,
                steps or UNKNOWN_STEPS,
                seen if continues else None,
                x=x,
                callbacks=callbacks,
                **arguments,
            )
        finally:
            if callbacks.is_skipping:  # keeps the next fit from skipping batches
                model.train_function = None
        callbacks.check_skipped(seen)
        callbacks.end()

    def _run_steps(self, phase: str, callbacks: FitCallbacks, continues: bool) -> None:
        """Runs the remaining steps of a phase before the distillation."""
        model, left = self._model, self._steps_left(phase)
        if not left:
            if continues:  # after the last step, but before Keras finalized the weights
                model.optimizer.finalize_variable_values(model.trainable_variables)
            return
        if not continues:
            model.phase_iterations.assign(0)
        done = to_int(model.phase_iterations)
        callbacks.progress.say(f"{phase.capitalize()}, {done + left} steps without images:")
        callbacks.begin_steps(phase, done + left, done)
        self._run(
            phase,
            left,
            0 if continues else None,
            steps_per_epoch=left,
            verbose=0,
            callbacks=PhaseCallbacks(callbacks, phase, done),
        )
        callbacks.finite_check.check()
        callbacks.end_steps()

    def _run(
        self,
        phase: str,
        epoch_length: int,
        done: int | None,
        x: Any = None,
        epochs: int = 1,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        shuffle: bool | None = None,
        **arguments: Any,
    ) -> keras.callbacks.History:
        """Runs epochs of a phase; a restored fit has completed `done` of their steps."""
        model = self._model
        if epochs > initial_epoch:  # otherwise Keras runs nothing, and no phase begins
            steps = epoch_length * (epochs - initial_epoch)
            peak_rate = self._settings.peak_rate(phase)
            if done is None:
                self._optimizer.start(peak_rate, epoch_length, steps, switched=phase != model.phase)
            else:
                self._optimizer.resume(peak_rate, steps - done)
            model.phase = phase
            model._means.reset()
        if x is None:  # Keras counts steps by elements of a dataset, one for each replica
            replicas = model.distribute_strategy.num_replicas_in_sync
            x = tf.data.Dataset.from_tensors(np.zeros(replicas)).repeat(steps_per_epoch)
            steps_per_epoch = None
        if shuffle is None:  # Keras's default, True, warns if it has no effect
            # Shuffling noise has no benefit, and Keras would draw more numbers from Python's
            # `random` with several devices than with one.
            unordered = (tf.data.Dataset, types.GeneratorType, NoiseDataset)
            shuffle = not isinstance(x, unordered)
        model._finite_check.keep_state()
        return self._keras_fit(
            x=x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            **arguments,
        )


def _checked_class_weight(class_weight: Any) -> dict[int, float] | None:
    """Checks that weights are numbers of at least 0 for numbers of classes."""
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping) or not class_weight:
        raise ValueError(
            "class_weight must be a dict from classes to weights or None. "
            f"Received: class_weight={class_weight!r}"
        )
    return {
        checks.integer("A class of class_weight", one, minimum=0): checks.number(
            "A weight of class_weight", weight, minimum=0
        )
        for one, weight in class_weight.items()
    }


def _checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Checks the arguments of `NeRNModel.fit` that do not depend on the data."""
    checked = dict(arguments)
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        if checked[name] is not None:
            checked[name] = checks.integer(name, checked[name], minimum=1)
    for name in ("epochs", "initial_epoch"):
        checked[name] = checks.integer(name, checked[name], minimum=0)
    checks.one_of("verbose", checked["verbose"], ("auto", 0, 1, 2))
    checks.one_of("shuffle", checked["shuffle"], (None, True, False))
    split = checks.number("validation_split", checked["validation_split"] or 0.0, minimum=0)
    if split >= 1:
        raise ValueError(
            f"validation_split must be at least 0 and below 1. Received: validation_split={split!r}"
        )
    frequency = checked["validation_freq"]
    if isinstance(frequency, Iterable) and not isinstance(frequency, str):
        # Keras accepts only lists and Python integers.
        frequency = [checks.integer("validation_freq", one, minimum=1) for one in frequency]
    else:
        frequency = checks.integer("validation_freq", frequency, minimum=1)
    return {**checked, "validation_split": split, "validation_freq": frequency}
