"""The settings of `NeRNModel.compile`, validated once."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_nern.training import sampling
from keras_nern.utils import checks

PHASES = ("reconstruction", "curvature", "distillation")
DISTILLATION_LOSSES = ("logits_loss", "feature_map_loss")
LOSSES = ("reconstruction_loss", "curvature_loss", *DISTILLATION_LOSSES, "rate_loss")

# Defaults for one predictor, for local ones and for a residual. The rates of experts are higher,
# because each has few parameters and sees many kernels per step. The rate of a residual is in
# steps of its integers.
AUTO = {
    "one": {
        "curvature_steps": 0,
        "reconstruction_learning_rate": 1e-2,
        "curvature_learning_rate": 1e-3,
        "distillation_learning_rate": 2.5e-4,
        "reconstruction_weight": 1.0,
    },
    "local": {
        "curvature_steps": 300,
        "reconstruction_learning_rate": 4e-2,
        "curvature_learning_rate": 3e-3,
        "distillation_learning_rate": 1e-3,
        "reconstruction_weight": 0.0,
    },
    "residual": {
        "reconstruction_steps": 0,
        "curvature_steps": 0,
        "reconstruction_learning_rate": 0.0,
        "curvature_learning_rate": 2e-2,
        "distillation_learning_rate": 2e-2,
        "reconstruction_weight": 0.0,
    },
}
EPOCHS = {False: 800, True: 300}  # of reconstruction, over all slots
SINGLE_BATCH = 4096  # kernels per step of a single predictor
RUN_BATCH = 512  # kernels per step of each expert ...
BATCH = 8_192  # ... more if there are few experts, and ...
MAX_BATCH = 2**18  # ... fewer if there are many, which bounds the memory


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a representation is trained; the attributes are documented at `NeRNModel.compile`.

    Attributes:
        keras_arguments: the arguments of `keras.Model.compile` other than the optimizer.

    Raises:
        ValueError: if a setting has the wrong type or is out of range.
    """

    reconstruction_steps: int
    curvature_steps: int
    reconstruction_learning_rate: float
    curvature_learning_rate: float
    distillation_learning_rate: float
    kernel_sampling: Any
    distillation_sampling: Any
    reconstruction_weight: float
    logits_weight: float
    feature_map_weight: float
    temperature: float
    gradient_centering: bool
    keras_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        num_slots: int,
        experts: int,
        is_default_optimizer: bool,
        has_residual: bool = False,
        **given: Any,
    ) -> "Settings":
        """Creates settings, with values in place of each `"auto"`.

        Args:
            num_slots: number of kernels in an epoch, see `representation`.
            experts: number of experts.
            is_default_optimizer: whether the optimizer is the default one.
            has_residual: whether a residual is trained, in place of the predictor. Defaults to
                `False`.
            **given: the attributes, or `"auto"` for those in `AUTO`.
        """
        kind = "residual" if has_residual else "local" if experts > 1 else "one"
        for name, value in AUTO[kind].items():
            if _is_auto(given[name]):
                given[name] = value
        if has_residual and given["reconstruction_steps"]:
            raise ValueError(
                "reconstruction_steps must be 0 with a residual, whose integers compress has "
                f"chosen. Received: reconstruction_steps={given['reconstruction_steps']!r}"
            )
        if _is_auto(given["kernel_sampling"]):
            drawn = SINGLE_BATCH
            if experts > 1:
                drawn = experts * min(max(RUN_BATCH, BATCH // experts), MAX_BATCH // experts)
            given["kernel_sampling"] = sampling.UniformSampling(drawn)
        given["kernel_sampling"] = sampling.get(given["kernel_sampling"], "kernel_sampling")
        if _is_auto(given["reconstruction_steps"]):
            batch_size = getattr(given["kernel_sampling"], "batch_size", num_slots)
            epoch = max(1, num_slots / batch_size)
            given["reconstruction_steps"] = math.ceil(EPOCHS[experts > 1] * epoch)
        if _is_auto(given["gradient_centering"]):
            given["gradient_centering"] = is_default_optimizer and kind == "one"
        elif given["gradient_centering"] is True and kind != "one":
            raise ValueError(
                'gradient_centering must be False or "auto" for local predictors, whose layers '
                "have no biases, and for a residual. Received: gradient_centering=True"
            )
        return cls(**given)

    def __post_init__(self) -> None:
        def convert(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in (
            "reconstruction_learning_rate",
            "curvature_learning_rate",
            "distillation_learning_rate",
            "reconstruction_weight",
            "logits_weight",
            "feature_map_weight",
        ):
            convert(name, checks.number(name, getattr(self, name), minimum=0))
        for name in ("reconstruction_steps", "curvature_steps"):
            convert(name, checks.integer(name, getattr(self, name), minimum=0))
        convert("temperature", checks.number("temperature", self.temperature, positive=True))
        for name in ("kernel_sampling", "distillation_sampling"):
            convert(name, sampling.get(getattr(self, name), name))
        if not isinstance(self.gradient_centering, (bool, np.bool_)):
            raise ValueError(
                'gradient_centering must be True, False or "auto". '
                f"Received: gradient_centering={self.gradient_centering!r}"
            )
        convert("gradient_centering", bool(self.gradient_centering))

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss in `LOSSES`; that of the curvature contains the others."""
        names = [name.removesuffix("_loss") + "_weight" for name in LOSSES]
        return {loss: getattr(self, name, 1.0) for loss, name in zip(LOSSES, names, strict=True)}

    def steps(self, phase: str) -> int:
        """The number of steps of a phase before the distillation."""
        return getattr(self, f"{phase}_steps")

    def peak_rate(self, phase: str) -> float:
        """The initial learning rate of the default schedule in a phase."""
        return getattr(self, f"{phase}_learning_rate")

    def to_config(self) -> dict[str, Any]:
        """The arguments of `NeRNModel.compile`, except the optimizer."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**own.pop("keras_arguments"), **own}


# Names of the settings that NeRNModel has as attributes.
NAMES = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "keras_arguments")
