"""The Pareto front of size and score.

One representation *dominates* another if it takes no more bytes, scores no worse, and is better
in at least one of the two. The front consists of the representations that no other dominates:
along it, every additional byte buys a better score.
"""

import dataclasses
import math

from keras_nern.predictor.size import byte_budget
from keras_nern.utils import checks
from keras_nern.utils.tables import Printable, Table


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
    """One trial of a search.

    Attributes:
        bytes: size of the representation, as `report.SummaryTable.representation_bytes`.
        score: value of the objective; NaN if training diverged.
        hyperparameters: dict of the representation's hyperparameters.
        trial_id: id of the search's trial.
    """

    bytes: float
    score: float
    hyperparameters: dict
    trial_id: str


@dataclasses.dataclass(frozen=True)
class ParetoFront(Printable):
    """The trials that no other trial dominates; prints as a table.

    Attributes:
        points: list of the front's `ParetoPoint`, by increasing bytes and improving score.
        trials: list of the `ParetoPoint` of all trials, by increasing bytes.
        objective: name of the score.
        direction: `"max"` if larger scores are better, `"min"` if smaller ones are.
    """

    points: list
    trials: list
    objective: str
    direction: str

    @classmethod
    def from_trials(cls, trials: list, objective: str, direction: str = "max") -> "ParetoFront":
        """Finds the front among trials.

        Args:
            trials: list of `ParetoPoint`. The first of several equal ones is on the front.
            objective: name of the score.
            direction: `"max"` if larger scores are better, `"min"` if smaller ones are.
                Defaults to `"max"`.

        Returns:
            A `ParetoFront`.

        Raises:
            ValueError: if `direction` is neither `"max"` nor `"min"`.

        Example:

        >>> trials = [ParetoPoint(4e4, 0.9, {}, "0"), ParetoPoint(6e4, 0.8, {}, "1")]
        >>> [point.trial_id for point in ParetoFront.from_trials(trials, "accuracy").points]
        ['0']
        """
        checks.one_of("direction", direction, ("max", "min"))
        sign = 1 if direction == "max" else -1
        trials = sorted(trials, key=lambda trial: (trial.bytes, -sign * trial.score))
        points: list[ParetoPoint] = []
        for trial in trials:
            if math.isnan(trial.score):
                continue
            if not points or sign * trial.score > sign * points[-1].score:
                points.append(trial)
        return cls(points, trials, objective, direction)

    def best(self, max_bytes: float | str | None = None) -> ParetoPoint:
        """Finds the best score within a budget of bytes.

        Args:
            max_bytes: a number of bytes, or a string such as `"200 kB"`; `None` for no limit.
                Defaults to `None`.

        Returns:
            A `ParetoPoint`.

        Raises:
            ValueError: if no trial fits the budget, or if `max_bytes` is neither.
        """
        limit = math.inf if max_bytes is None else byte_budget("max_bytes", max_bytes)
        fitting = [one for one in self.points if one.bytes <= limit]
        if not fitting:
            smallest = "no trial with a score"
            if self.points:
                smallest = f"{self.points[0].bytes:,.0f} bytes for the smallest"
            raise ValueError(
                f"Expected a trial of at most {limit:,.0f} bytes among {len(self.trials)} trials. "
                f"Received: {smallest}"
            )
        return fitting[-1]

    def tables(self) -> list[Table]:
        """A row for each point, and how many of the trials are on the front."""
        names = list(dict.fromkeys(name for one in self.trials for name in one.hyperparameters))
        rows = [
            (
                f"{one.bytes:,.0f}",
                f"{one.score:.5g}",
                *(one.hyperparameters.get(name) for name in names),
                one.trial_id,
            )
            for one in self.points
        ]
        header = ("bytes", self.objective, *names, "trial")
        count = f"{len(self.points)} of {len(self.trials)} trials are on the front"
        return [Table(rows, header, align="r"), Table([[count]])]
