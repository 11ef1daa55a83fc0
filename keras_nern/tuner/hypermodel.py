"""The hypermodel of a search for the best representation within a budget, for keras-tuner.

The search decides how to spend a given number of bytes: on the width, the depth or the number of
predictors, on a permutation of the kernels, or on more bits per weight (`search_space`). Each trial
fits a `NeRNModel`, and validation images score the rebuilt classifier.

The rounds of a Hyperband search continue each other's fits. The first round runs the
reconstruction phase and distills for the epochs of its round; later rounds load the best weights
so far and only distill. The learning rate of every round decays to zero at the end of its epochs,
so rounds compare trials whose schedule is complete.

Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
JMLR 18, 2018; Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms",
NeurIPS 2012; both in keras-tuner's implementation.
"""

import datetime
import inspect
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_nern.analysis.pareto import ParetoFront, ParetoPoint
from keras_nern.compression import compress
from keras_nern.data.inputs import unpack_validation
from keras_nern.model import NORMALIZATIONS, NeRNModel
from keras_nern.network.blocks import Blocks
from keras_nern.network.kernels import check_built
from keras_nern.network.original import FEATURE_MAPS
from keras_nern.network.outputs import OUTPUT_ACTIVATIONS
from keras_nern.permutations.orders import check_permutation_arguments
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.positional_encoding import PositionalEncoding
from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.predictor.runs import run_lengths
from keras_nern.training.fit import CURVATURE_IMAGES
from keras_nern.training.fit_callbacks import DivergedError
from keras_nern.training.objective import Objective
from keras_nern.training.settings import NAMES, Settings
from keras_nern.tuner.search_space import MIN_WIDTH, SearchSpace
from keras_nern.utils import checks
from keras_nern.utils.backend import to_int
from keras_nern.utils.optional import require

require("keras_tuner", "tuner")  # raises an error that names the extra, unlike the imports below

import keras_tuner  # noqa: E402
from keras_tuner.errors import FailedTrialError, FatalValueError  # noqa: E402

# Arguments of `fit` that control the evaluation of `validation_data`.
_VALIDATION = ("validation_batch_size", "validation_steps", "validation_freq")


