"""The metrics of the rebuilt classifier, compared with the base and with labels.

    relative_error   sum (W - W^)^2 / sum W^2        over all represented weights
    agreement        share of images to which base and rebuilt classifier assign the same class
    accuracy         share of images to which the rebuilt classifier assigns the label's class
    base_accuracy    share of images to which the base assigns the label's class

The losses of `losses` are metrics, too. An evaluation predicts all kernels once, not per batch.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_nern.network.original import OriginalNetwork
from keras_nern.network.signature import by_name
from keras_nern.representation import Representation
from keras_nern.training.objective import Objective
from keras_nern.training.settings import Settings
from keras_nern.utils.backend import constant
from keras_nern.utils.types import Tensor

# What evaluation logs.
METRICS = (
    "loss",
    "reconstruction_loss",
    "relative_error",
    "logits_loss",
    "feature_map_loss",
    "curvature_loss",
    "rate_loss",
    "agreement",
    "accuracy",
    "base_accuracy",
)

# What the steps of each phase log.
LOGGED = {
    "reconstruction": ("loss", "reconstruction_loss", "relative_error"),
    "curvature": ("loss", "curvature_loss", "relative_error"),
    "distillation": (
        "loss",
        "reconstruction_loss",
        "relative_error",
        "logits_loss",
        "feature_map_loss",
    ),
}

# Metrics of which larger values are better.
INCREASING = ("agreement", "accuracy", "base_accuracy")


class Evaluation:
    """The kernels and errors of one evaluation or prediction.

    Args:
        original: the base.
        representation: the predicted kernels.
        objective: the losses.

    Attributes:
        names: names of the results of the last evaluation.
    """

    def __init__(
        self, original: OriginalNetwork, representation: Representation, objective: Objective
    ) -> None:
        self._original = original
        self._representation = representation
        self._objective = objective
        self._kernels: list[keras.Variable] = []
        self._errors: dict[str, keras.Variable] = {}
        self.names: list[str] = []

    def refresh(self) -> None:
        """Predicts all kernels and computes their errors, before the first batch."""
        kernels = self._representation.kernels()
        errors = self._representation.errors(self._original.kernel_values(), kernels)
        if not self._kernels:
            with self._objective.scope():
                self._kernels = [constant(np.zeros(kernel.shape)) for kernel in kernels]
                self._errors = {name: constant(0.0) for name in errors}
        for variable, kernel in zip(self._kernels, kernels, strict=True):
            variable.assign(kernel)
        for name, value in errors.items():
            self._errors[name].assign(value)

    def classify(self, inputs: Any) -> Any:
        """The outputs of the rebuilt classifier."""
        return self._original.functional_call(inputs, self._kernels, self._representation.vectors())

    def compare(
        self, settings: Settings, inputs: Any, labels: Any = None, sample_weight: Any = None
    ) -> tuple[dict[str, Tensor], Any]:
        """Compares the rebuilt classifier with the base and with labels.

        Args:
            settings: settings of the model.
            inputs: a batch of the base's inputs.
            labels: class numbers or one-hot rows, in the structure of the outputs, or `None`.
                Defaults to `None`.

        Returns:
            `(terms, outputs)`: a dict from names of `METRICS` to scalars, and the outputs of the
            rebuilt classifier.
        """
        kernels = [keras.ops.convert_to_tensor(kernel) for kernel in self._kernels]
        original = self._original.forward(inputs)
        teacher = self._objective.targets(inputs, original)
        student = self._original.forward(inputs, kernels, self._representation.vectors())
        terms = {name: keras.ops.convert_to_tensor(v) for name, v in self._errors.items()}
        terms.update(self._objective.distillation_terms(settings, teacher, student, sample_weight))
        terms["loss"] = self._objective.weighted(settings, terms)
        classes = list(map(_classes_of, student.logits))
        expected = [keras.ops.argmax(logits, axis=-1) for logits in original.logits]
        terms["agreement"] = _mean_share_equal(classes, expected)
        if labels is not None:
            names = self._original.label_shapes
            flat = by_name(labels, names, "labels") if names else keras.tree.flatten(labels)
            true = [_to_classes(*pair) for pair in zip(flat, classes, strict=True)]
            terms["accuracy"] = _mean_share_equal(classes, true)
            terms["base_accuracy"] = _mean_share_equal(expected, true)
        return terms, student.outputs


def _to_classes(labels: Tensor, predicted: Tensor) -> Tensor:
    """Converts labels `(batch, ...)`, `(batch, ..., 1)` or one-hot to classes `(batch, ...)`."""
    if keras.backend.standardize_dtype(labels.dtype) == "bool":
        labels = keras.ops.cast(labels, "int32")
    if len(labels.shape) == len(predicted.shape) + 1:
        one_hot = labels.shape[-1] != 1
        labels = keras.ops.argmax(labels, axis=-1) if one_hot else labels[..., 0]
    if len(labels.shape) != len(predicted.shape):  # equal would broadcast
        raise ValueError(
            "labels must be classes (batch, ...) of the outputs' shape or one-hot. Received: "
            f"labels of shape {tuple(labels.shape)} for classes of shape {tuple(predicted.shape)}"
        )
    return keras.ops.cast(keras.ops.round(labels), predicted.dtype)  # labels may be probabilities


def _classes_of(logits: Tensor) -> Tensor:
    """The classes of the largest logits; -1 if a logit is NaN."""
    unknown = keras.ops.any(keras.ops.isnan(logits), axis=-1)
    return keras.ops.where(unknown, -1, keras.ops.argmax(logits, axis=-1))


def _mean_share_equal(classes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The share of equal classes, averaged over the outputs of a network."""
    shares = [
        keras.ops.mean(keras.ops.cast(keras.ops.equal(a, b), "float32"))
        for a, b in zip(classes, others, strict=True)
    ]
    return sum(shares) / len(shares)
