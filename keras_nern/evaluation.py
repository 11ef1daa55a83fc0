"""How the rebuilt classifier is judged, beside the original and by its labels.

    relative_error   sum (W - W^)^2 / sum W^2        over all represented weights
    agreement        share of images that original and rebuilt classifier put in one class
    accuracy         share of images that the rebuilt classifier puts in their class

and the losses of `losses`. An evaluation predicts all kernels once, not once a batch.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses, sampling

# The losses that need images.
DISTILLED = ("logits_loss", "feature_map_loss")

_WEIGHTED = ("reconstruction_loss", *DISTILLED, "layer_output_loss")

# Training shows the losses and the error; evaluation, how the rebuilt classifier does.
_METRICS = (
    "loss",
    "reconstruction_loss",
    "relative_error",
    "logits_loss",
    "feature_map_loss",
    "layer_output_loss",
    "agreement",
    "accuracy",
)


class RepresentationEvaluator(keras.Model):
    """What `NeRNModel` needs to evaluate and predict as the rebuilt classifier.

    `NeRNModel` owns `_original`, `predictor`, `coordinates` and `scales`, predicts
    (`_predicted_blocks`) and scales (`_rebuilt_kernels`) all kernels; `compile` sets the
    losses' weights.
    """

    def _start_evaluation(self):
        self._trackers = {name: keras.metrics.Mean(name=name) for name in _METRICS}
        self._runtime = _Runtime()

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
        """Multiplies the losses' weights in training; evaluation keeps the full ones.

        Args:
            **multipliers: by loss (`reconstruction_loss`, `logits_loss`,
                `feature_map_loss`, `layer_output_loss`), at least 0; 1 for those not
                named.

        Raises:
            ValueError: for another name or a negative multiplier.
        """
        unknown = sorted(set(multipliers) - set(_WEIGHTED))
        if unknown or not all(value >= 0 for value in multipliers.values()):
            raise ValueError(
                f"Expected multipliers of at least 0 for {_WEIGHTED}. Received: {multipliers}"
            )
        if self._runtime.multipliers is None:
            self._refresh_targets()
        self._runtime.multipliers.assign([multipliers.get(name, 1.0) for name in _WEIGHTED])

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
                runtime.multipliers = constant(np.ones(len(_WEIGHTED)))
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
            for i, name in enumerate(_WEIGHTED)
            if name in terms
        )

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
                runtime.kernels = [constant(np.zeros(kernel.shape)) for kernel in kernels]
                runtime.terms = {name: constant(0.0) for name in terms}
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
            logs.update({k: _log(v) for k, v in named.items() if k not in _METRICS})
        return logs

    def _track(self, terms, batch=None):
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=batch)
        return {name: _log(self._trackers[name].result()) for name in _METRICS if name in terms}

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


def count(variable):
    """A counter's value; `int` knows no variable that several devices share."""
    return int(keras.ops.convert_to_numpy(variable))


def _log(result):
    """A metric's result as a step returns it.

    Between workers Keras (3.15) takes the mean of the logs over their first axis, which
    a scalar has not (https://github.com/tensorflow/tensorflow/issues/72388).
    """
    workers = is_between_workers(tf.distribute.get_strategy())
    return keras.ops.reshape(result, (1,)) if workers else result


def is_between_workers(strategy):
    """Whether a `tf.distribute.Strategy` spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def constant(value):
    return keras.Variable(np.asarray(value, "float32"), trainable=False, dtype="float32")


def _class_of(labels, predicted):
    """Labels `(batch,)`, `(batch, 1)` or one-hot `(batch, classes)` as classes."""
    if len(labels.shape) == len(predicted.shape) + 1:
        one_hot = labels.shape[-1] != 1
        labels = keras.ops.argmax(labels, axis=-1) if one_hot else labels[..., 0]
    return labels


def _share_equal(a, b):
    return keras.ops.mean(keras.ops.cast(keras.ops.equal(a, keras.ops.cast(b, a.dtype)), "float32"))
