"""The losses that a training step minimizes.

    reconstruction   L_rec
    curvature        L_curvature
    distillation     a_1 L_rec + a_2 L_logits + a_3 L_maps

`losses` defines the losses; the weights a_1 to a_3 are arguments of `NeRNModel.compile`.
L_curvature approximates a_2 L_logits + a_3 L_maps from factors that `gather_curvature` collects.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern import losses
from keras_nern.network.curvature import Factors, gather_factors, removal_cost
from keras_nern.network.original import ForwardOutputs, OriginalNetwork
from keras_nern.network.teacher import Teacher
from keras_nern.representation import Representation
from keras_nern.training import sampling
from keras_nern.training.settings import DISTILLATION_LOSSES, LOSSES, Settings
from keras_nern.utils import checks
from keras_nern.utils.backend import assign_or_create, constant
from keras_nern.utils.types import Tensor


class Objective:
    """The losses of a `NeRNModel`, and the state they need besides the model's variables.

    Args:
        original: the base.
        representation: the predicted kernels.
        seed: the `keras.random.SeedGenerator` of the sampling.

    Attributes:
        scope: function that opens the distribution strategy's scope, to create variables in.
        teacher: the `network.teacher.Teacher` whose logits are distilled; `None` for the base.
    """

    def __init__(
        self,
        original: OriginalNetwork,
        representation: Representation,
        seed: keras.random.SeedGenerator,
    ) -> None:
        self._original = original
        self._representation = representation
        self._seed = seed
        self.teacher: Teacher | None = None
        self.scope = tf.distribute.get_strategy().scope
        with self.scope():
            self._multipliers = constant(np.ones(len(LOSSES)))
            # first step whose loss is not finite, and index of its cause in `_causes`; or -1, -1
            self._failure = keras.Variable(
                [-1, -1], trainable=False, dtype="int32", aggregation="only_first_replica"
            )
        self._causes: dict[str, list[str]] = {}
        self._targets: keras.Variable | None = None  # (weights,), see Blocks.weights
        self._slot_blocks: keras.Variable | None = None  # (slots,), int32
        self._cumulative: keras.Variable | None = None  # (slots,), see cumulative_magnitude
        self._factors: list[Factors] = []  # per kernel, of variables

    @property
    def has_curvature(self) -> bool:
        """Whether `gather_curvature` has been called."""
        return bool(self._factors)

    @property
    def has_targets(self) -> bool:
        """Whether `refresh_targets` has been called."""
        return self._targets is not None

    def refresh_targets(self, settings: Settings) -> None:
        """Reads the kernels to predict from the current weights of the base."""
        self._original.check_finite()
        blocks = self._original.blocks
        samplings = (settings.kernel_sampling, settings.distillation_sampling)
        with self.scope():
            self._targets = assign_or_create(self._targets, blocks.weights())
            order = self._representation.block_of_slots()
            self._slot_blocks = assign_or_create(self._slot_blocks, order, "int32")
            if any(getattr(one, "by_magnitude", True) for one in samplings):
                norms = self._representation.norms_of_slots(order)
                cumulative = sampling.cumulative_magnitude(norms)
                self._cumulative = assign_or_create(self._cumulative, cumulative)

    def scale(self, multipliers: Mapping[str, float]) -> None:
        """Sets multipliers of the losses' weights in training; see `NeRNModel.scale_losses`."""
        unknown = sorted(set(multipliers) - set(LOSSES))
        if unknown:
            raise ValueError(f"The losses to scale must be among {LOSSES}. Received: {unknown}")
        for name, value in multipliers.items():
            checks.number(name, value, minimum=0)
        before = keras.ops.convert_to_numpy(self._multipliers)
        values = [multipliers.get(name, value) for name, value in zip(LOSSES, before, strict=True)]
        self._multipliers.assign(values)

    def factors(self) -> list[Factors]:
        """The curvature of every kernel, as arrays.

        Raises:
            ValueError: if it has not been gathered.
        """
        self.check_curvature()
        convert = keras.ops.convert_to_numpy
        return [
            Factors(*(None if one is None else convert(one) for one in each))
            for each in self._factors
        ]

    def check_curvature(self) -> None:
        """Raises a ValueError unless `gather_curvature` has been called."""
        if not self.has_curvature:
            raise ValueError(
                "Expected a model whose curvature has been gathered: call gather_curvature(images)"
                " or fit with curvature_steps. Received: none"
            )

    @property
    def without_factors(self) -> dict[str, str]:
        """What the curvature loss takes for layers without full factors, by name of the kernel."""
        found = {}
        for kernel, factors in zip(self._original.blocks.kernels, self._factors, strict=False):
            if factors.positions is not None:
                found[kernel.name] = "factors of channels and of positions"
            elif factors.inputs is None:
                missing = "nothing: no gradient reaches it"
                found[kernel.name] = missing if factors.diagonal is None else "the diagonal"
        return found

    def gather_curvature(self, settings: Settings, batches: Iterable, images: int) -> None:
        """Gathers the factors that L_curvature needs; see `network.curvature.gather_factors`."""
        found = gather_factors(
            self._original,
            batches,
            images,
            settings.logits_weight,
            settings.feature_map_weight,
            settings.temperature,
        )
        with self.scope():
            self._factors = [
                Factors(*(None if one is None else constant(one) for one in factors))
                for factors in found
            ]

    def take_curvature(self, other: "Objective") -> None:
        """Shares the curvature that another objective of the same base and losses has gathered."""
        self._factors = other._factors

    def curvature_terms(self, kernels: list[Tensor]) -> list[Tensor]:
        """What the errors of predicted kernels cost, a scalar for each kernel."""
        return losses.curvature_costs(*self._curvature_arguments(kernels))

    def _curvature_arguments(self, kernels: list[Tensor]) -> tuple[list[Tensor], ...]:
        """The arguments of `losses.curvature_loss`, with variables converted to tensors."""
        convert = keras.ops.convert_to_tensor
        originals = [convert(kernel.variable) for kernel in self._original.blocks.kernels]
        factors = [
            Factors(*(None if one is None else convert(one) for one in each))
            for each in self._factors
        ]
        return originals, kernels, factors

    def removal_costs(self) -> list[np.ndarray]:
        """What the removal of each block of S weights costs by the curvature loss.

        Returns:
            A list with a float64 array `(filters, channels)` per kernel.
        """
        self.check_curvature()
        return [
            removal_cost(kernel, *factors)
            for kernel, factors in zip(self._original.blocks.kernels, self._factors, strict=True)
        ]

    def targets(self, inputs: Any, original: ForwardOutputs | None = None) -> ForwardOutputs:
        """The feature maps of the base, and the logits of the teacher if there is one.

        Args:
            inputs: a batch of the base's inputs.
            original: the outputs of the base for them; `None` to compute them. Defaults to `None`.
        """
        outputs = self._original.forward(inputs) if original is None else original
        return outputs._replace(logits=self.teacher.logits(inputs)) if self.teacher else outputs

    def terms(
        self,
        settings: Settings,
        phase: str = "reconstruction",
        inputs: Any = None,
        teacher: ForwardOutputs | None = None,
        sample_weight: Any = None,
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """The losses of one training step.

        Args:
            settings: settings of the model.
            phase: `"reconstruction"`, `"curvature"` or `"distillation"`. Defaults to
                `"reconstruction"`.
            inputs: a batch of the base's inputs, for distillation. Defaults to `None`.
            teacher: the `targets` of `inputs`, for distillation. Defaults to `None`.
            sample_weight: as for `distillation_terms`. Defaults to `None`.

        Returns:
            `(terms, means, parts)`. `terms` is a dict from the names of the losses, and
            `"relative_error"`, to scalars. `means` are the mean inputs of the predictor's layers,
            see `KernelPredictor.predict_with_means`. `parts`, an argument of `watch`, is a dict
            from possible causes of a non-finite loss to scalars; the scalar of the actual cause
            is not finite.
        """
        representation = self._representation
        if representation.residual is not None:
            return self._residual_terms(settings, phase, inputs, teacher, sample_weight)
        drawn, by_run = representation.draw(
            settings.kernel_sampling
            if phase == "reconstruction"
            else settings.distillation_sampling,
            self._seed,
            None if self._cumulative is None else keras.ops.convert_to_tensor(self._cumulative),
        )
        predicted, means = representation.predict(drawn, by_run)
        if drawn is None:  # each block once, although short runs have some in several slots
            predicted = representation.in_block_order(predicted)
            indices = keras.ops.arange(representation.blocks.num_blocks, dtype="int32")
        else:
            indices = keras.ops.take(keras.ops.convert_to_tensor(self._slot_blocks), drawn)
        shares = representation.shares(drawn) if by_run and drawn is not None else None
        terms = self._weight_errors(indices, predicted, shares)
        parts = {"the predictor": terms["reconstruction_loss"]}
        if teacher is not None:
            kernels = self._representation.assemble(self._all_blocks(drawn, predicted))
            student = self._original.forward(inputs, kernels)
            terms.update(self.distillation_terms(settings, teacher, student, sample_weight))
            parts |= _parts_of(inputs, teacher, student)
        elif phase == "curvature":
            kernels = self._representation.assemble(self._all_blocks(drawn, predicted))
            arguments = self._curvature_arguments(kernels)
            terms["curvature_loss"] = losses.curvature_loss(*arguments)
            del terms["reconstruction_loss"]
            parts = {"the predictor": terms["curvature_loss"]}
        return terms, means, parts

    def _residual_terms(
        self,
        settings: Settings,
        phase: str,
        inputs: Any,
        teacher: ForwardOutputs | None,
        sample_weight: Any,
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """`terms` of a representation with a residual, whose kernels always count as a whole."""
        kernels = self._representation.kernels()
        residual = self._representation.residual
        assert residual is not None
        terms = self._kernel_errors(kernels) | {"rate_loss": residual.rate_loss()}
        parts = {"the residual": terms["rate_loss"]}
        if teacher is not None:
            student = self._original.forward(inputs, kernels, self._representation.vectors())
            terms.update(self.distillation_terms(settings, teacher, student, sample_weight))
            parts |= _parts_of(inputs, teacher, student)
        elif phase == "curvature":
            terms["curvature_loss"] = losses.curvature_loss(*self._curvature_arguments(kernels))
            del terms["reconstruction_loss"]
        return terms, [], parts

    def _kernel_errors(self, kernels: list[Tensor]) -> dict[str, Tensor]:
        errors = sizes = keras.ops.zeros((), "float32")
        for kernel, predicted in zip(self._original.blocks.kernels, kernels, strict=True):
            original = keras.ops.cast(keras.ops.convert_to_tensor(kernel.variable), "float32")
            errors += keras.ops.sum(keras.ops.square(original - predicted))
            sizes += keras.ops.sum(keras.ops.square(original))
        mean = errors / self._original.blocks.num_weights
        return {
            "reconstruction_loss": keras.ops.sqrt(keras.ops.maximum(mean, losses.EPSILON)),
            "relative_error": errors / keras.ops.maximum(sizes, losses.EPSILON),
        }

    def watch(self, phase: str, step: Tensor, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Records the first step whose loss is not finite, and its cause.

        Args:
            phase: phase of the fit.
            step: number of the step in the phase.
            loss: loss of the step.
            parts: dict from possible causes to scalars, as `terms` returns.
        """
        parts = {**parts, "the loss": loss}
        self._causes[phase] = list(parts)
        finite = keras.ops.isfinite(keras.ops.stack(list(parts.values())))
        bad = keras.ops.cast(keras.ops.logical_not(finite), "int32")
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:  # the first replica records for all
            bad = context.all_reduce(tf.distribute.ReduceOp.SUM, bad)
        index = keras.ops.cast(keras.ops.argmax(keras.ops.minimum(bad, 1)), "int32")
        before = keras.ops.convert_to_tensor(self._failure)
        failed = keras.ops.logical_and(before[0] < 0, keras.ops.any(bad > 0))
        now = keras.ops.stack([keras.ops.cast(step, "int32"), index])
        self._failure.assign(keras.ops.where(failed, now, before))

    def failure(self, phase: str) -> tuple[int, str] | None:
        """Returns and clears the step and cause that `watch` recorded; `None` if there are none."""
        step, index = keras.ops.convert_to_numpy(self._failure).tolist()
        if step < 0:
            return None
        self._failure.assign([-1, -1])
        return step, self._causes[phase][index]

    def distillation_terms(
        self,
        settings: Settings,
        teacher: ForwardOutputs,
        student: ForwardOutputs,
        sample_weight: Any = None,
    ) -> dict[str, Tensor]:
        """The losses between `targets` and the rebuilt network's outputs on one batch.

        Args:
            settings: settings of the model.
            teacher: the `targets`.
            student: the outputs of the rebuilt network.
            sample_weight: weights of the images, as Keras passes them to a step: arrays
                `(batch, ...)` or `None`. Defaults to `None`.
        """
        weights = _image_weights(sample_weight)
        logits = zip(teacher.logits, student.logits, strict=True)
        return {
            "logits_loss": sum(
                losses.logits_distillation_loss(a, b, settings.temperature, weights)
                for a, b in logits
            ),
            "feature_map_loss": losses.feature_map_distillation_loss(
                teacher.maps, student.maps, weights
            ),
        }

    def weighted(
        self, settings: Settings, terms: Mapping[str, Tensor], scaled: bool = False
    ) -> Tensor:
        """The weighted sum of losses; without those of distillation, the weight of L_rec is 1.

        Args:
            settings: settings of the model.
            terms: dict from the names of losses to scalars.
            scaled: whether to apply the multipliers of `scale`. Defaults to `False`.
        """
        multipliers = (
            keras.ops.convert_to_tensor(self._multipliers) if scaled else [1.0] * len(LOSSES)
        )
        weights = settings.weights
        if not any(name in terms for name in DISTILLATION_LOSSES):
            weights["reconstruction_loss"] = 1.0
        return sum(
            multipliers[i] * weight * terms[name]
            for i, (name, weight) in enumerate(weights.items())
            if name in terms
        )

    def _weight_errors(
        self, indices: Tensor, predicted: Tensor, shares: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The errors of drawn blocks `(n, B)`; `shares` `(n,)` as `Representation.shares`."""
        blocks = self._original.blocks
        originals, mask = blocks.take(keras.ops.convert_to_tensor(self._targets), indices)
        layers, _ = blocks.locate(indices)
        scales = keras.ops.convert_to_tensor(self._representation.scales)
        scale = keras.ops.take(scales, layers)[:, None]
        weights = mask * keras.ops.take(self._representation.layer_weights, layers)[:, None]
        evenly = mask if shares is None else mask * shares[:, None]  # as all kernels count
        return {
            "reconstruction_loss": losses.reconstruction_loss(
                originals / scale, predicted, weights
            ),
            "relative_error": losses.relative_error(originals, scale * predicted, evenly),
        }

    def _all_blocks(self, drawn: Tensor | None, predicted: Tensor) -> Tensor:
        """Predicts all blocks `(blocks, B)`; only those of the drawn slots get gradients."""
        representation = self._representation
        if drawn is None:
            return predicted
        rest = keras.ops.stop_gradient(representation.predict_all())
        # A slot drawn n times has n rows; each gets 1 / n of the slot's gradient.
        times = keras.ops.segment_sum(
            keras.ops.ones_like(drawn, "float32"), drawn, representation.num_slots
        )
        share = 1.0 / keras.ops.take(times, drawn, axis=0)[:, None]
        fixed = keras.ops.stop_gradient(predicted)
        rows = fixed + share * (predicted - fixed)
        rows = keras.ops.scatter_update(rest, drawn[:, None], rows)
        return representation.in_block_order(rows)


def _image_weights(sample_weight: Any) -> Tensor | None:
    """The weight of each image `(batch,)`, the mean of those of its outputs and positions."""
    given = [one for one in keras.tree.flatten(sample_weight) if one is not None]
    rows = [keras.ops.reshape(one, (keras.ops.shape(one)[0], -1)) for one in given]
    means = [keras.ops.mean(keras.ops.cast(one, "float32"), axis=-1) for one in rows]
    return sum(means) / len(means) if means else None


def _parts_of(inputs: Any, teacher: ForwardOutputs, student: ForwardOutputs) -> dict[str, Tensor]:
    """Possible causes of a NaN in the distillation's losses, in the order of computation."""
    images = [
        keras.ops.sum(keras.ops.cast(one, "float32") * 0.0)  # 0, or NaN
        for one in keras.tree.flatten(inputs)
        if keras.backend.standardize_dtype(one.dtype) != "string"
    ]
    parts = {"the images": sum(images, keras.ops.zeros((), "float32"))}
    distances = losses.feature_map_distances(teacher.maps, student.maps)
    for name, distance in zip(teacher.map_names, distances, strict=True):
        parts.setdefault(f"the layer {name!r}", distance)
    for index, (a, b) in enumerate(zip(teacher.logits, student.logits, strict=True)):
        parts[f"output {index}"] = keras.ops.sum((a + b) * 0.0)
    return parts
