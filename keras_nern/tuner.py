"""A search for the best representation in at most so many bytes, with keras-tuner.

What a predictor may cost is given, `max_bytes`; how to spend it is searched for: on width or
depth, on the order of the kernels, on more or fewer bits for each weight. Bytes are those of
`report.SummaryTable.representation_bytes`, and known before anything is built (`budget`):

    bytes(h) = predictor of width h + 4 bytes a layer scale + bits of the permutation / 8

So no trial is spent on a representation that is too large. What cannot fit at any width is
left out of the search space; for what can, let H be the largest width with bytes(H) <=
`max_bytes`, and the width is searched as a share of it, h = H * width / 100, so that every
point of the space fits. The alternative, to draw widths up to the largest of all and fail the
trials over budget, does worse in each of keras-tuner's searches: three failures in a row end
any search, failed trials count in `max_trials`, a Gaussian process learns nothing from them
and asks for them again, and a bracket of Hyperband waits for trials that never complete.

This module needs keras-tuner (`pip install keras-nern[tuner]`) and is therefore not imported
with the package.

Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
JMLR 18, 2018; Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms",
NeurIPS 2012; both as keras-tuner has them.
"""

import itertools
import math
import numbers
import types

import keras

from keras_nern.blocks import Blocks
from keras_nern.budget import predictor_bytes, widest
from keras_nern.compression import compress
from keras_nern.front import FrontRow, ParetoFront
from keras_nern.model import NeRNModel
from keras_nern.permutations import Permutation, permutation_bits
from keras_nern.positional_encoding import PositionalEncoding
from keras_nern.predictor import KernelPredictor
from keras_nern.quantization import largest_level

try:
    import keras_tuner
except ImportError as error:
    raise ImportError("keras_nern.tuner needs `pip install keras-nern[tuner]`") from error

LEAST_WIDTH = 4  # a budget for less is none
SELECTION = ("view", "block_size", "include", "exclude", "include_dense")


