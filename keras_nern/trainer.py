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

import types

import keras
import numpy as np
import tensorflow as tf

from keras_nern.compilation import RepresentationCompiler
from keras_nern.inputs import never_ends, steps_in
from keras_nern.lifecycle import BeforeTheEpochs, FitCallbacks
from keras_nern.objective import count

# The length of an epoch that cannot be told: the rate then stays at its peak.
UNKNOWN_STEPS = 10**9


class RepresentationTrainer(RepresentationCompiler):
    """The training half of `NeRNModel`, as `keras.Model` keeps its own in a Trainer.

    `NeRNModel` calls `_start_training` at the end of its constructor.
    """

    def _start_training(self):
        self._start_evaluation()
        self.reconstruction_iterations = self._counter("reconstruction_iterations")
        self.phase_iterations = self._counter("phase_iterations")
        self._seed = keras.random.SeedGenerator(name="sampling")
        self.built = True
        self.phase = "reconstruction"
        self.compile()

    def _counter(self, name):
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
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        *,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Trains the representation.

        With images, the reconstruction phase runs first, unless its steps are done
        already, with a progress bar of its own; then `epochs` of distillation. Labels
        are not used for training. Without images, `epochs` times `steps_per_epoch`
        steps of reconstruction.

        Args:
            x: images or (images, labels): arrays, a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or a generator; `None` to reconstruct only.
            y: labels, where `x` is an array.
            steps_per_epoch: required where `x` is `None`.
            batch_size, epochs, verbose, callbacks, validation_split, validation_data,
                initial_epoch, **kwargs: as for `keras.Model.fit`. Callbacks and
                validation belong to the phase that `x` selects.

        Returns:
            A `keras.callbacks.History` of the epochs. Its attribute
            `reconstruction` holds the same dict for the phase that ran before them,
            empty where none did.

        Raises:
            ValueError: before any training, where `x` is empty or its images do
                not fit the base, or `steps_per_epoch` is missing.
        """
        self._check_callbacks(callbacks)
        if self.layer_output_weight and self._runtime.moments is None:
            raise ValueError(
                "layer_output_weight needs the second moments of the layers' inputs: call "
                "gather_second_moments(images) before fit. Received: "
                f"layer_output_weight={self.layer_output_weight!r}"
            )
        if validation_data is not None:
            validation_data = self.examine(validation_data, name="validation_data")
        if x is None and steps_per_epoch is None:
            raise ValueError(
                "Without images fit needs steps_per_epoch, the reconstruction steps of an "
                "epoch. Received: x=None, steps_per_epoch=None"
            )
        if isinstance(x, tuple) and y is None:
            x, y, kwargs["sample_weight"] = keras.utils.unpack_x_y_sample_weight(x)
        if x is not None:
            x = self.examine(x, y)
            if steps_per_epoch is None and never_ends(x):
                raise ValueError(
                    "fit needs steps_per_epoch where x never ends. Received: steps_per_epoch=None"
                )
        self._build_metrics((x, y) if validation_data is None else validation_data)
        self._refresh_targets()  # the base may have been trained on meanwhile
        steps = steps_per_epoch or steps_in(x, batch_size, validation_split)
        callbacks = FitCallbacks(callbacks, self, verbose=verbose, epochs=epochs, steps=steps)
        self.phase_iterations.assign(0)
        restored = callbacks.begin() is not None
        first = {}
        if x is not None and not (restored and self.phase == "distillation"):
            first = self._reconstruct_first(callbacks, verbose, restored)
            if self._reconstruction_steps_left():  # a callback stopped it
                callbacks.end()
                callbacks.history.reconstruction = first
                return callbacks.history
        phase = "reconstruction" if x is None else "distillation"
        if restored and self.phase == phase:
            callbacks.drop(count(self.phase_iterations))
        else:
            self.phase_iterations.assign(0)
            restored = False
        kwargs["validation_freq"] = callbacks.validation_epochs(
            kwargs.get("validation_freq", 1), epochs
        )
        self._run(
            phase,
            steps or UNKNOWN_STEPS,
            restored,
            x=x,
            y=y,
            batch_size=batch_size,
            epochs=epochs,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )
        callbacks.end()
        callbacks.history.reconstruction = first
        self.history = callbacks.history
        return callbacks.history

    def _build_metrics(self, data):
        """Lets Keras build compiled metrics on data that have labels.

        Under a distribution strategy it does so before the first step, but the
        reconstruction's steps have neither images nor labels.
        """
        data = data if isinstance(data, (tuple, list)) else (data,)
        compiled = self._runtime.unbuilt_metrics
        if compiled and data[0] is not None and not isinstance(data[0], types.GeneratorType):
            self.evaluate(*data, steps=1, verbose=0)
            self._runtime.unbuilt_metrics = False

    def _reconstruction_steps_left(self):
        return max(0, self.reconstruction_steps - count(self.reconstruction_iterations))

    def _reconstruct_first(self, callbacks, verbose, restored):
        """Runs what is left of the reconstruction; returns its history's dict."""
        left = self._reconstruction_steps_left()
        if not left:
            return {}
        if verbose:
            print(f"Reconstruction, {left} steps without images:")
        history = self._run(
            "reconstruction",
            left,
            restored,
            steps_per_epoch=left,
            verbose=verbose,
            callbacks=[BeforeTheEpochs(callbacks, count(self.phase_iterations))],
        )
        if verbose and not self._reconstruction_steps_left():
            print("Distillation:")
        return history.history

    def _run(
        self,
        phase,
        epoch_length,
        restored,
        x=None,
        epochs=1,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        if not restored:  # else optimizer and plan are those of the fit that goes on
            self._start_optimizer(phase, epoch_length, epochs - initial_epoch)
        self.phase = phase
        if x is None:  # Keras wants something to count the steps by, one for each replica
            replicas = self.distribute_strategy.num_replicas_in_sync
            x = tf.data.Dataset.from_tensors(np.zeros(replicas)).repeat(steps_per_epoch)
            steps_per_epoch = None
        # Keras's default is True, and it warns where that has no effect.
        kwargs.setdefault("shuffle", not isinstance(x, (tf.data.Dataset, types.GeneratorType)))
        return super().fit(
            x=x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )

    def make_train_function(self, force=False):
        if self._runtime.targets is None:
            self._refresh_targets()
        force = force or self._runtime.traced_phase != self.phase
        self._runtime.traced_phase = self.phase
        return super().make_train_function(force)

    def train_step(self, data):
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        distilling = self.phase == "distillation"
        if distilling:
            teacher = self._original.observe(images)
        with tf.GradientTape() as tape:
            if distilling:
                terms = self._distillation_terms(images, teacher)
            else:
                terms = self._reconstruction_terms()
            multipliers = keras.ops.convert_to_tensor(self._runtime.multipliers)
            loss = self._weighted(terms, multipliers)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.phase_iterations.assign_add(1)
        if not distilling:
            self.reconstruction_iterations.assign_add(1)
        return self._track({"loss": loss, **terms})
