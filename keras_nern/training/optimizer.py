"""The default optimizer, and the state of an optimizer across phases.

The default is Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for the hidden
layers and AdamW for the output layer and the biases. Within a phase the learning rate decays to
zero along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv 1608.03983):

    rate(t) = initial_learning_rate * (1 + cos(pi * t / decay_steps)) / 2.

A rate that is assigned to the optimizer replaces this decay by a constant rate: during a fit, as
callbacks do, until its end, and otherwise until the schedule is restarted.

Each phase starts with a new optimizer state. The gradients of the later phases are far larger than
those of the first, so AdamW's moving averages from the first phase would cause giant steps.
"""

import math
import re
from typing import Any

import keras
import numpy as np

from keras_nern.predictor.predictor import OUTPUT_LAYER
from keras_nern.utils import checks
from keras_nern.utils.backend import register, to_int
from keras_nern.utils.types import Tensor

# Learning rate of AdamW over that of Muon, for one predictor and for local ones.
ADAMW_SHARE = {False: 0.2, True: 0.5}
# Adam's epsilon for a residual: gradients with respect to integers are far below the default 1e-7,
# the more so the finer the integers are.
SMALLEST_GRADIENT = 1e-12


@register
class PlannedCosineDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A `keras.optimizers.schedules.CosineDecay` to zero whose length can be changed.

    The length of a phase is only known when `fit` is called. The plan is stored in a variable, so
    that a training step that is already traced uses a new plan, too.

    Args:
        initial_learning_rate: the rate at iteration 0. Defaults to `0.0`.
        decay_steps: the iteration at which the rate is 0. Defaults to `1`.
        fixed_rate: a constant rate in place of the decay; `None` to decay. Defaults to `None`.

    Raises:
        ValueError: if a rate is negative or `decay_steps` is below 1.

    Example:

    >>> schedule = PlannedCosineDecay(0.01, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 150)]
    [0.01, 0.005, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float = 0.0,
        decay_steps: int = 1,
        fixed_rate: float | None = None,
    ) -> None:
        super().__init__()
        # rate, steps, and the fixed rate or -1
        self._plan = keras.Variable(
            np.zeros(3, "float32"), trainable=False, name="plan", dtype="float32"
        )
        self.fixed_rate: float | None = None
        self.plan(initial_learning_rate, decay_steps)
        self.fix(fixed_rate)

    def plan(self, initial_learning_rate: float, decay_steps: int) -> None:
        """Sets rate and length of the decay; see the class for the arguments."""
        if not (initial_learning_rate >= 0 and decay_steps >= 1):
            raise ValueError(
                "Expected initial_learning_rate >= 0 and decay_steps >= 1. Received: "
                f"initial_learning_rate={initial_learning_rate!r}, decay_steps={decay_steps!r}"
            )
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self._assign()

    def fix(self, rate: Any) -> None:
        """Sets a constant rate in place of the decay; `None` to decay again."""
        self.fixed_rate = None if rate is None else checks.number("learning_rate", rate, minimum=0)
        self._assign()

    def _assign(self) -> None:
        fixed = -1.0 if self.fixed_rate is None else self.fixed_rate
        plan = [self.initial_learning_rate, self.decay_steps, fixed]
        self._plan.assign(np.array(plan, "float32"))

    def __call__(self, step: Tensor) -> Tensor:
        rate, steps, fixed = keras.ops.unstack(keras.ops.convert_to_tensor(self._plan), 3)
        done = keras.ops.clip(keras.ops.cast(step, "float32") / steps, 0.0, 1.0)
        decayed = rate * 0.5 * (1.0 + keras.ops.cos(math.pi * done))
        return keras.ops.where(fixed < 0, decayed, fixed)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "fixed_rate": self.fixed_rate,
        }


@register
class Muon(keras.optimizers.Muon):
    """A `keras.optimizers.Muon` for stacks of matrices, such as the kernels of local predictors.

    Each matrix of a variable `(experts, inputs, units)` is updated for itself. `keras.optimizers`
    (3.15) optimizes such variables by AdamW. It also computes the adjustment of the learning rate
    in `keras.config.floatx()`, which TensorFlow does not multiply with variables of another dtype.
    See `keras.optimizers.Muon` for the arguments.

    A learning rate can be assigned although the default optimizer has a schedule, which
    `keras.optimizers` does not allow: it becomes the fixed rate of a `PlannedCosineDecay`.
    """

    @property
    def learning_rate(self) -> Any:
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        schedule = self._learning_rate  # private in Keras 3.15
        if isinstance(schedule, PlannedCosineDecay):
            is_array = hasattr(value, "dtype")
            schedule.fix(keras.ops.convert_to_numpy(value).item() if is_array else value)
        else:
            keras.optimizers.Muon.learning_rate.fset(self, value)

    def _should_use_adamw(self, variable: keras.Variable) -> bool:  # private in Keras 3.15
        if len(variable.shape) != 3:
            return super()._should_use_adamw(variable)
        return any(re.search(name, variable.path) for name in self.exclude_layers)

    def lr_adjust(self, x: Tensor) -> Tensor:
        if self.rms_rate is None:
            return x
        return x * (math.sqrt(max(x.shape[-2:])) * self.rms_rate)


