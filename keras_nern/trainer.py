"""How a representation learns.

A fit has two phases (Ashkenazi et al., ICLR 2023, sections 3.1 and 3.3):

* *reconstruction* needs no images. Each step draws a batch of kernels, predicts
  them from their coordinates and takes the loss  a_1 L_rec.
* *distillation* rebuilds the whole network from predicted kernels, runs it beside
  the original on a batch of images and takes  a_1 L_rec + a_2 L_logits + a_3 L_maps.

Both networks run in inference mode, and only the predictor learns. The losses are
those of `losses`. Where the paper trains the sum from the start for hundreds of
epochs, the phases here are apart: the first is cheap and goes most of the way, the
second needs few, small steps. The optimizer starts afresh with each phase: the second
loss's gradients are thousands of times those of the first, and AdamW's running averages
of the one would make it take giant steps on the other.
"""

import types

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses, sampling
from keras_nern.evaluation import RepresentationEvaluator, constant, count, is_between_workers
from keras_nern.inputs import examine, image_batches, is_pair, never_ends, steps_in
from keras_nern.lifecycle import BeforeTheEpochs, FitCallbacks
from keras_nern.moments import convolution_inputs, second_moments
from keras_nern.predictor import OUTPUT_LAYER
from keras_nern.schedules import PlannedCosineDecay

# The length of an epoch that cannot be told: the rate then stays at its peak.
UNKNOWN_STEPS = 10**9


