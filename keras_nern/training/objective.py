"""What a step minimises: the losses of `losses`, of the kernels and images it is given.

    reconstruction   a_1 L_rec                         + a_4 L_out
    distillation     a_1 L_rec + a_2 L_logits + a_3 L_maps

L_out, for which second moments have to be gathered first, is left out by default.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_nern import losses
from keras_nern.data.inputs import (
    are_arrays,
    check_targets,
    examine,
    input_batches,
    is_pair,
    unpacked,
)
from keras_nern.network.moments import second_moments
from keras_nern.network.original import ForwardOutputs
from keras_nern.training import sampling
from keras_nern.utils.backend import (
    Runtime,
    assigned,
    constant,
    is_between_workers,
    needs_tensorflow,
)
from keras_nern.utils.types import Tensor

# The losses that need images.
DISTILLED = ("logits_loss", "feature_map_loss")

WEIGHTED = ("reconstruction_loss", *DISTILLED, "layer_output_loss")


class RepresentationObjective(keras.Model):
    """The losses of a `NeRNModel`.

    `NeRNModel` owns `_original`, `predictor`, `positions` and `scales` and predicts all
    kernels (`_predicted_kernels`); `compile` sets the losses' weights.
    """

    def _start_objective(self) -> None:
        self._runtime = Runtime()

    def relative_error(self) -> float:
        """The squared error of all represented weights, relative to their squares.

        Returns:
            A float: sum (W - W^)^2 / sum W^2, of the predictor and the base as they
            are now.
        """
        terms = self._compare_kernels(self._predicted_kernels())
        return float(terms["relative_error"])

    def original_kernels(self) -> dict[str, np.ndarray]:
        """The kernels that are represented, as the base has them now.

        Returns:
            A dict from the kernel's name, as `predict_kernels` has it, to a float32 array
            of the variable's shape.
        """
        names = [kernel.name for kernel in self._original.blocks.kernels]
        return dict(zip(names, self._original.kernel_values(), strict=True))

    def layer_errors(self) -> dict[str, float]:
        """The relative squared error of each layer's weights.

        Returns:
            A dict from the kernel's name, as `predict_kernels` has it, to a float:
            sum (W - W^)^2 / sum W^2 over that kernel alone.
        """
        return {
            name: float(losses.relative_error(original, keras.ops.convert_to_numpy(value), 1.0))
            for (name, original), value in zip(
                self.original_kernels().items(), self._predicted_kernels(), strict=True
            )
        }

    def scale_losses(self, **multipliers: float) -> None:
        """Multiplies the losses' weights until the fit that runs, or the next, ends.

        Evaluation keeps the full weights.

        Args:
            **multipliers: by loss (`reconstruction_loss`, `logits_loss`,
                `feature_map_loss`, `layer_output_loss`), at least 0; those not named
                stay as they are.

        Raises:
            ValueError: for another name or a negative multiplier.
        """
        unknown = sorted(set(multipliers) - set(WEIGHTED))
        if unknown or not all(value >= 0 for value in multipliers.values()):
            raise ValueError(
                f"Expected multipliers of at least 0 for {WEIGHTED}. Received: {multipliers}"
            )
        if self._runtime.multipliers is None:
            self._refresh_targets()
        before = keras.ops.convert_to_numpy(self._runtime.multipliers)
        self._runtime.multipliers = assigned(
            self._runtime.multipliers,
            [multipliers.get(name, value) for name, value in zip(WEIGHTED, before, strict=True)],
        )

    def _refresh_targets(self) -> None:
        """Reads what is to be predicted from the base as it is now."""
        runtime, blocks = self._runtime, self._original.blocks
        samplings = (self.kernel_sampling, self.distillation_sampling)
        cumulative = None
        if any(getattr(one, "by_magnitude", True) for one in samplings):
            cumulative = sampling.cumulative_magnitude(blocks.norms())
        with self.distribute_strategy.scope():
            if runtime.multipliers is None:
                runtime.multipliers = constant(np.ones(len(WEIGHTED)))
            runtime.weights = assigned(runtime.weights, blocks.weights())
            if cumulative is not None:
                runtime.cumulative = assigned(runtime.cumulative, cumulative)

    def _draw(self, sampling: Any) -> Tensor | None:
        """Numbers of the blocks that get gradients at a step, or `None` for all."""
        cumulative = self._runtime.cumulative
        if cumulative is not None:
            cumulative = keras.ops.convert_to_tensor(cumulative)
        return sampling.sample(self._original.blocks.num_blocks, self._seed, cumulative)

    def _predict_drawn(self, indices: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Predicts the drawn blocks.

        Returns:
            `(indices, predicted, means)`: `(n,)`, `(n, B)` and what `predict_with_means`
            gives besides.
        """
        if indices is None:
            indices = keras.ops.arange(self._original.blocks.num_blocks, dtype="int32")
        return indices, *self.predictor.predict_with_means(self._coordinates(indices))

    def _compare(self, indices: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """The weights' errors of drawn blocks."""
        blocks = self._original.blocks
        weights = keras.ops.convert_to_tensor(self._runtime.weights)
        originals, mask = blocks.take(weights, indices)
        layers, _ = blocks.places(indices)
        scale = keras.ops.take(keras.ops.convert_to_tensor(self.scales), layers)[:, None]
        return {
            "reconstruction_loss": losses.reconstruction_loss(originals / scale, predicted, mask),
            "relative_error": losses.relative_error(originals, scale * predicted, mask),
        }

    def _compare_kernels(self, kernels: Sequence[Tensor]) -> dict[str, float]:
        """The weights' errors of all kernels."""
        scales = keras.ops.convert_to_numpy(self.scales)
        squares = scaled = size = 0.0
        for scale, kernel, original in zip(
            scales, kernels, self._original.kernel_values(), strict=True
        ):
            error = np.sum((keras.ops.convert_to_numpy(kernel) - original) ** 2, dtype="float64")
            squares += error
            scaled += error / scale**2
            size += np.sum(original**2, dtype="float64")
        count = self._original.blocks.num_weights
        return {
            "reconstruction_loss": np.sqrt(max(scaled / count, losses.EPSILON)),
            "relative_error": squares / max(size, losses.EPSILON),
        }

    def _distance(self, teacher: ForwardOutputs, student: ForwardOutputs) -> dict[str, Tensor]:
        logits = zip(teacher.logits, student.logits, strict=True)
        return {
            "logits_loss": sum(
                losses.logits_distillation_loss(a, b, self.temperature) for a, b in logits
            ),
            "feature_map_loss": losses.feature_map_distillation_loss(teacher.maps, student.maps),
        }

    def _weighted(
        self, terms: dict[str, Tensor], multipliers: Tensor = (1.0, 1.0, 1.0, 1.0)
    ) -> Tensor:
        weights = (
            self.reconstruction_weight,
            self.logits_weight,
            self.feature_map_weight,
            self.layer_output_weight,
        )
        return sum(
            multipliers[i] * weights[i] * terms[name]
            for i, name in enumerate(WEIGHTED)
            if name in terms
        )

    def _reconstruction_terms(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        drawn = self._draw(self.kernel_sampling)
        indices, predicted, means = self._predict_drawn(drawn)
        terms = self._compare(indices, predicted)
        if self.layer_output_weight:
            kernels = self._rebuilt_kernels(self._all_blocks(drawn, predicted))
            terms["layer_output_loss"] = losses.layer_output_loss(
                [keras.ops.convert_to_tensor(k.variable) for k in self._original.blocks.kernels],
                kernels,
                self._runtime.moments,
                self._runtime.output_scales,
            )
        return terms, means

    def _distillation_terms(
        self, inputs: Any, teacher: ForwardOutputs
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        drawn = self._draw(self.distillation_sampling)
        indices, predicted, means = self._predict_drawn(drawn)
        kernels = self._rebuilt_kernels(self._all_blocks(drawn, predicted))
        student = self._original.observe(inputs, kernels)
        terms = self._compare(indices, predicted)
        return {**terms, **self._distance(teacher, student)}, means

    def _all_blocks(self, drawn: Tensor | None, predicted: Tensor) -> Tensor:
        """All blocks as rows `(blocks, B)`, with gradients to those drawn."""
        if drawn is None:
            return predicted
        rest = keras.ops.stop_gradient(self._predicted_blocks())
        # A block drawn n times stands in n rows, each of which gets its gradient.
        times = keras.ops.segment_sum(
            keras.ops.ones_like(drawn, "float32"), drawn, self._original.blocks.num_blocks
        )
        share = 1.0 / keras.ops.take(times, drawn, axis=0)[:, None]
        fixed = keras.ops.stop_gradient(predicted)
        rows = fixed + share * (predicted - fixed)
        return keras.ops.scatter_update(rest, drawn[:, None], rows)

    def gather_second_moments(self, x: Any, images: int = 2000, batch_size: int = 64) -> None:
        """Learns from images which errors of the kernels would show, see `moments`.

        Args:
            x: inputs or (inputs, labels), as `fit` takes them; noise will do.
            images: how many of them to use. Defaults to `2000`.
            batch_size: how many to take at once where `x` is an array. Defaults to
                `64`.

        Raises:
            ValueError: where `x` is empty, or its images do not fit the base.
            RuntimeError: on another Keras backend than TensorFlow.
        """
        needs_tensorflow("gather_second_moments")
        x = self.examine(x)
        batches = input_batches(x, images, batch_size, self._original.input_shapes)
        gathered = second_moments(self._original.base, self._original.blocks.kernels, batches)
        with self.distribute_strategy.scope():
            self._runtime.moments = [m and constant(m.moments) for m in gathered]
            self._runtime.output_scales = [m and constant(m.scale) for m in gathered]
        self._runtime.traced_phase = None

    def examine(
        self,
        x: Any,
        y: Any = None,
        name: str = "x",
        validation_split: float = 0.0,
        sample_weight: Any = None,
    ) -> Any:
        """Checks what `fit` or `evaluate` is to be given, before any work is done.

        Args:
            x: images or (images, labels), as `fit` takes them.
            y: labels, where `x` is an array. Defaults to `None`.
            name: the argument's name, for messages. Defaults to `"x"`.
            validation_split: as for `fit`. Defaults to `0.0`.
            sample_weight: as for `fit`. Defaults to `None`.

        Returns:
            `x`, or for a generator one that still yields everything.

        Raises:
            ValueError: where `x` is empty, its images do not fit the base, it has
                labels under a strategy that takes none, there are more or fewer labels
                than images, or labels, weights or a split are asked of what is no array.
        """
        shapes = self._original.input_shapes
        labelled = y is not None or is_pair(x, shapes)
        if is_between_workers(self.distribute_strategy) and labelled:
            raise ValueError(
                f"Between workers {name} must give images without labels, as Keras (3.15) reduces "
                "no pairs. Received: images and labels"
            )
        if are_arrays(x):
            x = examine(x, shapes, name)
            check_targets(*unpacked(x, y, sample_weight, shapes), name)
            return x
        if y is not None or sample_weight is not None or validation_split:
            raise ValueError(
                "y, sample_weight and validation_split go with arrays only. Received: "
                f"{name} of type {type(x).__name__}, validation_split={validation_split!r}, "
                f"y={'None' if y is None else 'labels'}, "
                f"sample_weight={'None' if sample_weight is None else 'weights'}"
            )
        return examine(x, shapes, name)