def default_optimizer(
    schedule: PlannedCosineDecay, experts: int = 1, has_residual: bool = False
) -> keras.optimizers.Optimizer:
    """Creates the optimizer that `"auto"` stands for."""
    if has_residual:
        return keras.optimizers.Adam(schedule, epsilon=SMALLEST_GRADIENT)
    return Muon(
        schedule,
        weight_decay=None,
        adam_weight_decay=None,
        adam_lr_ratio=ADAMW_SHARE[experts > 1],
        exclude_layers=[OUTPUT_LAYER],
    )


class PhaseOptimizer:
    """Resets a model's optimizer at the start of each phase.

    Args:
        model: a compiled `NeRNModel`; its optimizer and variables are used.
        schedule: schedule of the default optimizer; `None` if the user chose the optimizer.
    """

    def __init__(self, model: keras.Model, schedule: PlannedCosineDecay | None) -> None:
        self.schedule = schedule
        self._model = model
        self._fixed_rate = None if schedule is None else schedule.fixed_rate

    def start(self, peak_rate: float, epoch_length: int, steps: int, switched: bool) -> None:
        """Prepares the optimizer for `steps` steps of a phase.

        The default optimizer is reset and its schedule starts over, unless the fit continues a
        stopped one: then `steps` is what is left of the schedule, to within an epoch, and
        optimizer and schedule continue. A user's optimizer is only reset when the phase changes.
        It keeps its learning rate, which a callback may have set.

        Args:
            peak_rate: learning rate of the phase's first step.
            epoch_length: steps per epoch.
            steps: steps of the fit.
            switched: whether the phase differs from that of the last fit.
        """
        if self.schedule is None:
            if switched:
                self.reset()
            return
        steps = max(1, steps)
        now = to_int(self._model.optimizer.iterations)
        left = self.schedule.decay_steps - now
        if not switched and now > 0 and steps - epoch_length < left <= steps:
            steps += now
        else:
            self.reset()
        self.schedule.plan(peak_rate, steps)

    def resume(self, peak_rate: float, steps: int) -> None:
        """Plans the rest of a restored fit, so that the schedule ends after `steps` more steps.

        The end of the schedule only moves if the restored fit has another number of epochs.
        """
        end = to_int(self._model.optimizer.iterations) + steps
        if self.schedule is not None and self.schedule.decay_steps != end and steps > 0:
            self.schedule.plan(peak_rate, end)

    def end(self) -> None:
        """Ends a fit: a rate that callbacks gave the default optimizer does not outlast it.

        Such a rate may be close to 0, as the schedule is at the end of a fit.
        """
        if self.schedule is not None:
            self.schedule.fix(self._fixed_rate)

    def reset(self) -> None:
        """Resets the state of the optimizer, except its learning rate."""
        # A LossScaleOptimizer keeps its scale, which does not depend on the phase.
        optimizer = getattr(self._model.optimizer, "inner_optimizer", self._model.optimizer)
        rate = optimizer.learning_rate  # one of its variables, unless there is a schedule
        with self._model.distribute_strategy.scope():
            new = type(optimizer).from_config(optimizer.get_config())
            new.build(self._model.trainable_variables)
        for variable, other in zip(optimizer.variables, new.variables, strict=True):
            if variable is not rate:
                variable.assign(keras.ops.convert_to_numpy(other))

    def check_callback(self, callback: keras.callbacks.Callback) -> None:
        """Raises a ValueError if both a callback and a schedule of the user set the rate."""
        setters = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if self.schedule is not None or not isinstance(callback, setters):
            return
        optimizer = getattr(self._model.optimizer, "inner_optimizer", self._model.optimizer)
        if isinstance(optimizer.get_config().get("learning_rate"), dict):
            raise ValueError(
                f"{optimizer.name} has a learning rate schedule: compile with an optimizer that "
                "has a constant rate, or with the default one, to set its rate by a callback. "
                f"Received: {type(callback).__name__}"
            )
