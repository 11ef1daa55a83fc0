"""Helpers for variables, registration and backends of Keras.

Training needs the TensorFlow backend; everything else runs on every backend.
"""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

PACKAGE = "keras_nern"

# The decorator of every serializable class.
register = keras.saving.register_keras_serializable(package=PACKAGE)


def require_tensorflow(method: str) -> None:
    """Raises a RuntimeError if the Keras backend is not TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"{method} needs KERAS_BACKEND=tensorflow; reconstruct() returns the rebuilt "
            f"classifier on every backend. Received: KERAS_BACKEND={keras.backend.backend()}"
        )


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether a `tf.distribute.Strategy` spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def to_int(variable: keras.Variable) -> int:
    """Converts a counter to `int`, also if replicas share it (which `int` does not support)."""
    return int(keras.ops.convert_to_numpy(variable))


def constant(value: ArrayLike, dtype: str = "float32") -> keras.Variable:
    """Creates a variable that is not trained."""
    return keras.Variable(np.asarray(value, dtype), trainable=False, dtype=dtype)


def assign_or_create(
    variable: keras.Variable | None, value: ArrayLike, dtype: str = "float32"
) -> keras.Variable:
    """Assigns `value` to a variable, or creates one if there is none yet."""
    if variable is None:
        return constant(value, dtype)
    variable.assign(value)
    return variable
