"""How a representation learns, and how the rebuilt classifier is judged.

A fit has two phases (Ashkenazi et al., ICLR 2023, sections 3.1 and 3.3):

* *reconstruction* needs no images. Each step draws a batch of kernels, predicts
  them from their coordinates and takes the loss  a_1 L_rec.
* *distillation* rebuilds the whole network from predicted kernels, runs it beside
  the original on a batch of images and takes  a_1 L_rec + a_2 L_logits + a_3 L_maps.

Both networks run in inference mode, and only the predictor learns. The losses are
those of `losses`. Where the paper trains the sum from the start for hundreds of
epochs, the phases here are apart: the first is cheap and goes most of the way, the
second needs few, small steps. The optimizer starts afresh with each phase: the second
loss's gradients are some 10,000 times those of the first, and AdamW's running averages
of the one would make it take giant steps on the other.
"""

import types

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses, sampling
from keras_nern.inputs import examine, steps_in
from keras_nern.predictor import OUTPUT_LAYER
from keras_nern.schedules import PlannedCosineDecay

# The length of an epoch that cannot be told: the rate then stays at its peak.
UNKNOWN_STEPS = 10**9

# Training shows the first five; evaluation adds how the rebuilt classifier does.
_METRICS = (
    "loss",
    "reconstruction_loss",
    "relative_error",
    "logits_loss",
    "feature_map_loss",
    "agreement",
    "accuracy",
)


