"""What a NeRNModel keeps while it runs, and what it asks of the backend.

State that is derived from the base and from `compile`: it is made when it is first needed, and
neither saved nor counted among the weights.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_nern.training.optimizer import PlannedCosineDecay


class Runtime:
    """A NeRNModel's derived state."""

    def __init__(self) -> None:
        # what is to be predicted, `blocks.Blocks.weights`
        self.weights: keras.Variable | None = None
        self.cumulative: keras.Variable | None = None
        self.multipliers: keras.Variable | None = None
        # empty until they are first evaluated, or gathered
        self.kernels: list[keras.Variable] = []
        self.terms: dict[str, keras.Variable] = {}
        self.moments: list[keras.Variable | None] = []  # one variable or None per layer
        self.output_scales: list[keras.Variable | None] = []
        self.traced_phase: str | None = None
        self.compile_arguments: dict[str, Any] = {}  # those that Keras keeps
        self.settings: list[str] = []  # names of ours
        self.unbuilt_metrics = False
        self.schedule: PlannedCosineDecay | None = None  # the default optimizer's


def needs_tensorflow(method: str) -> None:
    """Raises where Keras runs on another backend, whose trainers are not built on."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"{method} needs KERAS_BACKEND=tensorflow; on every backend reconstruct() gives the "
            f"rebuilt classifier. Received: KERAS_BACKEND={keras.backend.backend()}"
        )


def is_between_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a `tf.distribute.Strategy` spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def count(variable: keras.Variable) -> int:
    """A counter's value; `int` knows no variable that several devices share."""
    return int(keras.ops.convert_to_numpy(variable))


def constant(value: ArrayLike) -> keras.Variable:
    """A float32 variable that is not trained."""
    return keras.Variable(np.asarray(value, "float32"), trainable=False, dtype="float32")


def assigned(variable: keras.Variable | None, value: ArrayLike) -> keras.Variable:
    """The variable with a new value; a new one where there is none yet."""
    if variable is None:
        return constant(value)
    variable.assign(value)
    return variable
