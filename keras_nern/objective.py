"""What a step minimises: the losses of `losses`, of the kernels and images it is given.

    reconstruction   a_1 L_rec                         + a_4 L_out
    distillation     a_1 L_rec + a_2 L_logits + a_3 L_maps

L_out, for which second moments have to be gathered first, is left out by default.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses, sampling
from keras_nern.inputs import examine, image_batches, is_pair
from keras_nern.moments import convolution_inputs, second_moments

# The losses that need images.
DISTILLED = ("logits_loss", "feature_map_loss")

WEIGHTED = ("reconstruction_loss", *DISTILLED, "layer_output_loss")


class RepresentationObjective(keras.Model):
    """The losses of a `NeRNModel`.

    `NeRNModel` owns `_original`, `predictor`, `coordinates` and `scales`, predicts
    (`_predicted_blocks`) and scales (`_rebuilt_kernels`) all kernels; `compile` sets the
    losses' weights.
    """

    def _start_objective(self):
        self._runtime = Runtime()

    def relative_error(self):
        """The squared error of all represented weights, relative to their squares.

        Returns:
            A float: sum (W - W^)^2 / sum W^2, of the predictor and the base as they
            are now.
        """
        self._refresh_targets()
        terms = self._compare(*self._pick(None), self._predicted_blocks())
        return float(terms["relative_error"])

    def scale_losses(self, **multipliers):
        """Multiplies the losses' weights until the fit that runs, or the next, ends.

        Evaluation keeps the full weights.

        Args:
            **multipliers: by loss (`reconstruction_loss`, `logits_loss`,
                `feature_map_loss`, `layer_output_loss`), at least 0; those not named
                stay as they are.

        Raises:
            ValueError: for another name or a negative multiplier.
        """
        unknown = sorted(set(multipliers) - set(WEIGHTED))
        if unknown or not all(value >= 0 for value in multipliers.values()):
            raise ValueError(
                f"Expected multipliers of at least 0 for {WEIGHTED}. Received: {multipliers}"
            )
        if self._runtime.multipliers is None:
            self._refresh_targets()
        before = keras.ops.convert_to_numpy(self._runtime.multipliers)
        self._runtime.multipliers.assign(
            [multipliers.get(name, value) for name, value in zip(WEIGHTED, before, strict=True)]
        )

    def _refresh_targets(self):
        """Reads what is to be predicted from the base as it is now."""
        runtime = self._runtime
        blocks = self._original.blocks()
        layer = keras.ops.convert_to_numpy(self.coordinates)[:, 0]
        targets = blocks / keras.ops.convert_to_numpy(self.scales)[layer][:, None]
        cumulative = sampling.cumulative_magnitude(blocks)
        if runtime.targets is None:
            with self.distribute_strategy.scope():
                runtime.targets = constant(targets)
                runtime.cumulative = constant(cumulative)
                runtime.masks = constant(self._original.masks)
                runtime.multipliers = constant(np.ones(len(WEIGHTED)))
        else:
            runtime.targets.assign(targets)
            runtime.cumulative.assign(cumulative)

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
        layers = coordinates[:, 0]
        mask = keras.ops.take(self._runtime.masks, layers, axis=0)  # (n, k*k)
        scale = keras.ops.take(self.scales, layers, axis=0)[:, None]
        return {
            "reconstruction_loss": losses.reconstruction_loss(targets, predicted, mask),
            "relative_error": losses.relative_error(scale * targets, scale * predicted, mask),
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

    def _weighted(self, terms, multipliers=(1.0, 1.0, 1.0, 1.0)):
        weights = (
            self.reconstruction_weight,
            self.logits_weight,
            self.feature_map_weight,
            self.layer_output_weight,
        )
        return sum(
            multipliers[i] * weights[i] * terms[name]
            for i, name in enumerate(WEIGHTED)
            if name in terms
        )

    def _reconstruction_terms(self):
        indices = self.kernel_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        predicted, means = self.predictor.predict_with_means(coordinates)
        terms = self._compare(coordinates, targets, predicted)
        if self.layer_output_weight:
            kernels = self._rebuilt_kernels(self._all_blocks(indices, predicted))
            terms["layer_output_loss"] = losses.layer_output_loss(
                [keras.ops.convert_to_tensor(k) for k in self._original.kernels()],
                kernels,
                self._runtime.moments,
                self._runtime.output_scales,
            )
        return terms, means

    def _distillation_terms(self, images, teacher):
        indices = self.distillation_sampling.sample(self._runtime.cumulative, self._seed)
        coordinates, targets = self._pick(indices)
        predicted, means = self.predictor.predict_with_means(coordinates)
        kernels = self._rebuilt_kernels(self._all_blocks(indices, predicted))
        student = self._original.observe(images, kernels)
        terms = self._compare(coordinates, targets, predicted)
        return {**terms, **self._distance(teacher, student)}, means

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

    def examine(self, x, y=None, name="x", validation_split=0.0):
        """Checks what `fit` or `evaluate` is to be given, before any work is done.

        Args:
            x: images or (images, labels), as `fit` takes them.
            y: labels, where `x` is an array. Defaults to `None`.
            name: the argument's name, for messages. Defaults to `"x"`.
            validation_split: as for `fit`. Defaults to `0.0`.

        Returns:
            `x`, or for a generator one that still yields everything.

        Raises:
            ValueError: where `x` is empty, its images do not fit the base, it has
                labels under a strategy that takes none, or labels or a split are asked
                of what is no array.
        """
        if is_between_workers(self.distribute_strategy) and (y is not None or is_pair(x)):
            raise ValueError(
                f"Between workers {name} must give images without labels, as Keras (3.15) reduces "
                "no pairs. Received: images and labels"
            )
        if not (is_pair(x) or hasattr(x, "shape")) and (y is not None or validation_split):
            raise ValueError(
                f"y and validation_split go with arrays only. Received: {name} of type "
                f"{type(x).__name__}, validation_split={validation_split!r}, "
                f"y={'None' if y is None else 'labels'}"
            )
        return examine(x, self._original.image_shape, name)


class Runtime:
    """State that is derived, so neither saved nor counted among the weights."""

    def __init__(self):
        self.targets = None
        self.cumulative = None
        self.masks = None
        self.multipliers = None
        self.kernels = None
        self.terms = None
        self.moments = None  # one variable or None per layer
        self.output_scales = None
        self.traced_phase = None
        self.compile_arguments = {}  # those that Keras keeps
        self.settings = []  # names of ours
        self.unbuilt_metrics = False
        self.schedule = None  # the default optimizer's


def is_between_workers(strategy):
    """Whether a `tf.distribute.Strategy` spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def count(variable):
    """A counter's value; `int` knows no variable that several devices share."""
    return int(keras.ops.convert_to_numpy(variable))


def constant(value):
    return keras.Variable(np.asarray(value, "float32"), trainable=False, dtype="float32")