class NeRNHyperModel(keras_tuner.HyperModel):
    """The representations of a classifier that fit a budget of bytes.

    The search chooses among the values of a list or tuple in `hidden_size`, `permutation`, `bits`,
    `num_layers`, `experts`, `num_frequencies` and `encoding_base`; a single value is used in every
    trial.

    Args:
        base: the classifier, as for `NeRNModel`.
        max_bytes: the budget: a number of bytes, or a string such as `"200 kB"`.
        hidden_size: widths of the predictor, or of each local predictor, to choose from; `None`
            to search every width that fits, by the hyperparameter `width` in percent of the
            largest one. Defaults to `None`.
        permutation: permutations to choose from, as for `NeRNModel`; their bits count in the
            budget. Defaults to `None`.
        bits: bits of the predictor's kernels to choose from, as for `compress`, or `None` for
            floats. A trial with bits trains floats; after each epoch, `compress` makes a copy
            with that number of bits, which is scored. Defaults to `None`.
        num_layers: numbers of Dense layers of a predictor to choose from; `None` for 5, or 9 of
            each local predictor. Defaults to `None`.
        experts: numbers of local predictors to choose from, 1 for a single predictor. `"auto"`
            chooses by `max_bytes`, as `NeRNModel` does by its size, and `width` then scales the
            width of the experts; it is 1 if `hidden_size`, `num_frequencies` or `encoding_base`
            is given. Defaults to `"auto"`.
        num_frequencies, encoding_base: arguments of `PositionalEncoding` to choose from for a
            single predictor; local predictors ignore them. `None` for 40 and 0.76. Default to
            `None`.
        narrowest: smallest `width` to search, in percent. Defaults to `10`.
        compile_arguments: dict of arguments of `NeRNModel.compile`. Defaults to `None`.
        name, tunable: as for `keras_tuner.HyperModel`.
        **arguments: further arguments of `NeRNModel` (`view`, `normalize`, `metric`, ...), used
            in every trial.

    Raises:
        ValueError: before any trial, if no choice fits the budget, or if `NeRNModel` does not
            accept a value.

    Example:

    >>> hypermodel = NeRNHyperModel(base, max_bytes="100 kB", num_layers=[4, 5, 6])
    >>> objective = keras_tuner.Objective("val_agreement", "max")
    >>> tuner = keras_tuner.RandomSearch(hypermodel, objective, max_trials=20)
    >>> tuner.search(images, steps_per_epoch=100, validation_data=(others, labels))
    >>> print(pareto_front(tuner))
    """

    def __init__(
        self,
        base: keras.Model,
        max_bytes: float | str,
        hidden_size: int | Sequence[int] | None = None,
        permutation: str | Permutation | Sequence[str | Permutation | None] | None = None,
        bits: int | Sequence[int | None] | None = None,
        num_layers: int | Sequence[int | None] | None = None,
        experts: int | str | Sequence[int | str] = "auto",
        num_frequencies: int | Sequence[int] | None = None,
        encoding_base: float | Sequence[float] | None = None,
        narrowest: int = 10,
        compile_arguments: dict | None = None,
        name: str | None = None,
        tunable: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(name, tunable)
        set_by_search = sorted({"encoding", "pruned", "size"} & set(arguments))
        if set_by_search:
            raise ValueError(
                "arguments must not contain encoding, pruned or size: the search counts the bytes "
                "of a PositionalEncoding (num_frequencies, encoding_base) and of unpruned kernels, "
                f"and max_bytes is the size. Received: {set_by_search}"
            )
        known = set(inspect.signature(NeRNModel).parameters)
        unknown = sorted(set(arguments) - known)
        if unknown:
            raise ValueError(
                f"arguments must be arguments of NeRNModel, among {sorted(known)}. "
                f"Received: {unknown}"
            )
        check_built("base", base)
        self.base = base
        self.arguments = arguments
        self._blocks = Blocks(base, **checks.accepted(Blocks, arguments))
        self._permutations: dict[str, Permutation] = {}  # each is searched for once
        self._curvature = _SharedCurvature()
        self._time_left = _TimeLeft()
        given = {
            "hidden_size": hidden_size,
            "permutation": permutation,
            "bits": bits,
            "num_layers": num_layers,
            "experts": experts,
            "num_frequencies": num_frequencies,
            "encoding_base": encoding_base,
        }
        choices = {
            name: list(values) if isinstance(values, (list, tuple)) else [values]
            for name, values in given.items()
        }
        self._check(choices)
        self.space = SearchSpace(self._blocks, max_bytes, narrowest, choices, arguments)
        self.compile_arguments = _checked_compile_arguments(compile_arguments, self.space)

    def _check(self, choices: dict[str, list]) -> None:
        """Raises a ValueError for values that `NeRNModel` does not accept."""
        fixed = {"hidden_size": MIN_WIDTH, **checks.accepted(KernelPredictor, self.arguments)}
        checked = {name: choices[name] for name in ("hidden_size", "num_layers", "bits")}
        if checked["hidden_size"] == [None]:  # every width that fits
            del checked["hidden_size"]
        checked["num_layers"] = [value for value in checked["num_layers"] if value is not None]
        for name, values in checked.items():
            for value in values:
                KernelPredictor(**{**fixed, name: value})
        experts = choices["experts"]
        for value in experts:
            if not (isinstance(value, str) and value == "auto"):
                count = checks.integer("experts", value, minimum=1)
                run_lengths([self._blocks.num_blocks], count)  # raises for more than blocks
        of_encoding = {name: choices[name] for name in ("num_frequencies", "encoding_base")}
        given = {name: values for name, values in of_encoding.items() if values != [None]}
        if given and not any(value in ("auto", 1) for value in experts):
            raise ValueError(
                'experts must include 1 or "auto" with num_frequencies or encoding_base, because '
                "local predictors have no PositionalEncoding. "
                f"Received: experts={experts!r}, {given!r}"
            )
        for frequencies in given.get("num_frequencies", []):
            PositionalEncoding(frequencies)
        for base in given.get("encoding_base", []):
            try:
                PositionalEncoding(base=base)
            except ValueError as error:
                raise ValueError(f"encoding_{error}") from error
        for name, allowed in (
            ("normalize", NORMALIZATIONS),
            ("feature_maps", FEATURE_MAPS),
            ("output_activation", OUTPUT_ACTIVATIONS),
        ):
            if name in self.arguments:
                checks.one_of(name, self.arguments[name], allowed)
        for permutation in choices["permutation"]:
            if isinstance(permutation, Permutation):
                permutation.check_grids(self._blocks.grids)
            else:
                method, metric = self._permutation_arguments()
                names = ("permutation", "permutation_method")
                check_permutation_arguments(permutation, method, metric, names)
                Permutation.check_method(self._blocks.grids, permutation, method)

    def _permutation_arguments(self) -> tuple[str, str]:
        method = self.arguments.get("permutation_method", "greedy")
        return method, self.arguments.get("metric", "euclidean")

    def _permutation(self, permutation: str | Permutation | None) -> Permutation | None:
        if permutation is None or isinstance(permutation, Permutation):
            return permutation
        if permutation not in self._permutations:
            self._permutations[permutation] = Permutation.from_model(
                self._blocks, permutation, *self._permutation_arguments()
            )
        return self._permutations[permutation]

    def configuration(self, hp: keras_tuner.HyperParameters) -> dict:
        """Converts hyperparameters to the values they stand for.

        Args:
            hp: hyperparameters of a trial, or new ones for the defaults; they are not changed.

        Returns:
            A dict of `hidden_size`, `permutation`, `bits`, `num_layers`, `experts`,
            `num_frequencies` and `encoding_base`. `experts` is the number of experts of the
            trial. With several, `num_frequencies` and `encoding_base` are `None`.

        Raises:
            keras_tuner.errors.FatalValueError: if `hp` belongs to another search space.
        """
        return self._declare(hp.copy())

    def num_bytes(self, hp: keras_tuner.HyperParameters) -> float:
        """Computes the bytes of a trial's representation, with permutation and layer scales.

        Args:
            hp: as for `configuration`.

        Returns:
            The bytes as `report.SummaryTable.representation_bytes` counts them; for a trial with
            bits, those of the compressed predictor.

        Raises:
            keras_tuner.errors.FatalValueError: if `hp` belongs to another search space.
        """
        return self.space.num_bytes(self.configuration(hp))

    def _declare(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        try:
            return self.space.declare(hp)
        except ValueError as error:  # fatal, because every further trial would fail, too
            raise FatalValueError(str(error)) from error

    def build(self, hp: keras_tuner.HyperParameters) -> NeRNModel:
        """Builds and compiles a trial's representation.

        Args:
            hp: hyperparameters of a trial, or new ones, which get the defaults.

        Returns:
            A `NeRNModel` with float weights; a trial with bits is compressed for scoring only.

        Raises:
            keras_tuner.errors.FailedTrialError: if the representation exceeds the budget, which
                hyperparameters given to the tuner can cause, as they override the search's.
            keras_tuner.errors.FatalValueError: if `hp` belongs to another search space.
        """
        values = self._declare(hp)
        size = self.space.num_bytes(values)
        if size > self.space.max_bytes:
            raise FailedTrialError(
                f"Expected at most {self.space.max_bytes:,} bytes. "
                f"Received: {size:,.0f} bytes with {values}"
            )
        encoding = None
        if values["experts"] == 1:
            encoding = PositionalEncoding(values["num_frequencies"], values["encoding_base"])
        model = NeRNModel(
            self.base,
            hidden_size=values["hidden_size"],
            num_layers=values["num_layers"],
            permutation=self._permutation(values["permutation"]),
            encoding=encoding,
            experts=values["experts"],
            **self.arguments,
        )
        # A config gives each model an optimizer and metrics of its own.
        model.compile_from_config(keras.saving.serialize_keras_object(self.compile_arguments))
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: NeRNModel, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Trains a trial's representation.

        Args:
            hp: hyperparameters of the trial.
            model: the model that `build` returned for them.
            *args, **kwargs: arguments of `search`, as for `NeRNModel.fit`. `validation_data` are
                required and determine the score.

        Returns:
            A `keras.callbacks.History`. A trial that diverges has the scores of the epochs before,
            or of its last finite weights if it diverges in the first epoch. With `epochs=0`, a
            trial is scored after the phases before the distillation.

        Raises:
            keras_tuner.errors.FatalValueError: before any training, if `validation_data` are
                missing or have no labels for the objective, or if `fit` does not accept the
                data.
        """
        x = args[0] if args else kwargs.get("x")
        evaluate = _check_data(model, x, kwargs)
        callbacks = kwargs.pop("callbacks", None) or []
        _check_objective(callbacks, evaluate(model, steps=1))
        self._time_left.begin()
        bits = self.configuration(hp)["bits"]
        if bits is not None:
            for name in ("validation_data", *_VALIDATION):
                kwargs.pop(name, None)
            callbacks = [_EvaluateCompressed(evaluate, bits), *callbacks]
        if kwargs.get("initial_epoch"):
            # A later round of Hyperband loads the best epoch of an earlier one. The learning
            # rate decays over all of this round, whichever epoch that was.
            model.restart_schedule()
        if x is not None:
            self._curvature.give(model, x, kwargs.get("batch_size"), kwargs.get("verbose", "auto"))
        try:
            history = model.fit(*args, **{**kwargs, "callbacks": callbacks})
        except DivergedError as error:
            print(f"The trial is scored before it diverged. {error}")
            history = model.history
        if not history.epoch:  # no epochs, or diverged before the end of the first one
            results = evaluate(model) if bits is None else {}
            logs = {f"val_{name}": value for name, value in results.items()}
            for callback in (*callbacks, history):
                callback.on_epoch_end(kwargs.get("initial_epoch") or 0, logs)
        if kwargs.get("verbose", "auto"):
            self._time_left.print(callbacks)
        return history


def pareto_front(tuner: keras_tuner.Tuner) -> ParetoFront:
    """Finds the Pareto front of bytes and score among the completed trials of a search.

    Args:
        tuner: a keras-tuner tuner of a `NeRNHyperModel`, during or after its search, or created
            again on its directory; not a worker of a parallel search.

    Returns:
        A `ParetoFront` to print or to pass to `plots.plot_pareto_front`.

    Raises:
        ValueError: if the tuner is a worker or has another hypermodel.

    Example:

    >>> front = pareto_front(tuner)
    >>> trial = tuner.oracle.get_trial(front.best(max_bytes=50_000).trial_id)
    >>> nern = tuner.load_model(trial)
    """
    hypermodel = getattr(tuner, "hypermodel", tuner)
    if not isinstance(hypermodel, NeRNHyperModel):
        raise ValueError(
            f"tuner must have a NeRNHyperModel as hypermodel. Received: {hypermodel!r}"
        )
    trials = getattr(tuner.oracle, "trials", None)
    if trials is None:
        raise ValueError(
            "tuner must be the chief's, or one created again on its directory: a worker does not "
            f"know all trials. Received: the worker {tuner.tuner_id!r}"
        )
    points = []
    for trial in trials.values():
        if trial.status == "COMPLETED":
            values = hypermodel.configuration(trial.hyperparameters)
            size = hypermodel.space.num_bytes(values)
            if isinstance(values["permutation"], Permutation):
                values["permutation"] = values["permutation"].kind
            points.append(ParetoPoint(size, trial.score, values, trial.trial_id))
    objective = tuner.oracle.objective
    return ParetoFront.from_trials(points, objective.name, objective.direction)


class _SharedCurvature:
    """The curvature of the distillation losses, which the trials of a search share.

    It depends on the base, the images and the weights of the losses, but not on the predictor.
    """

    def __init__(self) -> None:
        self._images: Any = None
        self._gathered: dict[tuple, Objective] = {}  # weights of the losses -> a trial's objective

    def give(self, model: NeRNModel, x: Any, batch_size: int | None, verbose: int | str) -> None:
        """Gives a model the curvature if it has a curvature phase ahead.

        Args:
            model: a compiled `NeRNModel` of the base.
            x, batch_size, verbose: as for `NeRNModel.fit`.
        """
        if model.curvature_steps <= to_int(model.curvature_iterations):
            return
        if x is not self._images:
            self._images, self._gathered = x, {}
        weights = (model.logits_weight, model.feature_map_weight, model.temperature)
        if weights in self._gathered:
            model._objective.take_curvature(self._gathered[weights])
        else:
            model.gather_curvature(x, CURVATURE_IMAGES, batch_size or 32, verbose)
            self._gathered[weights] = model._objective


class _TimeLeft:
    """Estimates the time that a search still takes, from the trials of this process."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._trials = 0

    def begin(self) -> None:
        """Begins a trial."""
        if self._start is None:
            self._start = time.monotonic()

    def print(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Ends a trial, and prints a line if the tuner's number of trials is known.

        Args:
            callbacks: the callbacks of the trial's fit, one of which keras-tuner adds.
        """
        assert self._start is not None
        self._trials += 1
        oracle = next((one.tuner.oracle for one in callbacks if hasattr(one, "tuner")), None)
        trials, most = getattr(oracle, "trials", None), getattr(oracle, "max_trials", None)
        if trials is None or most is None:  # a fit without a tuner, a worker, or Hyperband
            return
        left = most - len(trials)
        seconds = left * (time.monotonic() - self._start) / self._trials
        print(f"{left} more trials: {datetime.timedelta(seconds=round(seconds))} left")


class _EvaluateCompressed(keras.callbacks.Callback):
    """Adds the scores of the compressed representation to the logs of each epoch."""

    def __init__(self, evaluate: Callable[..., dict], bits: int) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.bits = bits
        self.small: NeRNModel | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        results = self.evaluate(self._compressed())
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})

    def _compressed(self) -> NeRNModel:
        small = compress(self.model, self.bits)
        if self.small is None:
            self.small = small
        else:  # reuse the model whose evaluation is traced
            self.small.predictor.set_weights(small.predictor.get_weights())
        return self.small


def _checked_compile_arguments(arguments: Any, space: SearchSpace) -> dict[str, Any]:
    """Checks arguments of `NeRNModel.compile` for all trials; returns a copy."""
    checks.instance("compile_arguments", arguments, (dict, type(None)), "a dict or None")
    arguments = dict(arguments or {})
    parameters = inspect.signature(NeRNModel.compile).parameters
    known = {*parameters, *inspect.signature(keras.Model.compile).parameters}
    unknown = sorted(set(arguments) - known)
    if unknown or any(arguments.get(name) is not None for name in ("loss", "loss_weights")):
        raise ValueError(
            "compile_arguments must be arguments of NeRNModel.compile, which has its own losses. "
            f"Received: compile_arguments={arguments!r}"
        )
    defaults = {name: parameters[name].default for name in NAMES}
    given = {**defaults, **checks.accepted(NeRNModel.compile, arguments)}
    settings = {name: given[name] for name in NAMES}
    for experts in space.experts:
        try:
            Settings.resolve(space.blocks.num_blocks, experts, True, **settings)
        except ValueError as error:
            raise ValueError(f"compile_arguments: {error}") from error
    return arguments


def _check_data(model: NeRNModel, x: Any, arguments: dict[str, Any]) -> Callable[..., dict]:
    """Checks the data of `fit`; returns a function that evaluates on `validation_data`."""
    validation = arguments.get("validation_data")
    if validation is None:
        raise FatalValueError(
            "search needs validation_data to score trials: images that are neither training nor "
            "test images, preferably with labels. Received: validation_data=None"
        )
    try:
        inputs, labels, weight = unpack_validation(validation)
        for name, data in (("x", x), ("validation_data", inputs)):
            if isinstance(data, types.GeneratorType):
                raise ValueError(
                    f"{name} must be data that every trial can read, such as an array or a "
                    "tf.data.Dataset. Received: a generator"
                )
        if x is not None:
            model.check_data(x)
        model.check_data(inputs, labels, "validation_data", sample_weight=weight)
    except ValueError as error:
        raise FatalValueError(str(error)) from error
    defaults = {
        "sample_weight": weight,
        "batch_size": arguments.get("validation_batch_size"),
        "steps": arguments.get("validation_steps"),
        "return_dict": True,
        "verbose": 0,
    }

    def evaluate(model: NeRNModel, **changed: Any) -> dict:
        return model.evaluate(inputs, labels, **{**defaults, **changed})

    return evaluate


def _check_objective(callbacks: list[keras.callbacks.Callback], results: dict) -> None:
    """Raises an error if the tuner's objective is a validation metric that is not evaluated."""
    known = sorted(f"val_{name}" for name in results)
    for callback in callbacks:  # a callback of keras-tuner has the objective
        objective = getattr(callback, "objective", None)
        if isinstance(objective, keras_tuner.Objective):
            names = getattr(objective, "name_to_direction", [objective.name])
            missing = [name for name in names if name.startswith("val_") and name not in known]
            if missing:
                raise FatalValueError(
                    f"objective must be one of {known}; others need labels in validation_data. "
                    f"Received: {missing}"
                )