class RepresentationTrainer(keras.Model):
    """The training half of `NeRNModel`, as `keras.Model` keeps its own in a Trainer.

    The other half owns `_original`, `predictor`, `coordinates` and `scales`, predicts
    (`_predicted_blocks`) and scales (`_rebuilt_kernels`) all kernels, and calls
    `_start_training` at the end of its constructor.
    """

    def _start_training(self):
        self.reconstruction_iterations = self.add_weight(
            name="reconstruction_iterations",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self._seed = keras.random.SeedGenerator(name="sampling")
        self._trackers = {name: keras.metrics.Mean(name=name) for name in _METRICS}
        self._runtime = _Runtime()
        self.built = True
        self.phase = "reconstruction"
        self.compile()

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
            temperature: of the logits distillation. Defaults to `1.0`.
            **kwargs: as `keras.Model.compile` takes them, `loss` excepted:
                `metrics` are computed on the rebuilt classifier's outputs.

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
        super().compile(optimizer=optimizer, **kwargs)
        self.optimizer.build(self.trainable_variables)
        for name, value in settings.items():
            setattr(self, name, value)
        self._runtime.traced_phase = None
        # Kept where Keras does not track metrics, which it would then count twice.
        self._runtime.compile_arguments = settings | kwargs
        self._runtime.schedule = schedule

    def get_compile_config(self):
        schedule = self._runtime.schedule
        arguments = {
            **self._runtime.compile_arguments,
            "optimizer": "auto" if schedule else self.optimizer,
            "plan": schedule and schedule.get_config(),
            "phase": self.phase,
        }
        return keras.saving.serialize_keras_object(arguments)

    def compile_from_config(self, config):
        arguments = keras.saving.deserialize_keras_object(config)
        plan, self.phase = arguments.pop("plan"), arguments.pop("phase")
        self.compile(**arguments)
        if plan:
            self._runtime.schedule.plan(**plan)

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
        common = {
            "epochs": epochs,
            "verbose": verbose,
            "callbacks": callbacks,
            "initial_epoch": initial_epoch,
            "validation_data": validation_data,
        }
        if validation_data is not None:
            common["validation_data"] = self._examine(validation_data, "validation_data")
        if x is None:
            if steps_per_epoch is None:
                raise ValueError(
                    "Without images fit needs steps_per_epoch, the reconstruction steps of an "
                    "epoch. Received: x=None, steps_per_epoch=None"
                )
            return self._run("reconstruction", steps_per_epoch, steps_per_epoch, **common, **kwargs)

        x = self._examine(x, "x")
        before = max(0, self.reconstruction_steps - int(self.reconstruction_iterations))
        first = {}
        if before:
            if verbose:
                print(f"Reconstruction, {before} steps without images:")
            first = self._run("reconstruction", before, before, verbose=verbose).history
            if verbose:
                print("Distillation:")
        history = self._run(
            "distillation",
            steps_per_epoch or steps_in(x, batch_size, validation_split) or UNKNOWN_STEPS,
            steps_per_epoch,
            x=x,
            y=y,
            batch_size=batch_size,
            validation_split=validation_split,
            **common,
            **kwargs,
        )
        history.reconstruction = first
        return history

    def _run(
        self, phase, epoch_length, steps_per_epoch, x=None, epochs=1, initial_epoch=0, **kwargs
    ):
        self._refresh_targets()  # the base may have been trained on meanwhile
        self._start_optimizer(phase, epoch_length * (epochs - initial_epoch), initial_epoch > 0)
        self.phase = phase
        if x is None:  # Keras wants something to count the steps by
            x = tf.data.Dataset.from_tensors(np.int32(0)).repeat()
        # Keras's default is True, and it warns where that has no effect.
        kwargs.setdefault("shuffle", not isinstance(x, (tf.data.Dataset, types.GeneratorType)))
        history = super().fit(
            x=x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )
        history.reconstruction = {}
        return history

    def _start_optimizer(self, phase, steps, resumed):
        """Gives a new phase a fresh optimizer, and every fit a new default schedule."""
        switched = phase != self.phase
        schedule = self._runtime.schedule
        if schedule is None:  # the user's own
            if switched and int(self.optimizer.iterations) > 0:
                config = self.optimizer.get_config()
                self.optimizer = type(self.optimizer).from_config(config)
                self.optimizer.build(self.trainable_variables)
            return
        unfinished = int(self.optimizer.iterations) < schedule.decay_steps
        if resumed and unfinished and not switched:
            return  # the plan of the fit that this one resumes still holds
        for variable in self.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        rates = {
            "reconstruction": self.reconstruction_learning_rate,
            "distillation": self.distillation_learning_rate,
        }
        schedule.plan(rates[phase], max(1, steps))

    def _examine(self, data, name):
        return examine(data, self._original.image_shape, name)

    def make_train_function(self, force=False):
        if self._runtime.targets is None:
            self._refresh_targets()
        force = force or self._runtime.traced_phase != self.phase
        self._runtime.traced_phase = self.phase
        return super().make_train_function(force)

    def _refresh_targets(self):
        """Reads what is to be predicted from the base as it is now."""
        runtime = self._runtime
        blocks = self._original.blocks()
        layer = keras.ops.convert_to_numpy(self.coordinates)[:, 0]
        targets = blocks / keras.ops.convert_to_numpy(self.scales)[layer][:, None]
        cumulative = sampling.cumulative_magnitude(blocks)
        if runtime.targets is None:
            with self.distribute_strategy.scope():
                runtime.targets = _constant(targets)
                runtime.cumulative = _constant(cumulative)
                runtime.masks = _constant(self._original.masks)
        else:
            runtime.targets.assign(targets)
            runtime.cumulative.assign(cumulative)

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
            loss = self._weighted(terms)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        if not distilling:
            self.reconstruction_iterations.assign_add(1)
        return self._track({"loss": loss, **terms})

    def _reconstruction_terms(self):
        indices = self.kernel_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        return self._compare(coordinates, targets, self.predictor(coordinates))

    def _distillation_terms(self, images, teacher):
        indices = self.distillation_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        predicted = self.predictor(coordinates)
        if indices is None:
            blocks = predicted
        else:
            rest = keras.ops.stop_gradient(self.predictor(self.coordinates))
            blocks = keras.ops.scatter_update(rest, indices[:, None], predicted)
        student = self._original.observe(images, self._rebuilt_kernels(blocks))
        return {
            **self._compare(coordinates, targets, predicted),
            **self._distance(teacher, student),
        }

    def _pick(self, indices):
        """Coordinates `(n, 3)` and targets `(n, k * k)` of the drawn kernels."""
        coordinates = keras.ops.convert_to_tensor(self.coordinates)
        targets = keras.ops.convert_to_tensor(self._runtime.targets)
        if indices is None:
            return coordinates, targets
        return (
            keras.ops.take(coordinates, indices, axis=0),
            keras.ops.take(targets, indices, axis=0),
        )

    def _compare(self, coordinates, targets, predicted):
        mask = keras.ops.take(self._runtime.masks, coordinates[:, 0], axis=0)  # (n, k*k)
        return {
            "reconstruction_loss": losses.reconstruction_loss(targets, predicted, mask),
            "relative_error": losses.relative_error(targets, predicted, mask),
        }

    def _distance(self, teacher, student):
        (teacher_maps, teacher_outputs), (student_maps, student_outputs) = teacher, student
        logits = self._original.logits
        return {
            "logits_loss": losses.logits_distillation_loss(
                logits(teacher_outputs), logits(student_outputs), self.temperature
            ),
            "feature_map_loss": losses.feature_map_distillation_loss(teacher_maps, student_maps),
        }

    def _weighted(self, terms):
        weights = {
            "reconstruction_loss": self.reconstruction_weight,
            "logits_loss": self.logits_weight,
            "feature_map_loss": self.feature_map_weight,
        }
        return sum(weights[name] * terms[name] for name in weights if name in terms)

    def make_test_function(self, force=False):
        self._refresh_rebuilt()
        return super().make_test_function(force)

    def make_predict_function(self, force=False):
        self._refresh_rebuilt()
        return super().make_predict_function(force)

    def _refresh_rebuilt(self):
        """Predicts all kernels once for all batches of an evaluation."""
        runtime = self._runtime
        self._refresh_targets()
        blocks = self._predicted_blocks()
        kernels = self._rebuilt_kernels(blocks)
        terms = self._compare(*self._pick(None), blocks)
        if runtime.kernels is None:
            with self.distribute_strategy.scope():
                runtime.kernels = [_constant(np.zeros(kernel.shape)) for kernel in kernels]
                runtime.terms = {name: _constant(0.0) for name in terms}
        for variable, kernel in zip(runtime.kernels, kernels, strict=True):
            variable.assign(kernel)
        for name, value in terms.items():
            runtime.terms[name].assign(value)

    def predict_step(self, data):
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._original.classify(images, self._runtime.kernels)

    def test_step(self, data):
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        kernels = [keras.ops.convert_to_tensor(kernel) for kernel in self._runtime.kernels]
        teacher = self._original.observe(images)
        student = self._original.observe(images, kernels)
        terms = {name: keras.ops.convert_to_tensor(v) for name, v in self._runtime.terms.items()}
        terms.update(self._distance(teacher, student))
        terms["loss"] = self._weighted(terms)
        predicted = self._original.predicted_class(student[1])
        terms["agreement"] = _share_equal(predicted, self._original.predicted_class(teacher[1]))
        if labels is not None:
            terms["accuracy"] = _share_equal(predicted, _class_of(labels, predicted))
        logs = self._track(terms, batch=keras.ops.shape(images)[0])
        if labels is not None:
            named = self.compute_metrics(images, labels, student[1], sample_weight)
            logs.update({k: v for k, v in named.items() if k not in _METRICS})
        return logs

    def _track(self, terms, batch=None):
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=batch)
        return {name: self._trackers[name].result() for name in _METRICS if name in terms}

    @property
    def metrics(self):
        # In place of Keras's own "loss", which has no y to be computed from.
        compiled = [m for m in super().metrics if m.name not in _METRICS]
        # Compiled metrics see outputs in an evaluation only; before, they have no result.
        return [*self._trackers.values()] + [m for m in compiled if getattr(m, "built", True)]


class _Runtime:
    """State that is derived, so neither saved nor counted among the weights."""

    def __init__(self):
        self.targets = None
        self.cumulative = None
        self.masks = None
        self.kernels = None
        self.terms = None
        self.traced_phase = None
        self.compile_arguments = {}
        self.schedule = None  # the default optimizer's


def _constant(value):
    return keras.Variable(np.asarray(value, "float32"), trainable=False, dtype="float32")


def _class_of(labels, predicted):
    """Labels `(batch,)`, `(batch, 1)` or one-hot `(batch, classes)` as classes."""
    if len(labels.shape) == len(predicted.shape) + 1:
        one_hot = labels.shape[-1] != 1
        labels = keras.ops.argmax(labels, axis=-1) if one_hot else labels[..., 0]
    return labels


def _share_equal(a, b):
    return keras.ops.mean(keras.ops.cast(keras.ops.equal(a, keras.ops.cast(b, a.dtype)), "float32"))
