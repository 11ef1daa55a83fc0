"""How the rebuilt classifier is judged, beside the original and by its labels.

    relative_error   sum (W - W^)^2 / sum W^2        over all represented weights
    agreement        share of images that original and rebuilt classifier put in one class
    accuracy         share of images that the rebuilt classifier puts in their class

and the losses of `losses`. An evaluation predicts all kernels once, not once a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.data.inputs import unpacked
from keras_nern.losses import logits_of
from keras_nern.network.recording import capture_calls, output_activation
from keras_nern.training.objective import RepresentationObjective
from keras_nern.utils.backend import constant, is_between_workers, needs_tensorflow
from keras_nern.utils.types import Tensor

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


class RepresentationEvaluator(RepresentationObjective):
    """What `NeRNModel` needs to evaluate and predict as the rebuilt classifier."""

    def _start_evaluation(self) -> None:
        self._start_objective()
        self._trackers = {name: keras.metrics.Mean(name=name) for name in _METRICS}

    def make_test_function(self, force: bool = False) -> Callable | None:
        needs_tensorflow("evaluate")
        kernels = self._refresh_rebuilt()
        terms = self._compare_kernels(kernels)
        runtime = self._runtime
        if not runtime.terms:
            with self.distribute_strategy.scope():
                runtime.terms = {name: constant(0.0) for name in terms}
        for name, value in terms.items():
            runtime.terms[name].assign(value)
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Callable | None:
        needs_tensorflow("predict")
        self._refresh_rebuilt()
        return super().make_predict_function(force)

    def _refresh_rebuilt(self) -> list[Tensor]:
        """Predicts all kernels once for all batches of an evaluation, and returns them."""
        runtime = self._runtime
        kernels = self._predicted_kernels()
        if not runtime.kernels:
            with self.distribute_strategy.scope():
                runtime.kernels = [constant(np.zeros(kernel.shape)) for kernel in kernels]
        for variable, kernel in zip(runtime.kernels, kernels, strict=True):
            variable.assign(kernel)
        return kernels

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Evaluates the rebuilt classifier, beside the original.

        Args:
            x: images or (images, labels), as `fit` takes them.
            y: labels, where `x` is an array.
            batch_size, verbose, sample_weight: as for `keras.Model.evaluate`.
            *args: as for it.
            **kwargs: as for it.

        Returns:
            As `keras.Model.evaluate` does; with `return_dict=True` a dict of the losses, the
            relative error, the agreement with the original, and with labels the accuracy.
        """
        shapes = self._original.input_shapes
        x, y, sample_weight = unpacked(x, y, sample_weight, shapes)
        return super().evaluate(x, y, batch_size, verbose, sample_weight, *args, **kwargs)

    def predict_step(self, data: Any) -> Any:
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._original.functional_call(inputs, self._runtime.kernels)

    def test_step(self, data: Any) -> dict[str, Tensor]:
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        kernels = [keras.ops.convert_to_tensor(kernel) for kernel in self._runtime.kernels]
        teacher = self._original.observe(inputs)
        student = self._original.observe(inputs, kernels)
        terms = {name: keras.ops.convert_to_tensor(v) for name, v in self._runtime.terms.items()}
        terms.update(self._distance(teacher, student))
        terms["loss"] = self._weighted(terms)
        classes = [keras.ops.argmax(logits, axis=-1) for logits in student.logits]
        wanted = [keras.ops.argmax(logits, axis=-1) for logits in teacher.logits]
        terms["agreement"] = _mean_share(classes, wanted)
        if labels is not None:
            answers = keras.tree.flatten(labels)
            terms["accuracy"] = _mean_share(classes, list(map(_class_of, answers, classes)))
        logs = self._track(terms, batch=keras.ops.shape(keras.tree.flatten(inputs)[0])[0])
        if labels is not None:
            named = self.compute_metrics(inputs, labels, student.outputs, sample_weight)
            logs.update({k: _log(v) for k, v in named.items() if k not in _METRICS})
        return logs

    def _track(self, terms: dict[str, Tensor], batch: Tensor | None = None) -> dict[str, Tensor]:
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=batch)
        return {name: _log(self._trackers[name].result()) for name in _METRICS if name in terms}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        # In place of Keras's own "loss", which has no y to be computed from.
        compiled = [m for m in super().metrics if m.name not in _METRICS]
        # Compiled metrics see outputs in an evaluation only; before, they have no result.
        return [*self._trackers.values()] + [m for m in compiled if getattr(m, "built", True)]


class ClassReader:
    """What classes a classifier's outputs stand for, whatever activation it ends with.

    Args:
        model: a built `keras.Model` with one output `(batch, classes)`, or `(batch, 1)` for
            two classes.
        inputs: a batch that it takes.

    Attributes:
        num_classes: at least 2.

    Raises:
        ValueError: where it has other outputs.

    Example:

    >>> reader = keras_nern.training.evaluation.ClassReader(base, images[:1])
    >>> classes = reader(base.predict(images, verbose=0))  # int array (n,)
    """

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        with capture_calls(model) as calls:
            outputs = model(inputs, training=False)
        if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
            shapes = [tuple(one.shape) for one in keras.tree.flatten(outputs)]
            raise ValueError(
                f"Expected a classifier with one output (batch, classes). Received: {model.name!r} "
                f"with outputs of shapes {shapes}"
            )
        self._activation = output_activation(calls, outputs)
        self.num_classes = max(2, outputs.shape[1])

    def __call__(self, outputs: Tensor) -> np.ndarray:
        """The classes of outputs `(n, classes)`: an int array `(n,)`."""
        if outputs.shape[1] == 1:  # else the order of the outputs is that of the logits
            outputs = logits_of(outputs, self._activation)
        return keras.ops.convert_to_numpy(keras.ops.argmax(outputs, axis=1))


def _log(result: Tensor) -> Tensor:
    """A metric's result as a step returns it.

    Between workers Keras (3.15) takes the mean of the logs over their first axis, which
    a scalar has not (https://github.com/tensorflow/tensorflow/issues/72388).
    """
    workers = is_between_workers(tf.distribute.get_strategy())
    return keras.ops.reshape(result, (1,)) if workers else result


def _class_of(labels: Tensor, predicted: Tensor) -> Tensor:
    """Labels `(batch, ...)`, `(batch, ..., 1)` or one-hot `(batch, ..., classes)` as classes."""
    if len(labels.shape) == len(predicted.shape) + 1:
        one_hot = labels.shape[-1] != 1
        labels = keras.ops.argmax(labels, axis=-1) if one_hot else labels[..., 0]
    return labels


def _mean_share(classes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The share of equal classes, in the mean over a network's outputs."""
    shares = [
        keras.ops.mean(keras.ops.cast(keras.ops.equal(a, keras.ops.cast(b, a.dtype)), "float32"))
        for a, b in zip(classes, others, strict=True)
    ]
    return sum(shares) / len(shares)
