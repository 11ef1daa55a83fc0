"""How a representation is to be trained: settings, and the optimizer of each phase.

The optimizer starts afresh with each phase: the second loss's gradients are far larger
than those of the first, and AdamW's running averages of the one would make it take giant
steps on the other.
"""

import numbers
from collections.abc import Iterable
from typing import Any

import keras

from keras_nern.predictor.predictor import OUTPUT_LAYER
from keras_nern.training import sampling
from keras_nern.training.evaluation import RepresentationEvaluator
from keras_nern.training.optimizer import PlannedCosineDecay
from keras_nern.utils.backend import count

ADAMW_SHARE = 0.2  # AdamW's rate, of Muon's, under "auto"


class RepresentationCompiler(RepresentationEvaluator):
    """`compile` and what follows from it."""

    optimizer: keras.optimizers.Optimizer  # set by `keras.Model.compile`
    stop_training: bool  # set by callbacks, too
    reconstruction_finished: bool

    def compile(
        self,
        optimizer: Any = "auto",
        reconstruction_steps: int = 6000,
        reconstruction_learning_rate: float = 1e-2,
        distillation_learning_rate: float = 2.5e-4,
        kernel_sampling: Any = "uniform",
        distillation_sampling: Any = "all",
        reconstruction_weight: float = 1.0,
        logits_weight: float = 1e-2,
        feature_map_weight: float = 2e-2,
        layer_output_weight: float = 0.0,
        temperature: float = 1.0,
        gradient_centering: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Chooses how to train; a new model is compiled with the defaults.

        Args:
            optimizer: a Keras optimizer, its name, or `"auto"`: Muon, the output
                layer and the biases by AdamW at a fifth of the rate, no weight decay,
                with half a cosine per phase (`PlannedCosineDecay`) from the two rates
                below. Any optimizer starts afresh, schedule included, where `fit` goes
                from reconstruction to distillation. Defaults to `"auto"`.
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
            layer_output_weight: a_4, of what the kernels' errors do to their layers'
                outputs; it needs `gather_second_moments` before `fit`. Defaults to
                `0.0`, which leaves it out.
            temperature: of the logits distillation. Defaults to `1.0`.
            gradient_centering: whether the predictor's layers learn as if their inputs had the
                mean 0 (see `centring`); `"auto"`: with the default optimizer. Defaults
                to `"auto"`.
            **kwargs: as `keras.Model.compile` takes them, `loss` excepted:
                `metrics` are computed on the rebuilt classifier's outputs;
                `auto_scale_loss` scales the loss where the base computes in float16.

        Raises:
            ValueError: for a negative weight, step count or rate, a temperature
                that is not positive, an unknown sampling or optimizer, or a `loss`.
        """
        settings = {
            "reconstruction_steps": reconstruction_steps,
            "reconstruction_learning_rate": reconstruction_learning_rate,
            "distillation_learning_rate": distillation_learning_rate,
            "reconstruction_weight": reconstruction_weight,
            "logits_weight": logits_weight,
            "feature_map_weight": feature_map_weight,
            "layer_output_weight": layer_output_weight,
        }
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative. Received: {name}={value!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive. Received: temperature={temperature!r}")
        if not isinstance(reconstruction_steps, numbers.Integral):
            raise ValueError(
                "reconstruction_steps must be an integer. "
                f"Received: reconstruction_steps={reconstruction_steps!r}"
            )
        if gradient_centering not in (True, False, "auto"):
            raise ValueError(
                f'gradient_centering must be True, False or "auto". Received: gradient_centering={gradient_centering!r}'
            )
        for name in ("loss", "loss_weights"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    "NeRNModel has its own losses; set their weights instead (logits_weight, "
                    f"...). Received: {name}={kwargs[name]!r}"
                )
        settings |= {
            "temperature": temperature,
            "gradient_centering": optimizer == "auto"
            if gradient_centering == "auto"
            else bool(gradient_centering),
            "kernel_sampling": sampling.get(kernel_sampling),
            "distillation_sampling": sampling.get(distillation_sampling),
        }
        schedule = PlannedCosineDecay() if optimizer == "auto" else None
        if schedule:
            optimizer = keras.optimizers.Muon(
                schedule,
                weight_decay=None,
                adam_weight_decay=None,
                adam_lr_ratio=ADAMW_SHARE,
                exclude_layers=[OUTPUT_LAYER],
            )
        if optimizer is None:
            raise ValueError(
                'optimizer must be a Keras optimizer, its name or "auto". Received: optimizer=None'
            )
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if (
            self._original.computes_in_float16
            and kwargs.get("auto_scale_loss", True)
            and not scaled
        ):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer=optimizer, **kwargs)
        self.optimizer.build(self.trainable_variables)
        for name, value in settings.items():
            setattr(self, name, value)
        self.reconstruction_finished = False
        self._runtime.traced_phase = None
        # Kept where Keras does not track metrics, which it would then count twice.
        self._runtime.compile_arguments = kwargs
        self._runtime.unbuilt_metrics = bool(
            kwargs.get("metrics") or kwargs.get("weighted_metrics")
        )
        self._runtime.settings = list(settings)
        self._runtime.schedule = schedule

    def get_compile_config(self) -> dict[str, Any]:
        arguments = {
            **{name: getattr(self, name) for name in self._runtime.settings},
            **self._runtime.compile_arguments,
            "optimizer": "auto" if self._runtime.schedule else self.optimizer,
        }
        return keras.saving.serialize_keras_object(arguments)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _start_optimizer(self, phase: str, epoch_length: int, steps: int) -> None:
        """Gives a new phase a fresh optimizer, and a new fit a new default schedule.

        If the steps asked for are those left in the current plan, to within an epoch, a
        fit that was stopped goes on: optimizer and plan are kept. An optimizer of the
        user's own starts with the settings it has, a rate that a callback set included.
        """
        switched = phase != self.phase
        schedule = self._runtime.schedule
        if schedule is None:  # the user's own
            if switched:
                self._reset_optimizer()
            return
        steps = max(1, steps)
        now = count(self.optimizer.iterations)
        left = schedule.decay_steps - now
        if not switched and now > 0 and steps - epoch_length < left <= steps:
            steps += now
        else:
            self._reset_optimizer()
        schedule.plan(self._peak_rate(phase), steps)

    def _resume_optimizer(self, phase: str, steps: int) -> None:
        """Lets the default schedule of a restored fit end where the fit now does.

        That is where it was to end before, unless the fit that goes on was asked for more or
        fewer steps than the one that was killed.
        """
        schedule = self._runtime.schedule
        end = count(self.optimizer.iterations) + steps
        if schedule is not None and schedule.decay_steps != end and steps > 0:
            schedule.plan(self._peak_rate(phase), end)

    def _peak_rate(self, phase: str) -> float:
        if phase == "distillation":
            return self.distillation_learning_rate
        return self.reconstruction_learning_rate

    def _reset_optimizer(self) -> None:
        """Gives the optimizer the state of a new one, but for its learning rate."""
        # around it may be a loss scale, which is no matter of the phase
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        rate = optimizer.learning_rate  # a variable of its own, unless there is a schedule
        with self.distribute_strategy.scope():
            new = type(optimizer).from_config(optimizer.get_config())
            new.build(self.trainable_variables)
        for variable, other in zip(optimizer.variables, new.variables, strict=True):
            if variable is not rate:
                variable.assign(keras.ops.convert_to_numpy(other))

    def _check_callbacks(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        setters = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if self._runtime.schedule is None:
            return
        for callback in callbacks:
            if isinstance(callback, setters):
                raise ValueError(
                    "The default optimizer has a learning rate schedule: compile with an "
                    "optimizer of your own to set its rate by a callback. Received: "
                    f"{type(callback).__name__}"
                )
