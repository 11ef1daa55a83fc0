"""A search for the best representation in at most so many bytes, with keras-tuner.

What a representation may cost is given; how to spend it is searched for: on the width or the
depth of the predictor, on the order of the kernels, on more or fewer bits for each weight
(`search_space`). Each trial is a fit of a `NeRNModel`, and images that it does not see judge
the rebuilt classifier. What is worth its bytes, the `front` tells.

The rounds of a Hyperband search are fits that go on from one another. The first of them learns
the kernels (the phase of reconstruction) and distils for the epochs of its round; those after
it load what was best and only distil. Every round's learning rate falls to the end of its own
epochs, so that rounds compare trials that are done.

keras-tuner (`pip install keras-nern[tuner]`) is needed here and nowhere else, so that this
module is not imported with the package.

Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
JMLR 18, 2018; Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms",
NeurIPS 2012; both as keras-tuner has them.
"""

import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_nern.analysis.pareto import ParetoFront, ParetoPoint
from keras_nern.compression import compress
from keras_nern.model import NeRNModel
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import validate_names
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.positional_encoding import PositionalEncoding
from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.predictor.quantization import largest_level
from keras_nern.tuner.search_space import LEAST_WIDTH, SearchSpace

try:
    import keras_tuner
    from keras_tuner.errors import FailedTrialError, FatalValueError
except ImportError as error:
    raise ImportError(
        "keras_nern.tuner.hypermodel needs `pip install keras-nern[tuner]`"
    ) from error

SELECTION = ("view", "block_size", "include", "exclude", "include_dense")


