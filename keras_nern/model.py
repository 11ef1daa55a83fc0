"""NeRNModel represents a classifier by a small predictor and rebuilds the classifier from it.

The model connects its parts to Keras: the base (`network.original`), the predicted kernels
(`representation`), the settings, losses, evaluation and fit (`training`), and the compact file
(`artifact`). The rebuilt classifier is the base with predicted kernels; its other weights (batch
normalization, biases, Dense layers) are those of the base.
"""

import dataclasses
import inspect
import os
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_nern.artifact import writer
from keras_nern.data.inputs import (
    are_arrays,
    check_inputs,
    input_batches,
    is_pair,
    unpack,
)
from keras_nern.network.blocks import Blocks
from keras_nern.network.copying import build_configs, build_from_configs
from keras_nern.network.kernels import walk_layers
from keras_nern.network.original import OriginalNetwork
from keras_nern.network.selection import Choice
from keras_nern.network.teacher import Teacher
from keras_nern.permutations.orders import check_permutation_arguments
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.build import build_predictor
from keras_nern.predictor.centering import apply_centered_gradients, center_biases
from keras_nern.predictor.residual import Residual
from keras_nern.report import SummaryTable, summary_table
from keras_nern.representation import Representation
from keras_nern.training.evaluation import METRICS, Evaluation
from keras_nern.training.fit import PhasedFit
from keras_nern.training.fit_callbacks import check_callbacks
from keras_nern.training.fit_progress import EvaluationProgress, MovingMeans, with_progress
from keras_nern.training.objective import Objective
from keras_nern.training.optimizer import PlannedCosineDecay, default_optimizer
from keras_nern.training.settings import AUTO, NAMES, Settings
from keras_nern.training.state import FIELDS, FitState
from keras_nern.utils import checks
from keras_nern.utils.backend import is_multi_worker, register, require_tensorflow
from keras_nern.utils.files import atomic_write
from keras_nern.utils.progress import level_of
from keras_nern.utils.types import Path, Tensor

NORMALIZATIONS = ("auto", None, "layer")


def _setting(name: str) -> property:
    """A property for a setting of `compile`; assigning validates the value and retraces."""

    def read(self: "NeRNModel") -> Any:
        return getattr(self._settings, name)

    def write(self: "NeRNModel", value: Any) -> None:
        before = {f.name: getattr(self._settings, f.name) for f in dataclasses.fields(Settings)}
        self._settings = self._resolve(self._schedule is not None, **{**before, name: value})
        self._retrace()

    return property(read, write, doc=f"`{name}`, see `compile`.")


def _argument(name: str) -> property:
    """A property for an argument of the constructor, which cannot be changed later."""
    return property(lambda self: getattr(self._arguments, name), doc=f"The argument `{name}`.")