class NeRNHyperModel(keras_tuner.HyperModel):
    """The representations of a classifier that take at most so many bytes.

    Of `hidden_size`, `permutation`, `bits`, `num_blocks`, `num_frequencies` and
    `encoding_base`, a list or tuple of values is searched, and a single value is kept.

    Args:
        base: the classifier, as for `NeRNModel`.
        max_bytes: the budget.
        hidden_size: widths to choose among; `None` for all there are room for, as the
            hyperparameter `width`, in percent of the widest. Defaults to `None`.
        permutation: as for `NeRNModel`; its bits count. Defaults to `None`.
        bits: of the predictor's kernels, as for `compress`: a trial with bits is trained
            with floats, and judged, epoch by epoch, as `compress` leaves it. Defaults to
            `None`, floats.
        num_blocks: as for `NeRNModel`. Defaults to `5`.
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

    >>> hypermodel = NeRNHyperModel(base, max_bytes=100_000, num_blocks=[4, 5, 6])
    >>> objective = keras_tuner.Objective("val_agreement", "max")
    >>> tuner = keras_tuner.RandomSearch(hypermodel, objective, max_trials=20)
    >>> tuner.search(images, epochs=2, validation_data=(others, labels))
    >>> print(pareto_front(tuner))
    """

    def __init__(
        self,
        base: keras.Model,
        max_bytes: int,
        hidden_size=None,
        permutation=None,
        bits=None,
        num_blocks=5,
        num_frequencies=40,
        encoding_base=0.76,
        narrowest: int = 10,
        compile_arguments: dict | None = None,
        name: str | None = None,
        tunable: bool = True,
        **arguments,
    ):
        super().__init__(name, tunable)
        if not isinstance(max_bytes, numbers.Real) or not 1 <= max_bytes < math.inf:
            raise ValueError(
                f"max_bytes must be a number of at least 1. Received: max_bytes={max_bytes!r}"
            )
        if not isinstance(narrowest, numbers.Integral) or not 1 <= narrowest <= 100:
            raise ValueError(
                f"narrowest must be a percentage, 1 to 100. Received: narrowest={narrowest!r}"
            )
        taken = sorted({"encoding", "pruned"} & set(arguments))
        if taken:
            raise ValueError(
                "Expected arguments of NeRNModel whose bytes are known before training. "
                f"Received: {taken}"
            )
        self.base = base
        self.max_bytes = int(max_bytes)
        self.narrowest = int(narrowest)
        self.compile_arguments = dict(compile_arguments or {})
        self.arguments = arguments
        self._blocks = Blocks(base, **{k: v for k, v in arguments.items() if k in SELECTION})
        self._orders = {}  # what permutations are found once and for all
        self._choices = {
            "hidden_size": _labelled("hidden_size", hidden_size),
            "permutation": _labelled("permutation", permutation),
            "bits": _labelled("bits", bits),
            "num_blocks": _labelled("num_blocks", num_blocks),
            "num_frequencies": _labelled("num_frequencies", num_frequencies),
            "encoding_base": _labelled("encoding_base", encoding_base),
        }
        self._check_choices()
        searched = {name: list(labels) for name, labels in self._choices.items()}
        searched = {"max_bytes": self.max_bytes, "narrowest": self.narrowest, **searched}
        self._space = ", ".join(f"{name}={value}" for name, value in searched.items())
        combinations = list(itertools.product(*self._choices.values()))
        self._fitting = [one for one in combinations if self._fits(self._values(one))]
        if not self._fitting:
            least = min(map(self._least_bytes, map(self._values, combinations)))
            raise ValueError(
                "max_bytes must leave room for one of the predictors to choose among, the "
                f"smallest of which takes {math.ceil(least):,} bytes. "
                f"Received: max_bytes={self.max_bytes:,}"
            )

    def _check_choices(self):
        """Raises a ValueError for what `NeRNModel` would not take, or not fit."""
        widths = list(self._choices["hidden_size"].values())
        for hidden_size in [LEAST_WIDTH] if widths == [None] else widths:
            KernelPredictor(hidden_size)
        for num_blocks in self._choices["num_blocks"].values():
            KernelPredictor(LEAST_WIDTH, num_blocks)
        for bits in self._choices["bits"].values():
            if bits is not None:
                largest_level(bits)
        for frequencies, base in itertools.product(
            self._choices["num_frequencies"].values(), self._choices["encoding_base"].values()
        ):
            PositionalEncoding(frequencies, base)
        method, metric = self._order_arguments()
        for permutation in self._choices["permutation"].values():
            if isinstance(permutation, Permutation):
                permutation.check(self._blocks.grids)
            else:
                Permutation.validate(permutation, method, metric)
                Permutation.check_size(self._blocks.grids, permutation, method)

    def _order_arguments(self):
        method = self.arguments.get("permutation_method", "greedy")
        return method, self.arguments.get("metric", "euclidean")

    # Bytes, before anything is built.

    def _values(self, combination):
        return {
            name: values[label]
            for (name, values), label in zip(self._choices.items(), combination, strict=True)
        }

    def _shape(self, values):
        """What tells a predictor's bytes besides its width."""
        return {
            "num_blocks": values["num_blocks"],
            "block_length": self._blocks.block_length,
            "features": 3 * 2 * values["num_frequencies"],
            "bits": values["bits"],
        }

    def _beside(self, values):
        """The bytes that are not the predictor's: layer scales and permutation."""
        permutation = values["permutation"]
        if isinstance(permutation, Permutation):
            bits = permutation.bits
        else:
            bits = sum(permutation_bits(grid, permutation) for grid in self._blocks.grids)
        scales = len(self._blocks.kernels) if self.arguments.get("normalize") else 0
        return 4 * scales + bits / 8

    def _num_bytes(self, values):
        return predictor_bytes(values["hidden_size"], **self._shape(values)) + self._beside(values)

    def _least_bytes(self, values):
        return self._num_bytes({**values, "hidden_size": values["hidden_size"] or LEAST_WIDTH})

    def _fits(self, values):
        return self._least_bytes(values) <= self.max_bytes

    # What hyperparameters stand for.

    def configuration(self, hp: keras_tuner.HyperParameters) -> dict:
        """What a trial's representation is made with.

        Args:
            hp: `keras_tuner.HyperParameters`, of a trial or to take the defaults of; they
                stay as they are.

        Returns:
            A dict of `hidden_size`, `permutation`, `bits`, `num_blocks`,
            `num_frequencies` and `encoding_base`.

        Raises:
            keras_tuner.errors.FatalValueError: where they are of a search among others.
        """
        return self._declare(hp.copy())

    def num_bytes(self, hp: keras_tuner.HyperParameters) -> float:
        """The bytes of a trial's representation, its permutation and scales included.

        Args:
            hp: as for `configuration`.

        Returns:
            As `report.SummaryTable.representation_bytes` counts them, of the predictor
            as `compress` leaves it where there are bits.
        """
        return self._num_bytes(self.configuration(hp))

    def _declare(self, hp):
        """Asks for all hyperparameters, and tells what they stand for."""
        # Kept with every trial, as it is what gives the other values their meaning.
        space = hp.Fixed("space", self._space)
        if space != self._space:
            raise keras_tuner.errors.FatalValueError(
                "The directory has trials of another search: go on with what it searches, or "
                "give another project_name, or overwrite=True. "
                f"Expected: {space}. Received: {self._space}"
            )
        values = self._values(self._choose(hp, list(self._choices), self._fitting))
        if values["hidden_size"] is None:
            width = hp.Int("width", self.narrowest, 100, sampling="log", default=100)
            room = widest(self.max_bytes - self._beside(values), **self._shape(values))
            values["hidden_size"] = max(LEAST_WIDTH, room * width // 100)
        return values

    def _choose(self, hp, names, combinations):
        """Asks for one of the combinations (tuples of labels), name by name.

        Where all values of a name can be followed by the same, they are one flat choice;
        else what can follow them is asked for under conditions.
        """
        if not names:
            return ()
        name, *others = names
        after = {}  # what may follow -> the labels that it may
        labels = list(dict.fromkeys(one[0] for one in combinations))
        for label in labels:
            rest = tuple(one[1:] for one in combinations if one[0] == label)
            after.setdefault(rest, []).append(label)
        chosen = hp.Choice(name, labels) if len(labels) > 1 else labels[0]
        if chosen not in (None, *labels):  # None where a condition is not met
            raise keras_tuner.errors.FatalValueError(
                f"{name} must be one of {labels}. Received: {name}={chosen!r}"
            )
        if len(after) == 1:
            return (chosen, *self._choose(hp, others, next(iter(after))))
        found = None
        for rest, those in after.items():
            with hp.conditional_scope(name, those):
                followed = self._choose(hp, others, rest)
            if chosen in those:
                found = (chosen, *followed)
        return found

    def _permutation(self, permutation):
        """A `Permutation`, searched for once; `None` where there is none."""
        if permutation is None or isinstance(permutation, Permutation):
            return permutation
        if permutation not in self._orders:
            arguments = self._order_arguments()
            self._orders[permutation] = Permutation.of(self._blocks, permutation, *arguments)
        return self._orders[permutation]

    def build(self, hp: keras_tuner.HyperParameters) -> NeRNModel:
        """Builds and compiles the representation that hyperparameters stand for.

        Raises:
            keras_tuner.errors.FailedTrialError: where it is over the budget, as it can be
                where the search space was given to the tuner by hand.
            keras_tuner.errors.FatalValueError: where the search that is gone on with has
                another budget, or other values to choose among.
        """
        values = self._declare(hp)
        size = self._num_bytes(values)
        if size > self.max_bytes:
            raise keras_tuner.errors.FailedTrialError(
                f"Expected at most {self.max_bytes:,} bytes. Received: {size:,.0f}, of {values}"
            )
        model = NeRNModel(
            self.base,
            hidden_size=values["hidden_size"],
            num_blocks=values["num_blocks"],
            permutation=self._permutation(values["permutation"]),
            encoding=PositionalEncoding(values["num_frequencies"], values["encoding_base"]),
            **self.arguments,
        )
        # As a config, so that each model has an optimizer and metrics of its own.
        config = keras.saving.serialize_keras_object(self.compile_arguments)
        model.compile_from_config(config)
        return model

    def fit(self, hp: keras_tuner.HyperParameters, model: NeRNModel, *args, **kwargs):
        """Trains one trial's representation: what `search` is given, goes to `NeRNModel.fit`.

        Raises:
            keras_tuner.errors.FatalValueError: before any training, where there is no
                `validation_data`, it does not tell the objective, or data are of no use.
        """
        validation = kwargs.get("validation_data")
        x = args[0] if args else kwargs.get("x")
        if validation is None:
            raise keras_tuner.errors.FatalValueError(
                "search needs validation_data to choose by: images, best with labels, that are "
                "neither trained on nor those of the test. Received: validation_data=None"
            )
        for name, data in (("x", x), ("validation_data", validation)):
            if isinstance(data, types.GeneratorType):
                raise keras_tuner.errors.FatalValueError(
                    f"{name} must give its images to every trial anew. Received: a generator"
                )
            if data is not None:
                _examine(model, data, name)
        callbacks = kwargs.pop("callbacks", None) or []
        judge = _Judge(validation, kwargs, self.configuration(hp)["bits"])
        _check_objective(callbacks, judge.evaluate(model, steps=1))
        if judge.bits is not None:
            for name in ("validation_data", *_Judge.ARGUMENTS):
                kwargs.pop(name, None)
            callbacks = [judge, *callbacks]
        if kwargs.get("initial_epoch") and model._runtime.schedule is not None:
            # Hyperband goes on from the best epoch of an earlier round. Every round has a
            # cosine of its own to the end, whichever epoch that was.
            model.optimizer.iterations.assign(0)
        return model.fit(*args, callbacks=callbacks, **kwargs)


def pareto_front(tuner: keras_tuner.Tuner) -> ParetoFront:
    """The front of bytes and score of the trials that a search has finished.

    Args:
        tuner: a keras-tuner tuner of a `NeRNHyperModel`, after its search, in the midst of
            it, or made anew on its directory; not a worker of a parallel search.

    Returns:
        A `ParetoFront`: print it, or give it to `plots.plot_front`.

    Raises:
        ValueError: for a worker, or a tuner of another hypermodel.

    Example:

    >>> front = pareto_front(tuner)
    >>> trial = tuner.oracle.get_trial(front.best(max_bytes=50_000).trial_id)
    >>> nern = tuner.load_model(trial)
    """
    if not isinstance(tuner.hypermodel, NeRNHyperModel):
        raise ValueError(
            f"Expected the tuner of a NeRNHyperModel. Received: one of {tuner.hypermodel!r}"
        )
    trials = getattr(tuner.oracle, "trials", None)
    if trials is None:
        raise ValueError(
            "Expected the tuner of the chief, or one outside of the parallel search, as only "
            f"they know all trials. Received: the worker {tuner.tuner_id!r}"
        )
    rows = []
    for trial in trials.values():
        if trial.status == "COMPLETED":
            values = tuner.hypermodel.configuration(trial.hyperparameters)
            size = tuner.hypermodel.num_bytes(trial.hyperparameters)
            if isinstance(values["permutation"], Permutation):
                values["permutation"] = values["permutation"].kind
            rows.append(FrontRow(size, trial.score, values, trial.trial_id))
    objective = tuner.oracle.objective
    return ParetoFront.of(rows, objective.name, objective.direction)


class _Judge(keras.callbacks.Callback):
    """Evaluates the compressed representation after each epoch, as Keras does others.

    Args:
        data: validation data.
        arguments: of `fit`; those for the validation are used.
        bits: as for `compress`, or `None`.
    """

    ARGUMENTS = ("validation_batch_size", "validation_steps", "validation_freq")

    def __init__(self, data, arguments, bits):
        super().__init__()
        self.data = data
        self.bits = bits
        self.arguments = {
            "batch_size": arguments.get("validation_batch_size"),
            "steps": arguments.get("validation_steps"),
        }
        self.small = None

    def evaluate(self, model, **arguments):
        x, y, weight = self.data, None, None
        if isinstance(x, (tuple, list)):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(x)
        return model.evaluate(
            x,
            y,
            sample_weight=weight,
            return_dict=True,
            verbose=0,
            **{**self.arguments, **arguments},
        )

    def on_epoch_end(self, epoch, logs=None):
        small = compress(self.model, self.bits)
        if self.small is None:
            self.small = small
        else:  # whose evaluation is traced already
            self.small.predictor.set_weights(small.predictor.get_weights())
        results = self.evaluate(self.small)
        logs.update({f"val_{name}": value for name, value in results.items()})


def _labelled(name, values):
    """Values by the strings that keras-tuner chooses among, and keeps exactly."""
    values = values if isinstance(values, (list, tuple)) else [values]
    if not values:
        raise ValueError(f"{name} must be a value, or a list of some. Received: {values!r}")
    return {str(value): value for value in values}


def _examine(model, data, name):
    try:
        model.examine(data, name=name)
    except ValueError as error:
        raise keras_tuner.errors.FatalValueError(str(error)) from error


def _check_objective(callbacks, results):
    """Raises an error where an objective is of the validation, and it does not tell it."""
    told = {f"val_{name}" for name in results}
    for callback in callbacks:
        objective = getattr(callback, "objective", None)
        if isinstance(objective, keras_tuner.Objective):
            names = getattr(objective, "name_to_direction", [objective.name])
            missing = [name for name in names if name.startswith("val_") and name not in told]
            if missing:
                raise keras_tuner.errors.FatalValueError(
                    f"The objective must be among {sorted(told)}, or validation_data have labels. "
                    f"Received: {missing}"
                )