class NeRNHyperModel(keras_tuner.HyperModel):
    """The representations of a classifier that take at most so many bytes.

    Of `hidden_size`, `permutation`, `bits`, `num_layers`, `num_frequencies` and
    `encoding_base`, a list or tuple of values is searched, and a single value is kept.

    Args:
        base: the classifier, as for `NeRNModel`.
        max_bytes: the budget.
        hidden_size: widths to choose among; `None` for all that there is room for, as the
            hyperparameter `width`, in percent of the widest. Defaults to `None`.
        permutation: as for `NeRNModel`; its bits count. Defaults to `None`.
        bits: of the predictor's kernels, as for `compress`: a trial with bits is trained
            with floats, and judged epoch by epoch as `compress` leaves it. Defaults to
            `None`, floats.
        num_layers: as for `NeRNModel`. Defaults to `5`.
        num_frequencies, encoding_base: of the `PositionalEncoding`. Default to `40` and
            `0.76`.
        narrowest: the least `width` to search, in percent. Defaults to `10`.
        compile_arguments: a dict of arguments of `NeRNModel.compile`. Defaults to `None`.
        name, tunable: as for `keras_tuner.HyperModel`.
        **arguments: further arguments of `NeRNModel`, the same in every trial (`view`,
            `normalize`, `metric`, ...).

    Raises:
        ValueError: where nothing that may be chosen fits the budget, or for values that
            `NeRNModel` would not take; before any trial.

    Example:

    >>> hypermodel = NeRNHyperModel(base, max_bytes=100_000, num_layers=[4, 5, 6])
    >>> objective = keras_tuner.Objective("val_agreement", "max")
    >>> tuner = keras_tuner.RandomSearch(hypermodel, objective, max_trials=20)
    >>> tuner.search(images, epochs=2, validation_data=(others, labels))
    >>> print(pareto_front(tuner))
    """

    def __init__(
        self,
        base: keras.Model,
        max_bytes: int,
        hidden_size: int | Sequence[int] | None = None,
        permutation: str | Permutation | Sequence[str | Permutation | None] | None = None,
        bits: int | Sequence[int | None] | None = None,
        num_layers: int | Sequence[int] = 5,
        num_frequencies: int | Sequence[int] = 40,
        encoding_base: float | Sequence[float] = 0.76,
        narrowest: int = 10,
        compile_arguments: dict | None = None,
        name: str | None = None,
        tunable: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(name, tunable)
        unknown = sorted({"encoding", "pruned"} & set(arguments))
        if unknown:
            raise ValueError(
                "Expected arguments of NeRNModel that leave its bytes to the search. "
                f"Received: {unknown}"
            )
        self.base = base
        self.compile_arguments = dict(compile_arguments or {})
        self.arguments = arguments
        self._blocks = Blocks(base, **{k: v for k, v in arguments.items() if k in SELECTION})
        self._found: dict[str, Permutation] = {}  # the orders of the blocks, each searched for once
        choices = {
            "hidden_size": hidden_size,
            "permutation": permutation,
            "bits": bits,
            "num_layers": num_layers,
            "num_frequencies": num_frequencies,
            "encoding_base": encoding_base,
        }
        self._check({name: _listed(values) for name, values in choices.items()})
        scales = len(self._blocks.kernels) if arguments.get("normalize") else 0
        self.space = SearchSpace(self._blocks, scales, max_bytes, narrowest, choices)

    def _check(self, choices: dict[str, list]) -> None:
        """Raises a ValueError for what `NeRNModel` would not take, or not fit."""
        widths = choices["hidden_size"]
        for hidden_size in [LEAST_WIDTH] if widths == [None] else widths:
            KernelPredictor(hidden_size)
        for num_layers in choices["num_layers"]:
            KernelPredictor(LEAST_WIDTH, num_layers)
        for bits in choices["bits"]:
            if bits is not None:
                largest_level(bits)
        for encoding in itertools.product(choices["num_frequencies"], choices["encoding_base"]):
            PositionalEncoding(*encoding)
        for permutation in choices["permutation"]:
            if isinstance(permutation, Permutation):
                permutation.check(self._blocks.grids)
            else:
                method, metric = self._order_arguments()
                validate_names(permutation, method, metric)
                Permutation.check_size(self._blocks.grids, permutation, method)

    def _order_arguments(self) -> tuple[str, str]:
        method = self.arguments.get("permutation_method", "greedy")
        return method, self.arguments.get("metric", "euclidean")

    def _order(self, permutation: str | Permutation | None) -> Permutation | None:
        """A `Permutation`, or `None` for the blocks as they stand."""
        if permutation is None or isinstance(permutation, Permutation):
            return permutation
        if permutation not in self._found:
            arguments = self._order_arguments()
            self._found[permutation] = Permutation.from_model(self._blocks, permutation, *arguments)
        return self._found[permutation]

    def configuration(self, hp: keras_tuner.HyperParameters) -> dict:
        """What a trial's representation is made with.

        Args:
            hp: hyperparameters, of a trial or to take the defaults of; they stay as they
                are.

        Returns:
            A dict of `hidden_size`, `permutation`, `bits`, `num_layers`,
            `num_frequencies` and `encoding_base`.

        Raises:
            keras_tuner.errors.FatalValueError: where they are of another search.
        """
        return self._declare(hp.copy())

    def num_bytes(self, hp: keras_tuner.HyperParameters) -> float:
        """The bytes of a trial's representation, its permutation and scales included.

        Args:
            hp: as for `configuration`.

        Returns:
            As `report.SummaryTable.representation_bytes` counts them, where there are
            bits of the predictor as `compress` leaves it.

        Raises:
            keras_tuner.errors.FatalValueError: where they are of another search.
        """
        return self.space.num_bytes(self.configuration(hp))

    def _declare(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        try:
            return self.space.declare(hp)
        except ValueError as error:  # of no use to go on: it is the same in the next trial
            raise FatalValueError(str(error)) from error

    def build(self, hp: keras_tuner.HyperParameters) -> NeRNModel:
        """Builds and compiles the representation that hyperparameters stand for.

        Args:
            hp: of a trial, or new ones, which get their defaults.

        Returns:
            A `NeRNModel`, with floats also where there are bits.

        Raises:
            keras_tuner.errors.FailedTrialError: where it would be over the budget, as it
                can be where the tuner was given hyperparameters to override these.
            keras_tuner.errors.FatalValueError: where they are of another search.
        """
        values = self._declare(hp)
        size = self.space.num_bytes(values)
        if size > self.space.max_bytes:
            raise FailedTrialError(
                f"Expected at most {self.space.max_bytes:,} bytes. "
                f"Received: {size:,.0f}, with {values}"
            )
        model = NeRNModel(
            self.base,
            hidden_size=values["hidden_size"],
            num_layers=values["num_layers"],
            permutation=self._order(values["permutation"]),
            encoding=PositionalEncoding(values["num_frequencies"], values["encoding_base"]),
            **self.arguments,
        )
        # As a config, so that each model has an optimizer and metrics of its own.
        model.compile_from_config(keras.saving.serialize_keras_object(self.compile_arguments))
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: NeRNModel, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Trains one trial's representation.

        Args:
            hp: of the trial.
            model: what `build` gave.
            *args, **kwargs: of `search`, as for `NeRNModel.fit`; `validation_data` judge.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            keras_tuner.errors.FatalValueError: before any training, where there are no
                `validation_data`, they do not tell the objective, or data are of no use.
        """
        judge = _check_data(model, args[0] if args else kwargs.get("x"), kwargs)
        callbacks = kwargs.pop("callbacks", None) or []
        _check_objective(callbacks, judge(model, steps=1))
        bits = self.configuration(hp)["bits"]
        if bits is not None:
            for name in ("validation_data", *_VALIDATION):
                kwargs.pop(name, None)
            callbacks = [_JudgeCompressed(judge, bits), *callbacks]
        if kwargs.get("initial_epoch") and model._runtime.schedule is not None:
            # A later round of Hyperband, from the best epoch of an earlier one: whichever
            # that was, the rate is to fall over the whole of this round.
            model.optimizer.iterations.assign(0)
        return model.fit(*args, **{**kwargs, "callbacks": callbacks})


def pareto_front(tuner: keras_tuner.Tuner) -> ParetoFront:
    """The front of bytes and score of the trials that a search has finished.

    Args:
        tuner: a keras-tuner tuner of a `NeRNHyperModel`, after its search, in the midst of
            it, or made anew on its directory; not a worker of a parallel search.

    Returns:
        A `ParetoFront`: print it, or give it to `plots.plot_pareto_front`.

    Raises:
        ValueError: for a worker, or a tuner of another hypermodel.

    Example:

    >>> front = pareto_front(tuner)
    >>> trial = tuner.oracle.get_trial(front.best(max_bytes=50_000).trial_id)
    >>> nern = tuner.load_model(trial)
    """
    hypermodel = tuner.hypermodel
    if not isinstance(hypermodel, NeRNHyperModel):
        raise ValueError(f"Expected the tuner of a NeRNHyperModel. Received: of {hypermodel!r}")
    trials = getattr(tuner.oracle, "trials", None)
    if trials is None:
        raise ValueError(
            "Expected the tuner of the chief, or one made anew on the directory, as they know "
            f"all trials. Received: the worker {tuner.tuner_id!r}"
        )
    rows = []
    for trial in trials.values():
        if trial.status == "COMPLETED":
            values = hypermodel.configuration(trial.hyperparameters)
            size = hypermodel.num_bytes(trial.hyperparameters)
            if isinstance(values["permutation"], Permutation):
                values["permutation"] = values["permutation"].kind
            rows.append(ParetoPoint(size, trial.score, values, trial.trial_id))
    objective = tuner.oracle.objective
    return ParetoFront.from_trials(rows, objective.name, objective.direction)


class _JudgeCompressed(keras.callbacks.Callback):
    """Puts the scores of the compressed representation into the logs of each epoch."""

    def __init__(self, judge: Callable[..., dict], bits: int) -> None:
        super().__init__()
        self.judge = judge
        self.bits = bits
        self.small: NeRNModel | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        results = self.judge(self._compressed())
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})

    def _compressed(self) -> NeRNModel:
        if self.model.predictor.not_finite():
            return self.model  # diverged: its own scores are bad enough
        small = compress(self.model, self.bits)
        if self.small is None:
            self.small = small
        else:  # whose evaluation is traced already
            self.small.predictor.set_weights(small.predictor.get_weights())
        return self.small


# Arguments of `fit` that tell how `validation_data` are evaluated.
_VALIDATION = ("validation_batch_size", "validation_steps", "validation_freq")


def _check_data(model: NeRNModel, x: Any, arguments: dict[str, Any]) -> Callable[..., dict]:
    """Looks at what `fit` is given; returns a function that evaluates on `validation_data`."""
    validation = arguments.get("validation_data")
    if validation is None:
        raise FatalValueError(
            "search needs validation_data to choose by: images, best with labels, that are "
            "neither those of the training nor those of the test. Received: None"
        )
    for name, data in (("x", x), ("validation_data", validation)):
        if isinstance(data, types.GeneratorType):
            raise FatalValueError(
                f"{name} must give its images to every trial anew. Received: a generator"
            )
        try:
            if data is not None:
                model.examine(data, name=name)
        except ValueError as error:
            raise FatalValueError(str(error)) from error
    pair = validation if isinstance(validation, (tuple, list)) else (validation,)
    inputs, labels, weight = keras.utils.unpack_x_y_sample_weight(tuple(pair))
    found = {
        "sample_weight": weight,
        "batch_size": arguments.get("validation_batch_size"),
        "steps": arguments.get("validation_steps"),
        "return_dict": True,
        "verbose": 0,
    }

    def judge(model: NeRNModel, **changed: Any) -> dict:
        return model.evaluate(inputs, labels, **{**found, **changed})

    return judge


def _check_objective(callbacks: list[keras.callbacks.Callback], results: dict) -> None:
    """Raises an error where an objective is of the validation, and that does not tell it."""
    told = sorted(f"val_{name}" for name in results)
    for callback in callbacks:  # one of keras-tuner's has it
        objective = getattr(callback, "objective", None)
        if isinstance(objective, keras_tuner.Objective):
            names = getattr(objective, "name_to_direction", [objective.name])
            missing = [name for name in names if name.startswith("val_") and name not in told]
            if missing:
                raise FatalValueError(
                    f"Expected an objective among {told}, or labels in validation_data. "
                    f"Received: {missing}"
                )


def _listed(values: Any) -> list:
    return list(values) if isinstance(values, (list, tuple)) else [values]
