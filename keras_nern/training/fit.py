"""How a representation learns.

A fit has two phases (Ashkenazi et al., ICLR 2023, sections 3.1 and 3.3):

* *reconstruction* needs no images. Each step draws a batch of kernels, predicts
  them from their coordinates and takes the loss  a_1 L_rec.
* *distillation* rebuilds the whole network from predicted kernels, runs it beside
  the original on a batch of images and takes  a_1 L_rec + a_2 L_logits + a_3 L_maps.

Both networks run in inference mode, and only the predictor learns. The losses are
those of `losses`. Where the paper trains the sum from the start for hundreds of
epochs, the phases here are apart: the first is cheap and goes most of the way, the
second needs few, small steps.
"""

import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.data.inputs import never_ends, steps_in, unpacked
from keras_nern.data.noise import NoiseDataset
from keras_nern.predictor.centering import apply_centered_gradients
from keras_nern.training.fit_callbacks import BeforeTheEpochs, FitCallbacks
from keras_nern.training.objective import WEIGHTED
from keras_nern.training.settings import RepresentationCompiler
from keras_nern.utils.backend import count, needs_tensorflow
from keras_nern.utils.types import Tensor

# The length of an epoch that cannot be told: the rate then stays at its peak.
UNKNOWN_STEPS = 10**9


