"""The learning rate over both phases of a fit.

Reconstruction takes large steps on the weights alone; distillation then takes small
ones through both networks. Within each phase the rate falls from its peak to zero
along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv 1608.03983):

    rate(t) = peak * (1 + cos(pi * (t - start) / steps)) / 2.
"""

import math

import keras
import numpy as np

from keras_nern.positional_encoding import PACKAGE


@keras.saving.register_keras_serializable(package=PACKAGE)
class PhaseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine for reconstruction, then half a cosine for distillation.

    `NeRNModel.fit` knows how long each phase is only when it is called, so the plan
    is kept in a variable and can be changed without tracing the step again.

    Args:
        reconstruction: `(start, steps, peak)` of the first phase: the optimizer's
            iteration it starts at, its length, its learning rate. Defaults to
            `(0, 1, 0.0)`.
        distillation: the same for the second phase. Defaults to `(1, 1, 0.0)`.

    Example:

    >>> schedule = PhaseSchedule((0, 100, 0.01), (100, 50, 0.001))
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 125, 150)]
    [0.01, 0.005, 0.001, 0.0005, 0.0]
    """

    def __init__(self, reconstruction=(0, 1, 0.0), distillation=(1, 1, 0.0)):
        super().__init__()
        self._plan = keras.Variable(
            np.zeros((2, 3), "float32"), trainable=False, name="plan", dtype="float32"
        )
        self.plan(reconstruction, distillation)

    def plan(self, reconstruction, distillation):
        """Sets both phases, each `(start, steps, peak)`."""
        for start, steps, peak in (reconstruction, distillation):
            if start < 0 or steps < 1 or peak < 0:
                raise ValueError(
                    "A phase is (start >= 0, steps >= 1, peak >= 0). "
                    f"Received: {(start, steps, peak)}"
                )
        self.reconstruction = tuple(reconstruction)
        self.distillation = tuple(distillation)
        self._plan.assign(np.asarray([reconstruction, distillation], "float32"))

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        start, steps, peak = keras.ops.unstack(keras.ops.cast(self._plan, "float32"), 3, axis=1)
        done = keras.ops.clip((step - start) / steps, 0.0, 1.0)
        rates = peak * 0.5 * (1.0 + keras.ops.cos(math.pi * done))
        return keras.ops.where(step < start[1], rates[0], rates[1])

    def get_config(self):
        return {"reconstruction": self.reconstruction, "distillation": self.distillation}