@register
class NeRNModel(keras.Model):
    """Represents a convolutional classifier by a small network and rebuilds it from that network.

    `call`, `evaluate` and `predict` run the rebuilt classifier: the base with predicted kernels.
    The base itself is never changed.

    Args:
        base: a built Keras classifier: functional, Sequential or subclassed, with any inputs and
            one or more outputs. The last axis of each output holds the classes.
        hidden_size: width of the predictor, or of each local predictor; `None` for the width that
            follows from `size`. Defaults to `None`.
        num_layers: number of Dense layers of a predictor, at least 2; `None` for 5, or 9 of each
            local predictor. Defaults to `None`.
        permutation: order of the coordinates within a layer: `None`, `"in_filter"`,
            `"cross_filter"`, or a `Permutation`. Defaults to `None`.
        encoding: a Keras layer that maps coordinates `(n, 3)` to features `(n, d)`; `None` for
            `PositionalEncoding()`. Defaults to `None`.
        normalize: `"layer"` to divide each layer's weights by their standard deviation, which is
            stored, before they are predicted, and to give all layers equal shares of the
            reconstruction loss; `None` to predict the weights themselves; `"auto"` for `"layer"`
            with local predictors and `None` otherwise. Defaults to `"auto"`.
        metric: distance between kernels if `permutation` is a name: `"euclidean"` or the paper's
            `"cosine"`. Defaults to `"euclidean"`, whose cross-filter orders are easier to fit
            (benchmarks/README.md).
        feature_maps: outputs that distillation compares between the two networks:
            `"convolutions"`, `"additions"` (of residual branches) or `"both"`, see
            `network.original`. Defaults to `"convolutions"`.
        permutation_method: search for the order of the kernels if `permutation` is a name:
            `"greedy"`, `"two_opt"` or `"fast_tsp"`, see `permutations.tours`. Defaults to
            `"greedy"`.
        view: how kernels are cut into the blocks that are predicted: the paper's `"crop"`;
            `"block"`, whose blocks have almost no unused entries if kernels differ in size; or
            `"auto"` for `"crop"` if at least half of its entries are used, and `"block"` otherwise;
            see `network.blocks`. Defaults to `"auto"`.
        block_size: side of the blocks of the block view; `None` for 3. Defaults to `None`.
        include, exclude: layers to represent and layers to skip: a layer, its name or path, a
            compiled regular expression, a function from a layer to a bool, or a list of these.
            Default to `None`, which represents all convolutions.
        include_dense: whether to represent Dense layers as well; the block view suits them best.
            Defaults to `False`.
        bits, pruned: compression of the predictor's kernels, see `KernelPredictor`; `compress`
            sets them. Default to `None` and `False`.
        output_activation: activation of the outputs of the base: `"softmax"`, `"sigmoid"`,
            `"linear"` for logits, or `"auto"` to infer it from the last layer and from outputs
            for random inputs. `"auto"` does not detect a sigmoid in a custom layer's `call`.
            Defaults to `"auto"`.
        experts: number of local predictors, see `predictor.local`; 1 for the paper's single
            predictor; 0 for none, where a residual holds the kernels. `"auto"` chooses by the size,
            so that the cost of a kernel does not depend on the network; it is 1 if `hidden_size` or
            `encoding` is given. Defaults to `"auto"`.
        size: size of the representation in place of `hidden_size`: a number for the parameters of
            the predictor as a share of the represented weights; a string such as `"200 kB"` for
            the bytes of predictor, permutation and scales, as `summary_table` counts them; 0 for
            no predictor. `None` for 0.4, but at least width 8. Defaults to `None`.
        teacher: a better classifier of the same inputs and classes, or the path of its `.keras`
            file. Distillation takes the logits from it, and the feature maps from the base; the
            rebuilt classifier may then be better than the base. A model with a teacher is only
            saved if the teacher is a path, see `teacher`. `None` for the base. Defaults to `None`.
        residual: whether integers correct the predicted kernels, see `predictor.residual`;
            `compress` sets it. Training then changes the integers, and the base's scales, offsets
            and biases in the rebuilt classifier. Defaults to `False`.
        **kwargs: `keras.Model` arguments (`name`, ...).

    Raises:
        ValueError: if the base is not built, has no kernel to represent or has weights that are
            not finite; if an argument is out of range or has an unknown value; if `include` or
            `exclude` names a layer that does not exist; if a `Permutation` belongs to a network
            with other layers.

    Example:

    >>> nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
    >>> history = nern.fit(images, epochs=5)
    >>> rebuilt = nern.reconstruct()

    Source: Ashkenazi et al., "NeRN: Learning Neural Representations for Neural Networks",
    ICLR 2023, arXiv 2212.13554.
    """

    optimizer: keras.optimizers.Optimizer  # set by `keras.Model.compile`
    stop_training: bool

    reconstruction_steps = _setting("reconstruction_steps")
    curvature_steps = _setting("curvature_steps")
    curvature_learning_rate = _setting("curvature_learning_rate")
    reconstruction_learning_rate = _setting("reconstruction_learning_rate")
    distillation_learning_rate = _setting("distillation_learning_rate")
    kernel_sampling = _setting("kernel_sampling")
    distillation_sampling = _setting("distillation_sampling")
    reconstruction_weight = _setting("reconstruction_weight")
    logits_weight = _setting("logits_weight")
    feature_map_weight = _setting("feature_map_weight")
    temperature = _setting("temperature")
    gradient_centering = _setting("gradient_centering")

    experts = _argument("experts")
    hidden_size = _argument("hidden_size")
    num_layers = _argument("num_layers")
    permutation = _argument("permutation")
    normalize = _argument("normalize")
    metric = _argument("metric")
    feature_maps = _argument("feature_maps")
    permutation_method = _argument("permutation_method")
    view = _argument("view")
    block_size = _argument("block_size")
    include = _argument("include")
    exclude = _argument("exclude")
    include_dense = _argument("include_dense")
    bits = _argument("bits")
    pruned = _argument("pruned")
    output_activation = _argument("output_activation")
    residual = _argument("residual")

    def __init__(
        self,
        base: keras.Model,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        permutation: str | Permutation | None = None,
        encoding: keras.layers.Layer | None = None,
        normalize: str | None = "auto",
        metric: str = "euclidean",
        feature_maps: str = "convolutions",
        permutation_method: str = "greedy",
        view: str = "auto",
        block_size: int | None = None,
        include: Choice = None,
        exclude: Choice = None,
        include_dense: bool = False,
        bits: int | None = None,
        pruned: bool = False,
        output_activation: str = "auto",
        experts: int | str = "auto",
        size: float | str | None = None,
        teacher: keras.Model | Path | None = None,
        residual: bool = False,
        **kwargs: Any,
    ) -> None:
        # The arguments by name: each part takes those that its constructor accepts.
        not_given = ("self", "teacher", "kwargs", "__class__")
        given = {k: v for k, v in locals().items() if k not in not_given}
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", "nern")
        super().__init__(**kwargs)
        names = ("permutation", "permutation_method")
        kind = None if isinstance(permutation, Permutation) else permutation
        if kind is None or isinstance(kind, str):
            check_permutation_arguments(kind, permutation_method, metric, names)
        else:
            raise ValueError(
                "permutation must be None, a name or a Permutation (see Permutation.load). "
                f"Received: permutation={permutation!r}"
            )
        checks.one_of("normalize", normalize, NORMALIZATIONS)
        self._original = OriginalNetwork(
            base, feature_maps, output_activation, **checks.accepted(Blocks, given)
        )
        blocks = self._original.blocks
        if not isinstance(permutation, Permutation):
            permutation = Permutation.from_model(blocks, permutation, permutation_method, metric)
        permutation.check_grids(blocks.grids)
        scale_bytes = 0 if normalize is None else 4 * len(blocks.kernels)
        self.predictor = build_predictor(
            np.diff(blocks.offsets).tolist(),
            blocks.num_weights,
            blocks.block_length,
            other_bytes=permutation.bits / 8 + scale_bytes,
            **given,
        )
        given["experts"], given["view"] = self.predictor.experts, blocks.view
        if self.predictor.num_parameters > blocks.num_weights:
            warnings.warn(
                f"The predictor has {self.predictor.num_parameters:,} parameters for "
                f"{blocks.num_weights:,} weights, so the representation is larger than the "
                "kernels. A smaller size or hidden_size makes it smaller",
                stacklevel=2,
            )
        own = checks.accepted(type(self.predictor), given)
        given |= {name: getattr(self.predictor, name) for name in own}
        if normalize == "auto":
            normalize = given["normalize"] = "layer" if self.predictor.experts > 1 else None
        given["permutation_method"], given["metric"] = permutation.method, permutation.metric
        given["permutation"] = permutation.kind
        # In a namespace, because Keras would track layers in `include` and `exclude`.
        self._arguments = types.SimpleNamespace(**given)

        self.positions: keras.Variable | None = None
        if permutation.kind is not None:
            self.positions = self._add_constant(
                "positions", (blocks.num_blocks,), "int32", permutation.positions()
            )
        layers = len(blocks.kernels)
        scales = self._original.layer_scales() if normalize else np.ones(layers)
        self.scales = self._add_constant("scales", (layers,), "float32", scales)
        self.residual_layer: Residual | None = None
        if checks.flag("residual", residual):
            shapes = [kernel.matrix_shape for kernel in blocks.kernels]
            lengths = [variable.shape[0] for variable in self._original.vectors]
            self.residual_layer = Residual(shapes, lengths, name="residual")
            self.residual_layer.build()
            self.predictor.trainable = False
        self._representation = Representation(
            blocks,
            self.predictor,
            self.scales,
            self.positions,
            permutation.kind,
            permutation.method,
            permutation.metric,
            balanced=normalize is not None,
            residual=self.residual_layer,
            vectors=self._original.vectors,
        )
        if self.predictor.experts == 1:
            center_biases(self.predictor, self._representation.sample_inputs())
        self._finite_check: Any = None  # of the fit under way
        self._base_is_new = False  # True from from_config until the base's weights are loaded
        self._trackers = {name: keras.metrics.Mean(name=name) for name in METRICS}
        self.reconstruction_iterations = self._add_counter("reconstruction_iterations")
        self.curvature_iterations = self._add_counter("curvature_iterations")
        self.phase_iterations = self._add_counter("phase_iterations")
        self._means = MovingMeans()
        self._seed = keras.random.SeedGenerator(name="sampling")
        self._objective = Objective(self._original, self._representation, self._seed)
        self._evaluation = Evaluation(self._original, self._representation, self._objective)
        self.built = True
        self.phase = "reconstruction"
        self.compile()
        self.teacher = teacher

    def __setattr__(self, name: str, value: Any) -> None:
        # Before Keras, which would track layers in the value.
        if name == "teacher":
            object.__setattr__(self, name, value)
            return
        if name in ("base", *ARGUMENTS) and "_arguments" in self.__dict__:
            raise AttributeError(
                f"{name} is an argument of the constructor and cannot be changed: create another "
                f"NeRNModel. Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    def _add_constant(
        self, name: str, shape: tuple[int, ...], dtype: str, value: ArrayLike
    ) -> keras.Variable:
        variable = self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False
        )
        variable.assign(value)
        return variable

    def _add_counter(self, name: str) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    @property
    def base(self) -> keras.Model:
        """The original classifier, the object that was passed as `base`.

        `keras.Model.save` stores the base because it walks the attributes of the model and finds
        this property.
        """
        return self._original.base

    @property
    def teacher(self) -> Teacher | None:
        """The `network.teacher.Teacher` whose logits are distilled; `None` for the base.

        Assign a classifier, the path of a `.keras` file, or `None`. Training continues with the new
        logits. A saved model holds the path of its teacher; one with a teacher that is no file
        cannot be saved until `None` is assigned.
        """
        return self._objective.teacher

    @teacher.setter
    def teacher(self, value: keras.Model | Path | Teacher | None) -> None:
        if value is not None and not isinstance(value, Teacher):
            if not isinstance(value, keras.Model):
                checks.instance("teacher", value, (str, os.PathLike), "a keras.Model or a path")
            value = Teacher(value, self._original)
        self._objective.teacher = value
        self._retrace()

    @property
    def encoding(self) -> keras.layers.Layer | None:
        """The layer from coordinates to features; `None` for local predictors."""
        return self._arguments.encoding

    # The representation.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self._original.functional_call(
            inputs, self._representation.kernels(), self._representation.vectors()
        )

    def coordinates(self) -> np.ndarray:
        """The coordinate of each block, (layer, filter, column): int32 `(blocks, 3)`."""
        return self.kernel_permutation().coordinates()

    def kernel_permutation(self) -> Permutation:
        """The order of the blocks as a `Permutation`."""
        return self._representation.permutation

    def predict_kernels(self, layers: str | Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Predicts kernels.

        Args:
            layers: names of the kernels to predict, or of one; `None` for all. Local predictors
                then compute only the runs that hold these kernels. Defaults to `None`.

        Returns:
            A dict from each kernel's name to a float32 array of the variable's shape. The name is
            the path of the layer, followed by the variable's name if the layer has two.

        Raises:
            ValueError: if there is no kernel of a name.
        """
        if layers is None:
            return self._by_name(map(keras.ops.convert_to_numpy, self._representation.kernels()))
        names = [kernel.name for kernel in self._original.blocks.kernels]
        if isinstance(layers, str) or not isinstance(layers, Iterable):
            layers = [layers]
        layers = list(layers)
        for name in layers:
            checks.one_of("layers", name, names)
        found = {name: self._representation.kernel(names.index(name)) for name in layers}
        return {name: keras.ops.convert_to_numpy(kernel) for name, kernel in found.items()}

    def original_kernels(self) -> dict[str, np.ndarray]:
        """The original kernels that are represented, with the base's current values.

        Returns:
            A dict from each kernel's name, as in `predict_kernels`, to a float32 array of the
            variable's shape.
        """
        return self._by_name(self._original.kernel_values())

    def _by_name(self, values: Iterable[Any]) -> dict[str, Any]:
        names = [kernel.name for kernel in self._original.blocks.kernels]
        return dict(zip(names, values, strict=True))

    def relative_error(self) -> float:
        """The squared error of all represented weights, relative to the sum of their squares.

        Returns:
            A float: sum (W - W^)^2 / sum W^2, for the current weights of predictor and base.
        """
        return self._representation.errors(self._original.kernel_values())["relative_error"]

    def layer_errors(self, measure: str = "weights") -> dict[str, float]:
        """The error of each layer.

        Args:
            measure: `"weights"` for the relative squared error sum (W - W^)^2 / sum W^2 of each
                kernel; `"curvature"` for its share of the curvature loss, which sums to 1 and shows
                where accuracy is lost. It needs `gather_curvature`. Defaults to `"weights"`.

        Returns:
            A dict from each kernel's name, as in `predict_kernels`, to a float.

        Raises:
            ValueError: if the measure is unknown, or the curvature has not been gathered.
        """
        checks.one_of("measure", measure, ("weights", "curvature"))
        if measure == "weights":
            return self._representation.layer_errors(self._original.kernel_values())
        self._objective.check_curvature()
        kernels = self._representation.kernels()
        costs = np.array([float(cost) for cost in self._objective.curvature_terms(kernels)])
        shares = costs / max(costs.sum(), np.finfo("float64").tiny)
        return self._by_name(shares.tolist())

    def reconstruct(self) -> keras.Model:
        """Rebuilds the classifier as a model that needs no predictor.

        Returns:
            An uncompiled Keras model of the base's class and config. Its variables are its own:
            predicted kernels and copies of all other variables of the base, some of which the fit
            of a residual has changed.

        Raises:
            ValueError: if the base has weights that are not finite, or cannot be copied.
        """
        self._original.check_finite()
        return self._original.rebuilt(
            self._representation.kernels(), self._representation.vectors()
        )

    def summary_table(self) -> SummaryTable:
        """Counts kernels, weights and bits, by layer and in total.

        Returns:
            A `report.SummaryTable`, which prints as a table.
        """
        scales = len(self._original.blocks.kernels) if self.normalize else 0
        bits = self.kernel_permutation().layer_bits
        coarse = self._objective.without_factors
        return summary_table(
            self._original, self.predictor, bits, scales, coarse, self.residual_layer
        )

    # Training.

    def compile(
        self,
        optimizer: Any = "auto",
        loss: None = None,
        loss_weights: None = None,
        *,
        reconstruction_steps: int | str = "auto",
        curvature_steps: int | str = "auto",
        reconstruction_learning_rate: float | str = "auto",
        curvature_learning_rate: float | str = "auto",
        distillation_learning_rate: float | str = "auto",
        kernel_sampling: Any = "auto",
        distillation_sampling: Any = "all",
        reconstruction_weight: float | str = "auto",
        logits_weight: float = 1e-2,
        feature_map_weight: float = 2e-2,
        temperature: float = 1.0,
        gradient_centering: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures training.

        A new model is already compiled with the defaults. Every setting is also an attribute;
        assigning to it changes the next fit.

        Args:
            optimizer: a Keras optimizer, its name, or `"auto"`: Muon without weight decay, with
                AdamW at a fifth of its learning rate (half of it with local predictors) for the
                output layer and the biases. In each phase, the rate falls along half a cosine from
                the peak given below (see `training.optimizer`). A constant rate that is assigned
                to `optimizer.learning_rate` replaces this decay: during a fit, as by a callback,
                until its end, and otherwise until `restart_schedule` or `compile` is called. `fit`
                resets the state and the schedule of any optimizer between reconstruction and
                distillation. Defaults to `"auto"`.
            loss, loss_weights: must be `None`, because the model has its own losses.
            reconstruction_steps: number of steps of the reconstruction phase, which `fit` runs
                before distillation; `"auto"` for 800 epochs over all kernels, or 300 over the
                longest run with local predictors. Defaults to `"auto"`.
            curvature_steps: number of steps on the curvature of the distillation losses, which
                `fit` runs between reconstruction and distillation without running the networks;
                `"auto"` for 300 with local predictors and 0 otherwise. Defaults to `"auto"`.
            reconstruction_learning_rate: peak learning rate of the default optimizer in the
                reconstruction phase; `"auto"` for 1e-2, or 4e-2 with local predictors. Defaults
                to `"auto"`.
            curvature_learning_rate: peak learning rate of the default optimizer in the curvature
                phase; `"auto"` for 1e-3, or 3e-3 with local predictors. Defaults to `"auto"`.
            distillation_learning_rate: peak learning rate of the default optimizer in the
                distillation phase; `"auto"` for 2.5e-4, or 1e-3 with local predictors. Defaults
                to `"auto"`.
            kernel_sampling: kernels per step of reconstruction: `"all"`, `"uniform"`,
                `"magnitude"`, or an object such as `UniformSampling(1024)`. `"auto"` draws 4,096
                kernels uniformly, or 512 for each local predictor and at least 8,192. Defaults to
                `"auto"`.
            distillation_sampling: kernels that receive gradients in a step of distillation, in
                the same form; every step predicts all kernels. Defaults to `"all"`.
            reconstruction_weight: weight of the reconstruction loss in distillation; `"auto"` for
                the paper's 1, or 0 with local predictors, which distillation then changes more
                freely. Defaults to `"auto"`.
            logits_weight: weight of the logits distillation loss. Defaults to `1e-2`.
            feature_map_weight: weight of the feature map distillation loss. Defaults to `2e-2`.
            temperature: temperature of the logits distillation loss. Defaults to `1.0`.
            gradient_centering: whether to center the gradients of the predictor's layers, see
                `predictor.centering`; `"auto"` to do so with the default optimizer and a single
                predictor only. Local predictors do not support it. Defaults to `"auto"`.
            **kwargs: other arguments of `keras.Model.compile`: `metrics` are computed on the
                outputs of the rebuilt classifier; `auto_scale_loss` scales the loss if the base
                computes in float16.

        Raises:
            ValueError: if a weight, rate or number of steps is negative, `temperature` is not
                positive, a sampling or the optimizer is unknown, or a `loss` is given.
        """
        given = locals()
        for name in ("loss", "loss_weights"):
            if given[name] is not None:
                raise ValueError(
                    "NeRNModel has its own losses; set their weights instead (logits_weight, "
                    f"...). Received: {name}={given[name]!r}"
                )
        if optimizer is None:
            raise ValueError(
                'optimizer must be a Keras optimizer, its name or "auto". Received: optimizer=None'
            )
        is_default = isinstance(optimizer, str) and optimizer == "auto"
        if "steps_per_execution" in kwargs:
            steps = checks.integer("steps_per_execution", kwargs["steps_per_execution"], minimum=1)
            kwargs["steps_per_execution"] = steps
        settings = self._resolve(
            is_default, **{name: given[name] for name in NAMES}, keras_arguments=kwargs
        )
        schedule = PlannedCosineDecay() if is_default else None
        optimizer = keras.optimizers.get(
            default_optimizer(schedule, self.experts, self.residual) if schedule else optimizer
        )
        if (
            self._original.computes_in_float16
            and kwargs.get("auto_scale_loss", True)
            and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        ):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        keras.Model().compile(**kwargs)  # raises before anything changes
        super().compile(optimizer=optimizer, **kwargs)
        self.optimizer.build(self.trainable_variables)
        self._settings = settings
        self._schedule = schedule
        self._unbuilt_metrics = bool(kwargs.get("metrics") or kwargs.get("weighted_metrics"))
        self.reconstruction_finished = False
        self._retrace()

    def _resolve(self, is_default: bool, **given: Any) -> Settings:
        num_slots = self._representation.num_slots
        return Settings.resolve(num_slots, self.experts, is_default, self.residual, **given)

    def get_compile_config(self) -> dict[str, Any]:
        optimizer = "auto" if self._schedule else self.optimizer
        config = {**self._settings.to_config(), "optimizer": optimizer}
        return keras.saving.serialize_keras_object(config)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _retrace(self) -> None:
        """Makes Keras trace the steps again after a change of settings or losses."""
        self._traced_phase: str | None = None
        self.test_function = None

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Iterable[int] = 1,
    ) -> keras.callbacks.History:
        """Trains the representation.

        With images, `fit` runs the remaining steps of the reconstruction and of the curvature
        phase, each with its own progress bar, and then `epochs` of distillation. Labels are not
        used for training, except that `class_weight` weights images by their label. Without
        images, `fit` runs `epochs * steps_per_epoch` steps of reconstruction.

        Args:
            x: images or (images, labels): arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`
                or a generator; `None` to reconstruct only.
            y: labels, if `x` is an array.
            steps_per_epoch: required if `x` is `None` or never ends. The default optimizer also
                needs it if the length of `x` is unknown, as for a generator: without it, the
                learning rate stays at its peak.
            batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle,
                class_weight, sample_weight, initial_epoch, validation_steps,
                validation_batch_size, validation_freq: as for `keras.Model.fit`. `class_weight`
                and `sample_weight` need labels and weight the images in the losses of the
                distillation. The other phases have no weights: reconstruction uses no images, and
                the curvature is gathered from images of equal weight.
                `training.fit_callbacks` documents which events callbacks receive.

        Returns:
            A `training.fit_callbacks.FitHistory`: a `keras.callbacks.History` of the epochs, whose
            attributes `reconstruction` and `curvature` hold curves of the phases before them, and
            whose attributes `steps` and `places` hold the steps and epochs of all values.

        Raises:
            ValueError: if `x` is empty or its images do not fit the base, if `steps_per_epoch` is
                missing, if labels are not classes of the outputs or not as
                many as the images, if an argument is out of range or does not suit the kind of
                `x`, or if a callback monitors a value that no epoch logs. It is raised before any
                training. During training, it is raised if a loss or a weight becomes NaN or
                infinite; the model is then back in its last finite state.
            OSError: before any training, if a callback cannot write its files.
            RuntimeError: if the Keras backend is not TensorFlow.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        return PhasedFit(self, super().fit).run(**given)

    def make_train_function(self, force: bool = False) -> Callable | None:
        if not self._objective.has_targets:
            self._objective.refresh_targets(self._settings)
        force = force or self._traced_phase != self.phase
        self._traced_phase = self.phase
        return super().make_train_function(force)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        inputs, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = batch = None
        if self.phase == "distillation":
            teacher = self._objective.targets(inputs)  # outside the tape: it has no gradients
            batch = keras.ops.shape(keras.tree.flatten(inputs)[0])[0]
        with tf.GradientTape() as tape:
            terms, means, parts = self._objective.terms(
                self._settings, self.phase, inputs, teacher, sample_weight
            )
            loss = self._objective.weighted(self._settings, terms, scaled=True)
            total = loss + self.residual_layer.rounding_loss() if self.residual_layer else loss
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(total / replicas)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        if self.residual:  # whose vectors have no gradients on the curvature
            gradients = [
                keras.ops.zeros_like(variable) if gradient is None else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        if self.gradient_centering:
            apply_centered_gradients(self.optimizer, gradients, variables, self.predictor, means)
        else:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._objective.watch(self.phase, self.phase_iterations, loss, parts)
        self.phase_iterations.assign_add(1)
        if self.phase != "distillation":
            getattr(self, f"{self.phase}_iterations").assign_add(1)
        terms = {"loss": loss, **terms}
        self._means.update(terms)
        return self._track(terms, batch)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> None:
        """Raises, because `fit` plans phases and learning rates.

        Args:
            *args, **kwargs: as for `keras.Model.train_on_batch`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "NeRNModel is trained by fit, which plans phases and learning rates: "
            "fit(images, steps_per_epoch=1), or fit(steps_per_epoch=1) to reconstruct. "
            "Received: a call of train_on_batch"
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises, because `compress` quantizes a predictor.

        Args:
            *args, **kwargs: as for `keras.Model.quantize`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The predictor of a NeRNModel is quantized by keras_nern.compress(nern, bits=8), which "
            "returns a new model. Received: a call of quantize"
        )

    def finish_reconstruction(self) -> None:
        """Ends the reconstruction phase; a running `fit` continues with distillation.

        Later fits only distill, until `compile` is called again. A saved model keeps this state.
        """
        self.reconstruction_finished = True
        if self.phase == "reconstruction":
            self.stop_training = True

    def restart_schedule(self) -> None:
        """Restarts the learning rate schedule of the default optimizer.

        The learning rate then falls from its peak to 0 over the whole next fit, also if a rate has
        been assigned to the optimizer. A model that was compiled with another optimizer is not
        changed.
        """
        if self._schedule is not None:
            self.optimizer.iterations.assign(0)
            self._schedule.fix(None)

    def scale_losses(self, **multipliers: float) -> None:
        """Multiplies the weights of losses until the end of the current or next fit.

        Evaluation uses the weights without multipliers.

        Args:
            **multipliers: numbers of at least 0 for `reconstruction_loss`, `logits_loss`,
                `feature_map_loss` and `curvature_loss`; the other losses keep their
                multipliers.

        Raises:
            ValueError: if a name is unknown or a multiplier is negative.
        """
        self._objective.scale(multipliers)

    def gather_curvature(
        self, x: Any, images: int = 512, batch_size: int = 64, verbose: int | str = "auto"
    ) -> None:
        """Gathers the curvature of the distillation losses from images.

        `fit` does so before its curvature phase, from the first images of its data. Gather it from
        other images, or from more, before `fit`; it is then kept. Gather it again if the base or
        the weights of the losses have changed.

        Args:
            x: inputs or (inputs, labels), as for `fit`; noise is enough.
            images: number of images to use. Defaults to `512`.
            batch_size: images per batch if `x` is an array. Defaults to `64`.
            verbose: 0 to show nothing, 1 for the progress, 2 for a line at the end; `"auto"` for
                1. Defaults to `"auto"`.

        Raises:
            ValueError: if `x` is empty or its images do not fit the base, or if an argument is
                out of range.
            RuntimeError: if the Keras backend is not TensorFlow.

        Source: Martens and Grosse, ICML 2015, arXiv 1503.05671; see `network.curvature`.
        """
        require_tensorflow("gather_curvature")
        self._original.check_finite()
        checks.integer("images", images, minimum=1)
        checks.integer("batch_size", batch_size, minimum=1)
        checks.one_of("verbose", verbose, ("auto", 0, 1, 2))
        x = self.check_data(x)
        batches = input_batches(x, images, batch_size, self._original.signature)
        batches = with_progress(batches, images, level_of(verbose))
        self._objective.gather_curvature(self._settings, batches, images)
        self._retrace()

    def check_data(
        self,
        x: Any,
        y: Any = None,
        name: str = "x",
        validation_split: float = 0.0,
        sample_weight: Any = None,
    ) -> Any:
        """Checks data for `fit` or `evaluate`.

        Args:
            x: images or (images, labels), as for `fit`.
            y: labels, if `x` is an array. Defaults to `None`.
            name: the argument's name, for errors. Defaults to `"x"`.
            validation_split: as for `fit`. Defaults to `0.0`.
            sample_weight: as for `fit`. Defaults to `None`.

        Returns:
            `x`, or, for a generator, an equivalent generator that still yields every batch.

        Raises:
            ValueError: if `x` is empty or its images do not fit the base; if there are more or
                fewer labels than images; if there are weights without labels; if labels, weights
                or a split are given although `x` is not an array; if there are labels under a
                strategy that does not support them.
        """
        original = self._original
        labeled = y is not None or is_pair(x, original.signature)
        if is_multi_worker(self.distribute_strategy) and labeled:
            raise ValueError(
                f"{name} must give images without labels under a multi-worker strategy, because "
                "Keras (3.15) does not reduce pairs. Received: images and labels"
            )
        by_place = y is not None or sample_weight is not None or validation_split
        if by_place and not are_arrays(x):
            raise ValueError(
                f"y, sample_weight and validation_split need {name} to be arrays. Received: "
                f"{name} of type {type(x).__name__}, validation_split={validation_split!r}, "
                f"y={'None' if y is None else 'labels'}, "
                f"sample_weight={'None' if sample_weight is None else 'weights'}"
            )
        shapes, try_out = original.label_shapes, original.try_out
        x = check_inputs(x, original.signature, name, shapes, try_out, y, sample_weight)
        if sample_weight is not None and not labeled:
            raise ValueError(
                "sample_weight needs labels, because Keras (3.15) drops the weights of images "
                f"without labels. Received: sample_weight of type {type(sample_weight).__name__}, "
                "y=None"
            )
        return x

    # Evaluation.

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Evaluates the rebuilt classifier and compares it with the original.

        Args:
            x: images or (images, labels), as for `fit`.
            y: labels, if `x` is an array.
            batch_size, verbose, sample_weight, steps, callbacks, return_dict: as for
                `keras.Model.evaluate`. `sample_weight` weights the images in the losses of the
                distillation and in `weighted_metrics`; agreement and accuracy have no weights.
            **kwargs: as for `keras.Model.evaluate`.

        Returns:
            With `return_dict=True`, a dict of the losses, the relative error, the agreement with
            the original and, if there are labels, the accuracy and compiled metrics. Otherwise, a
            list of its values in the order of `metrics_names`. The prefix `compiled_` is added to
            a compiled metric whose name the model uses itself.

        Raises:
            ValueError: if `x` is empty or its images do not fit the base, if labels are not
                classes of the outputs or not as many as the images, if an argument is out of
                range, or if the base has weights that are not finite.
            RuntimeError: if the Keras backend is not TensorFlow.
        """
        require_tensorflow("evaluate")
        x, y, sample_weight = unpack(x, y, sample_weight, self._original.signature)
        checks.flag("return_dict", return_dict)
        if not any(name.startswith("_") for name in kwargs):  # a call by `fit`, which has checked x
            for name, value in (("batch_size", batch_size), ("steps", steps)):
                if value is not None:
                    checks.integer(name, value, minimum=1)
            checks.one_of("verbose", verbose, ("auto", 0, 1, 2))
            check_callbacks(callbacks)
            self._original.check_finite()
            x = self.check_data(x, y, sample_weight=sample_weight)
        if verbose and not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = check_callbacks(callbacks)
            if not any(isinstance(one, keras.callbacks.ProgbarLogger) for one in callbacks):
                level = level_of(verbose)
                callbacks, verbose = [*callbacks, EvaluationProgress(level)], 0
        results = super().evaluate(
            x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict=True, **kwargs
        )
        self._evaluation.names = list(results)
        return results if return_dict else list(results.values())

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, by which Keras matches compiled metrics given in a dict."""
        outputs = self._original.signature.outputs
        if outputs is None:
            raise AttributeError("The base is a subclassed model, which does not name its outputs")
        return list(outputs)

    @property
    def metrics_names(self) -> list[str]:
        """Names of the values that the last `evaluate` returned."""
        return self._evaluation.names or super().metrics_names

    def make_test_function(self, force: bool = False) -> Callable | None:
        self._evaluation.refresh()
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Callable | None:
        require_tensorflow("predict")
        self._evaluation.refresh()
        return super().make_predict_function(force)

    def predict_step(self, data: Any) -> Any:
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._evaluation.classify(inputs)

    def test_step(self, data: Any) -> dict[str, Tensor]:
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        terms, outputs = self._evaluation.compare(self._settings, inputs, labels, sample_weight)
        logs = self._track(terms, batch=keras.ops.shape(keras.tree.flatten(inputs)[0])[0])
        if labels is not None:
            self.compute_metrics(inputs, labels, outputs, sample_weight)
            for metric in self.metrics[len(self._trackers) :]:
                result = metric.result()
                results = result if isinstance(result, dict) else {metric.name: result}
                for name, value in results.items():
                    logs[f"compiled_{name}" if name in METRICS else name] = _log(value)
        return logs

    def _track(self, terms: dict[str, Tensor], batch: Tensor | None = None) -> dict[str, Tensor]:
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=batch)
        return {name: _log(self._trackers[name].result()) for name in METRICS if name in terms}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        # The trackers replace Keras's own "loss", which needs targets.
        compiled = [m for m in super().metrics if m.name not in METRICS]
        # Only evaluation builds compiled metrics; before it they have no result.
        return [*self._trackers.values()] + [m for m in compiled if getattr(m, "built", True)]

    # Saving.

    def get_config(self) -> dict[str, Any]:
        self.check_saveable()
        return {
            **super().get_config(),
            "teacher": None if self.teacher is None else self.teacher.path,
            "base": self._original.architecture(),
            "base_build": keras.saving.serialize_keras_object(build_configs(self.base)),
            **self._config(),
        }

    def check_saveable(self) -> None:
        """Raises a ValueError if the teacher is not a file, to which a saved model can refer."""
        if self.teacher is not None and self.teacher.path is None:
            raise ValueError(
                "A saved model refers to its teacher by a path: assign the path of a .keras file "
                "or None to nern.teacher before saving. Received: the teacher "
                f"{self.teacher.model.name!r}"
            )

    def _config(self) -> dict[str, Any]:
        """The constructor's arguments except `base`, as JSON-serializable values."""
        encoding = keras.saving.serialize_keras_object(self.encoding)
        include = None
        if self.include is not None or self.exclude is not None:
            # By position, because functions and regular expressions cannot be serialized, and
            # layers may have other names in a copy.
            chosen = {id(kernel.layer) for kernel in self._original.blocks.kernels}
            layers = walk_layers(self.base)
            include = [index for index, (_, layer) in enumerate(layers) if id(layer) in chosen]
        own = {"encoding": encoding, "include": include, "exclude": None}
        names = [name for name in ARGUMENTS if name not in own]
        return {**{name: getattr(self, name) for name in names}, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        base = keras.saving.deserialize_keras_object(config["base"])
        build_from_configs(base, keras.saving.deserialize_keras_object(config.pop("base_build")))
        model = cls._from_config(config, base)
        model._base_is_new = True
        return model

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], base: keras.Model, permutation: Permutation | None = None
    ) -> Self:
        """Creates a model of `base`; without `permutation`, its blocks keep their original order.

        The order is loaded later with the weights, so no search is needed.
        """
        config = {**config, "base": base}
        config["encoding"] = keras.saving.deserialize_keras_object(config["encoding"])
        if config["include"] is not None:
            layers = [layer for _, layer in walk_layers(base)]
            config["include"] = [layers[index] for index in config["include"]]
        if permutation is None:
            grids = Blocks(**checks.accepted(Blocks, {**config, "model": base})).grids
            found_by = [config[name] for name in ("permutation", "permutation_method", "metric")]
            permutation = Permutation(grids, None, *found_by)
        return cls(**{**config, "permutation": permutation})

    def _with_predictor(self, **changes: Any) -> "NeRNModel":
        """Creates a copy of this model with changed arguments and a new, untrained predictor."""
        config = {**self._config(), "name": self.name, **changes}
        other = NeRNModel._from_config(config, self.base, self.kernel_permutation())
        if self.experts == 1:
            other.predictor.encoding.set_weights(self.predictor.encoding.get_weights())
        other.scales.assign(self.scales)
        compiled = self.get_compile_config()
        if other.residual and not self.residual:  # whose optimizer and rates are of another kind
            for name in ("optimizer", "gradient_centering", *AUTO["residual"]):
                del compiled[name]
        other.compile_from_config(compiled)
        other.teacher = self.teacher
        other.reconstruction_iterations.assign(self.reconstruction_iterations)
        other.curvature_iterations.assign(self.curvature_iterations)
        other.reconstruction_finished = self.reconstruction_finished
        return other

    def save(
        self,
        filepath: Path,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model; an existing file is replaced when the new one is complete.

        Args:
            filepath, overwrite, zipped: as for `keras.Model.save`.
            **kwargs: as for `keras.Model.save`.

        Raises:
            ValueError: if `filepath` does not end in `.keras`, or if a copy of the base does not
                give its outputs.
        """
        checks.path("filepath", filepath)
        checks.flag("overwrite", overwrite)
        if not str(filepath).endswith(".keras") and zipped is not False:
            raise ValueError(
                "filepath must end in .keras: save_weights writes HDF5 files of the weights alone, "
                "export(filepath, format='tf_saved_model') a SavedModel of the rebuilt classifier. "
                f"Received: filepath={str(filepath)!r}"
            )
        self._original.check_copyable()
        self._check_fit()
        with atomic_write(filepath, overwrite and zipped in (None, True)) as path:
            super().save(path, overwrite=overwrite, zipped=zipped, **kwargs)

    def save_weights(
        self, filepath: Path, overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Saves the weights; an existing file is replaced when the new one is complete.

        Args:
            filepath, overwrite, max_shard_size: as for `keras.Model.save_weights`.
        """
        checks.path("filepath", filepath)
        checks.flag("overwrite", overwrite)
        self._check_fit()
        with atomic_write(filepath, overwrite and max_shard_size is None) as path:
            super().save_weights(path, overwrite=overwrite, max_shard_size=max_shard_size)

    def _check_fit(self) -> None:
        """Raises a ValueError if the fit under way has diverged, so that no callback saves it."""
        if self._finite_check is not None:
            self._finite_check.check()

    def load_weights(self, filepath: Path, **kwargs: Any) -> None:
        """Loads weights; if loading fails, the model is unchanged.

        Args:
            filepath: a file that `save_weights` or `save` wrote.
            **kwargs: as for `keras.Model.load_weights`.

        Raises:
            ValueError: if the weights belong to a representation of another base.
        """
        checks.path("filepath", filepath)
        variables = [*self.base.variables, *self.variables, *self.optimizer.variables]
        before = [keras.ops.convert_to_numpy(variable) for variable in variables]
        state, base_is_new = FitState.of(self), self._base_is_new
        try:
            super().load_weights(filepath, **kwargs)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            state.restore(self)
            self._base_is_new = base_is_new
            raise
        if not base_is_new:  # it has these weights already, and LoRA's matrices are saved merged
            for variable, value in zip(self.base.variables, before, strict=False):
                variable.assign(value)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for name, value in FitState.of(self).to_arrays().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        FitState.from_arrays(store).restore(self)
        weights = set(store.keys()) - set(FIELDS)
        super().load_own_variables({key: store[key] for key in weights})
        self._base_is_new = False  # Keras loads the weights of the base next

    def export(
        self,
        filepath: Path,
        format: str = "nern",
        precision: str = "auto",
        kept_precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        """Exports a compact file, or the rebuilt classifier in a format of Keras.

        Args:
            filepath: path of the file. An existing compact file is replaced when the new one is
                complete.
            format: `"nern"` for the compact file, which `keras_nern.load` reads, or a format of
                `keras.Model.export` (`"tf_saved_model"`, `"onnx"`, ...). Defaults to `"nern"`.
            precision: precision of the predictor's kernels in a compact file: `"float32"`,
                `"float16"`, `"int2"` to `"int8"`, or `"auto"` for the `bits` of the predictor if
                it is quantized (see `compress`) and `"float32"` otherwise. Defaults to `"auto"`.
            kept_precision: precision of the weights that are not represented, in a compact file:
                `"float32"`, which is exact, `"float16"`, or `"bfloat16"` for the fewest bytes.
                Defaults to `"float32"`.
            **kwargs: as for `keras.Model.export`; not allowed for `"nern"`.

        Raises:
            ValueError: if `filepath` of a compact file has no extension or one of Keras, if a
                precision is unknown
                or given with another format, if weights of the predictor are not finite, or if the
                base holds code (a Lambda layer) or cannot be built from its config.
            OSError: if `filepath` cannot be written.
            ImportError: if the extra `compact` is not installed.

        Example:

        >>> nern.export("classifier.nern", precision="int7")
        >>> rebuilt = keras_nern.load("classifier.nern")
        """
        checks.path("filepath", filepath)
        checks.instance("format", format, str, "a name")
        self._original.check_finite()
        if format != "nern":
            if (precision, kept_precision) != ("auto", "float32"):
                raise ValueError(
                    "precision and kept_precision need format='nern'. Received: "
                    f"format={format!r}, precision={precision!r}, "
                    f"kept_precision={kept_precision!r}"
                )
            self.reconstruct().export(filepath, format=format, **kwargs)
            return
        if os.path.splitext(filepath)[1] in ("", ".keras", ".h5"):
            raise ValueError(
                "filepath must have an extension that is not one of Keras, as in "
                "'classifier.nern', for a compact file; export(filepath, format='tf_saved_model') "
                "writes the folder of a SavedModel, and save(filepath) a '.keras' file. "
                f"Received: filepath={str(filepath)!r}"
            )
        if kwargs:
            raise ValueError(
                f"format='nern' takes precision and kept_precision only. Received: {kwargs}"
            )
        writer.write(filepath, **self._to_encode(precision, kept_precision))

    def _to_encode(self, precision: str, kept_precision: str) -> dict[str, Any]:
        """The arguments of `writer.encode`."""
        names = checks.accepted(Blocks, dict.fromkeys(ARGUMENTS))
        return {
            "original": self._original,
            "representation": self._representation,
            "blocks_config": {
                name: getattr(self, name) for name in names if name not in ("include", "exclude")
            },
            "stores_scales": self.normalize is not None,
            "precision": precision,
            "kept_precision": kept_precision,
        }


# The constructor's arguments except the networks, and `size`, from which others follow.
ARGUMENTS = tuple(
    name
    for name in inspect.signature(NeRNModel).parameters
    if name not in ("base", "size", "teacher", "kwargs")
)


def _log(result: Tensor) -> Tensor:
    """A metric's result in the shape that a step must return.

    Under a multi-worker strategy, Keras (3.15) averages logs over their first axis, and scalars
    have none (https://github.com/tensorflow/tensorflow/issues/72388).
    """
    workers = is_multi_worker(tf.distribute.get_strategy())
    return keras.ops.reshape(result, (1,)) if workers else result