class RepresentationTrainer(RepresentationCompiler):
    """The training half of `NeRNModel`, as `keras.Model` keeps its own in a Trainer.

    `NeRNModel` calls `_start_training` at the end of its constructor.
    """

    def _start_training(self) -> None:
        self._start_evaluation()
        self.reconstruction_iterations = self._counter("reconstruction_iterations")
        self.phase_iterations = self._counter("phase_iterations")
        self._seed = keras.random.SeedGenerator(name="sampling")
        self.built = True
        self.phase = "reconstruction"
        self.compile()

    def _counter(self, name: str) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Iterable[int] = 1,
    ) -> keras.callbacks.History:
        """Trains the representation.

        With images, the reconstruction phase runs first, unless its steps are done
        already, with a progress bar of its own; then `epochs` of distillation. Labels
        are not used for training. Without images, `epochs` times `steps_per_epoch`
        steps of reconstruction.

        Args:
            x: images or (images, labels): arrays, a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or a generator; `None` to reconstruct only.
            y: labels, where `x` is an array.
            steps_per_epoch: required where `x` is `None` or never ends. The default
                optimizer needs it, too, where the length of `x` cannot be told, as of
                a generator: without, its rate stays at the peak.
            batch_size, epochs, verbose, callbacks, validation_split, validation_data,
                shuffle, class_weight, sample_weight, initial_epoch, validation_steps,
                validation_batch_size, validation_freq: as for `keras.Model.fit`; what
                callbacks see is told in `lifecycle`. Weights do not count in training,
                for which labels do not either; those of `sample_weight` do in
                `validation_split`'s part.

        Returns:
            A `keras.callbacks.History` of the epochs. Its attribute
            `reconstruction` holds the same dict for the phase that ran before them,
            empty where none did, and `places` the epochs of each value.

        Raises:
            ValueError: before any training, where `x` is empty or its images do
                not fit the base, `steps_per_epoch` or second moments are missing,
                labels or weights are not as many as images, or arguments do not go with
                the kind of `x`.
            RuntimeError: on another Keras backend than TensorFlow.
        """
        needs_tensorflow("fit")
        x, y, sample_weight = unpacked(x, y, sample_weight, self._original.input_shapes)
        # as Keras has it
        validation_split = 0.0 if validation_data is not None else validation_split or 0.0
        if not 0 <= validation_split < 1:
            raise ValueError(
                "validation_split must be at least 0 and below 1. "
                f"Received: validation_split={validation_split!r}"
            )
        if x is not None:
            x = self.examine(x, y, validation_split=validation_split, sample_weight=sample_weight)
        if steps_per_epoch is None and (x is None or never_ends(x)):
            raise ValueError(
                "fit needs steps_per_epoch where x is None, to reconstruct only, or never ends. "
                f"Received: x={x!r}, steps_per_epoch=None"
            )
        if steps_per_epoch is not None and not steps_per_epoch >= 1:
            raise ValueError(
                f"steps_per_epoch must be at least 1. Received: steps_per_epoch={steps_per_epoch!r}"
            )
        if validation_data is not None:
            validation_data = self.examine(validation_data, name="validation_data")
            if validation_steps is None and never_ends(validation_data):
                raise ValueError(
                    "fit needs validation_steps where validation_data never ends. "
                    "Received: validation_steps=None"
                )
        if isinstance(validation_freq, Iterable):  # Keras takes no other than lists
            validation_freq = list(validation_freq)
        else:
            validation_freq = operator.index(validation_freq)  # of NumPy's integers, too
        reconstructs = x is None or self._reconstruction_steps_left()
        if self.layer_output_weight and reconstructs and not self._runtime.moments:
            raise ValueError(
                "layer_output_weight needs the second moments of the layers' inputs: call "
                "gather_second_moments(images) before fit. Received: "
                f"layer_output_weight={self.layer_output_weight!r}"
            )
        steps = steps_per_epoch or steps_in(x, batch_size, validation_split)
        callbacks = FitCallbacks(callbacks, self, verbose=verbose, epochs=epochs, steps=steps)
        self._check_callbacks(callbacks.callbacks)
        self._refresh_targets()  # the base may have been trained on meanwhile
        self._build_metrics((x, y, sample_weight) if validation_data is None else validation_data)
        try:
            self._fit_both(
                callbacks,
                x,
                steps,
                y=y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                sample_weight=sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )
        finally:  # also after Ctrl-C
            self.history = callbacks.history
            self.scale_losses(**dict.fromkeys(WEIGHTED, 1.0))
        return callbacks.history

    def _fit_both(
        self, callbacks: FitCallbacks, x: Any, steps: int | None, **arguments: Any
    ) -> None:
        self.phase_iterations.assign(0)
        callbacks.begin()
        if self.stop_training:
            callbacks.end()
            return
        restored = callbacks.can_restore and count(self.phase_iterations) > 0
        if x is not None and not (restored and self.phase == "distillation"):
            history = self._reconstruct_first(callbacks, arguments["verbose"], restored)
            callbacks.history.reconstruction = history
            if self.stop_training and not self.reconstruction_finished:
                callbacks.end()
                return
        phase = "reconstruction" if x is None else "distillation"
        goes_on = restored and self.phase == phase
        if not goes_on:
            self.phase_iterations.assign(0)
        seen = count(self.phase_iterations)
        callbacks.drop(seen)
        if goes_on:
            arguments["validation_freq"] = callbacks.validation_epochs(
                arguments["validation_freq"], arguments["epochs"]
            )
        try:
            self._run(
                phase,
                steps or UNKNOWN_STEPS,
                seen if goes_on else None,
                x=x,
                callbacks=callbacks,
                **arguments,
            )
        finally:
            if callbacks.is_dropping:  # else the next fit would drop batches, too
                self.train_function = None
        callbacks.check_dropped(seen)
        callbacks.end()

    def finish_reconstruction(self) -> None:
        """Ends the reconstruction at this step: a fit under way goes on to distil.

        What is saved from here on remembers it, and later fits only distil, until
        `compile` sets the phases anew.
        """
        self.reconstruction_finished = True
        if self.phase == "reconstruction":
            self.stop_training = True

    def _build_metrics(self, data: Any) -> None:
        """Lets Keras build compiled metrics on data that have labels.

        Under a distribution strategy it does so before the first step, but the
        reconstruction's steps have neither images nor labels.
        """
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if x is None or isinstance(x, types.GeneratorType) or not self._runtime.unbuilt_metrics:
            return
        self.evaluate(x, y, sample_weight=weight, steps=1, verbose=0)
        self._runtime.unbuilt_metrics = False

    def _reconstruction_steps_left(self) -> int:
        if self.reconstruction_finished:
            return 0
        return max(0, self.reconstruction_steps - count(self.reconstruction_iterations))

    def _reconstruct_first(
        self, callbacks: FitCallbacks, verbose: int | str, restored: bool
    ) -> dict[str, list]:
        """Runs what is left of the reconstruction; returns its history's dict."""
        left = self._reconstruction_steps_left()
        if not left:
            if restored:  # at its last step: what Keras does after it was not done
                self.optimizer.finalize_variable_values(self.trainable_variables)
            return {}
        if verbose:
            print(f"Reconstruction, {left} steps without images:")
        history = self._run(
            "reconstruction",
            left,
            0 if restored else None,
            steps_per_epoch=left,
            verbose=verbose,
            callbacks=[BeforeTheEpochs(callbacks, count(self.phase_iterations))],
        )
        if verbose and not self._reconstruction_steps_left():
            print("Distillation:")
        return history.history

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
        """Runs epochs of a phase; `done` steps of them were done by a fit that was killed."""
        if epochs > initial_epoch:  # else Keras does nothing, and no phase begins
            steps = epoch_length * (epochs - initial_epoch)
            if done is None:
                self._start_optimizer(phase, epoch_length, steps)
            else:
                self._resume_optimizer(phase, steps - done)
            self.phase = phase
        if x is None:  # Keras wants something to count the steps by, one for each replica
            replicas = self.distribute_strategy.num_replicas_in_sync
            x = tf.data.Dataset.from_tensors(np.zeros(replicas)).repeat(steps_per_epoch)
            steps_per_epoch = None
        if shuffle is None:  # Keras's default is True, and it warns where that has no effect
            # noise comes in no order; Keras would order it by Python's `random`, which draws
            # more often with several devices than with one
            unordered = (tf.data.Dataset, types.GeneratorType, NoiseDataset)
            shuffle = not isinstance(x, unordered)
        return super().fit(
            x=x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            **arguments,
        )

    def make_train_function(self, force: bool = False) -> Callable | None:
        if self._runtime.weights is None:
            self._refresh_targets()
        force = force or self._runtime.traced_phase != self.phase
        self._runtime.traced_phase = self.phase
        return super().make_train_function(force)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        distilling = self.phase == "distillation"
        if distilling:
            teacher = self._original.observe(inputs)
        with tf.GradientTape() as tape:
            if distilling:
                terms, means = self._distillation_terms(inputs, teacher)
            else:
                terms, means = self._reconstruction_terms()
            multipliers = keras.ops.convert_to_tensor(self._runtime.multipliers)
            loss = self._weighted(terms, multipliers)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(scaled, self.trainable_variables)
        if self.gradient_centering:
            apply_centered_gradients(
                self.optimizer, gradients, self.trainable_variables, self.predictor, means
            )
        else:
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.phase_iterations.assign_add(1)
        if not distilling:
            self.reconstruction_iterations.assign_add(1)
        batch = keras.ops.shape(keras.tree.flatten(inputs)[0])[0] if distilling else None
        return self._track({"loss": loss, **terms}, batch)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> None:
        """Is not for this model, whose phases and rates `fit` plans.

        Args:
            *args: as for `keras.Model.train_on_batch`.
            **kwargs: as for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "NeRNModel is trained by fit, which plans phases and learning rates: "
            "fit(images, steps_per_epoch=1), or fit(steps_per_epoch=1) to reconstruct. "
            "Received: a call of train_on_batch"
        )