class RepresentationTrainer(RepresentationEvaluator):
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

    def compile(
        self,
        optimizer="auto",
        reconstruction_steps=6000,
        reconstruction_learning_rate=1e-2,
        distillation_learning_rate=2.5e-4,
        kernel_sampling="uniform",
        distillation_sampling="all",
        reconstruction_weight=1.0,
        logits_weight=1e-2,
        feature_map_weight=2e-2,
        layer_output_weight=0.0,
        temperature=1.0,
        **kwargs,
    ):
        """Chooses how to train; a new model is compiled with the defaults.

        Args:
            optimizer: a Keras optimizer, its name, or `"auto"`: Muon, the output
                layer and the biases by AdamW, no weight decay, with half a cosine
                per phase (`PlannedCosineDecay`) from the two rates below. Any optimizer
                starts afresh, schedule included, where `fit` goes from
                reconstruction to distillation. Defaults to `"auto"`.
            reconstruction_steps: length of the reconstruction phase that `fit` runs
                before it distils. Defaults to `6000`.
            reconstruction_learning_rate: peak rate of the first phase under
                `"auto"`. Defaults to `1e-2`.
            distillation_learning_rate: peak rate of the second. Defaults to `2.5e-4`.
            kernel_sampling: kernels per reconstruction step: `"all"`, `"uniform"`,
                `"magnitude"` or an object of `sampling`. Defaults to `"uniform"`.
            distillation_sampling: kernels that get gradients at a distillation step;
                the others are predicted all the same. Defaults to `"all"`.
            reconstruction_weight: a_1. Defaults to `1.0`.
            logits_weight: a_2. Defaults to `1e-2`.
            feature_map_weight: a_3. Defaults to `2e-2`.
            layer_output_weight: a_4, of what the kernels' errors do to their layers'
                outputs; it needs `gather_second_moments` before `fit`. Defaults to
                `0.0`, which leaves it out.
            temperature: of the logits distillation. Defaults to `1.0`.
            **kwargs: as `keras.Model.compile` takes them, `loss` excepted:
                `metrics` are computed on the rebuilt classifier's outputs;
                `auto_scale_loss` scales the loss where the base computes in float16.

        Raises:
            ValueError: for a negative weight, step count or rate, a temperature
                that is not positive, an unknown sampling, or a `loss`.
        """
        settings = {
            "reconstruction_steps": reconstruction_steps,
            "reconstruction_learning_rate": reconstruction_learning_rate,
            "distillation_learning_rate": distillation_learning_rate,
            "reconstruction_weight": reconstruction_weight,
            "logits_weight": logits_weight,
            "feature_map_weight": feature_map_weight,
            "layer_output_weight": layer_output_weight,
        }
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative. Received: {name}={value!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive. Received: temperature={temperature!r}")
        if "loss" in kwargs:
            raise ValueError(
                "NeRNModel has its own losses; set their weights instead. "
                f"Received: loss={kwargs['loss']!r}"
            )
        settings |= {
            "temperature": temperature,
            "kernel_sampling": sampling.get(kernel_sampling),
            "distillation_sampling": sampling.get(distillation_sampling),
        }
        schedule = PlannedCosineDecay() if optimizer == "auto" else None
        if schedule:
            optimizer = keras.optimizers.Muon(
                schedule,
                weight_decay=0.0,
                adam_weight_decay=0.0,
                exclude_layers=[OUTPUT_LAYER],
            )
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if (
            self._original.computes_in_float16
            and kwargs.get("auto_scale_loss", True)
            and not scaled
        ):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer=optimizer, **kwargs)
        self.optimizer.build(self.trainable_variables)
        for name, value in settings.items():
            setattr(self, name, value)
        self._runtime.traced_phase = None
        # Kept where Keras does not track metrics, which it would then count twice.
        self._runtime.compile_arguments = kwargs
        self._runtime.unbuilt_metrics = bool(
            kwargs.get("metrics") or kwargs.get("weighted_metrics")
        )
        self._runtime.settings = list(settings)
        self._runtime.schedule = schedule

    def get_compile_config(self):
        arguments = {
            **{name: getattr(self, name) for name in self._runtime.settings},
            **self._runtime.compile_arguments,
            "optimizer": "auto" if self._runtime.schedule else self.optimizer,
        }
        return keras.saving.serialize_keras_object(arguments)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

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

    def _start_optimizer(self, phase, epoch_length, epochs):
        """Gives a new phase a fresh optimizer, and a new fit a new default schedule.

        A fit that was stopped is gone on with, where what is left of its plan is what
        is asked for now, give or take the epoch in which it was stopped.
        """
        rates = {
            "reconstruction": self.reconstruction_learning_rate,
            "distillation": self.distillation_learning_rate,
        }
        switched = phase != self.phase
        schedule = self._runtime.schedule
        now = count(self.optimizer.iterations)
        if schedule is None:  # the user's own
            if switched and now > 0:
                config = self.optimizer.get_config()
                self.optimizer = type(self.optimizer).from_config(config)
                self.optimizer.build(self.trainable_variables)
            return
        steps = max(1, epoch_length * epochs)
        left = schedule.decay_steps - now
        if not switched and now > 0 and steps - epoch_length < left <= steps:
            steps += now
        else:
            # around it may be a loss scale, which is no matter of the phase
            optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            for variable in optimizer.variables:
                variable.assign(keras.ops.zeros_like(variable))
        schedule.plan(rates[phase], steps)

    def _check_callbacks(self, callbacks):
        setters = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if self._runtime.schedule is None:
            return
        for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
            if isinstance(callback, setters):
                raise ValueError(
                    "The default optimizer has a learning rate schedule: compile with an "
                    "optimizer of your own to set its rate by a callback. Received: "
                    f"{type(callback).__name__}"
                )

    def gather_second_moments(self, x, images=2000, batch_size=64):
        """Learns from images which errors of the kernels would show, see `moments`.

        Args:
            x: images or (images, labels), as `fit` takes them; noise will do.
            images: how many of them to use. Defaults to `2000`.
            batch_size: how many to take at once where `x` is an array. Defaults to
                `64`.

        Raises:
            ValueError: where `x` is empty, or its images do not fit the base.
        """
        batches = image_batches(self.examine(x), images, batch_size)
        original = self._original
        moments = second_moments(original.base, original.convolutions, batches)
        inputs = convolution_inputs(original.base, original.convolutions)
        with self.distribute_strategy.scope():
            self._runtime.moments = [m if m is None else constant(m) for m in moments]
            self._runtime.output_scales = [i if i is None else constant(i[1]) for i in inputs]
        self._runtime.traced_phase = None

    def examine(self, x, y=None, name="x"):
        """Checks what `fit` or `evaluate` is to be given, before any work is done.

        Args:
            x: images or (images, labels), as `fit` takes them.
            y: labels, where `x` is an array. Defaults to `None`.
            name: the argument's name, for messages. Defaults to `"x"`.

        Returns:
            `x`, or for a generator one that still yields everything.

        Raises:
            ValueError: where `x` is empty, its images do not fit the base, or it has
                labels under a strategy that takes none.
        """
        if is_between_workers(self.distribute_strategy) and (y is not None or is_pair(x)):
            raise ValueError(
                f"Between workers {name} must give images without labels, as Keras (3.15) reduces "
                "no pairs. Received: images and labels"
            )
        return examine(x, self._original.image_shape, name)

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

    def _reconstruction_terms(self):
        indices = self.kernel_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        predicted = self.predictor(coordinates)
        terms = self._compare(coordinates, targets, predicted)
        if self.layer_output_weight:
            kernels = self._rebuilt_kernels(self._all_blocks(indices, predicted))
            terms["layer_output_loss"] = losses.layer_output_loss(
                [keras.ops.convert_to_tensor(k) for k in self._original.kernels()],
                kernels,
                self._runtime.moments,
                self._runtime.output_scales,
            )
        return terms

    def _distillation_terms(self, images, teacher):
        indices = self.distillation_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        predicted = self.predictor(coordinates)
        kernels = self._rebuilt_kernels(self._all_blocks(indices, predicted))
        student = self._original.observe(images, kernels)
        return {
            **self._compare(coordinates, targets, predicted),
            **self._distance(teacher, student),
        }

    def _all_blocks(self, indices, predicted):
        """All kernels as rows `(kernels, k * k)`, with gradients to those drawn."""
        if indices is None:
            return predicted
        rest = keras.ops.stop_gradient(self.predictor(self.coordinates))
        # A kernel drawn n times stands in n rows, each of which gets its gradient.
        drawn = keras.ops.segment_sum(
            keras.ops.ones_like(indices, "float32"), indices, self._original.num_kernels
        )
        share = 1.0 / keras.ops.take(drawn, indices, axis=0)[:, None]
        fixed = keras.ops.stop_gradient(predicted)
        rows = fixed + share * (predicted - fixed)
        return keras.ops.scatter_update(rest, indices[:, None], rows)
