"""The learning rate of a phase, whose length is known only when `fit` is called.

Within a phase the rate falls from its peak to zero along half a cosine (Loshchilov and
Hutter, "SGDR", ICLR 2017, arXiv 1608.03983):

    rate(t) = initial_learning_rate * (1 + cos(pi * t / decay_steps)) / 2.
"""

import math
from typing import Any

import keras
import numpy as np

from keras_nern.predictor.positional_encoding import PACKAGE
from keras_nern.utils.types import Tensor


@keras.saving.register_keras_serializable(package=PACKAGE)
class PlannedCosineDecay(keras.optimizers.schedules.LearningRateSchedule):
    """`keras.optimizers.schedules.CosineDecay` to zero that can be planned anew.

    Rate and length are kept in a variable, so that a new plan reaches a training step
    that is traced already.

    Args:
        initial_learning_rate: the rate at iteration 0. Defaults to `0.0`.
        decay_steps: the iteration at which it is 0. Defaults to `1`.

    Raises:
        ValueError: for a negative rate, or less than one step.

    Example:

    >>> schedule = PlannedCosineDecay(0.01, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 150)]
    [0.01, 0.005, 0.0, 0.0]
    """

    def __init__(self, initial_learning_rate: float = 0.0, decay_steps: int = 1) -> None:
        super().__init__()
        self._plan = keras.Variable(
            np.zeros(2, "float32"), trainable=False, name="plan", dtype="float32"
        )
        self.plan(initial_learning_rate, decay_steps)

    def plan(self, initial_learning_rate: float, decay_steps: int) -> None:
        """Sets rate and length; see the class."""
        if not (initial_learning_rate >= 0 and decay_steps >= 1):
            raise ValueError(
                "Expected initial_learning_rate >= 0 and decay_steps >= 1. Received: "
                f"initial_learning_rate={initial_learning_rate!r}, decay_steps={decay_steps!r}"
            )
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self._plan.assign(np.array([initial_learning_rate, decay_steps], "float32"))

    def __call__(self, step: Tensor) -> Tensor:
        rate, steps = keras.ops.unstack(keras.ops.convert_to_tensor(self._plan), 2)
        done = keras.ops.clip(keras.ops.cast(step, "float32") / steps, 0.0, 1.0)
        return rate * 0.5 * (1.0 + keras.ops.cos(math.pi * done))

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
        }
