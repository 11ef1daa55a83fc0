"""Which representations are worth their bytes: the Pareto front of size and score.

One representation *dominates* another where it takes no more bytes and scores no worse, and
is better in one of the two. The front is what no other dominates: along it every further byte
buys a better score, and off it bytes are wasted.
"""

import dataclasses
import math

_SCORE = "{:.5g}"


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
    """One representation that was tried.

    Attributes:
        bytes: what it takes, see `report.SummaryTable.representation_bytes`.
        score: what it was judged by.
        hyperparameters: a dict of what it was made with.
        trial_id: of the search's trial.
    """

    bytes: float
    score: float
    hyperparameters: dict
    trial_id: str


@dataclasses.dataclass(frozen=True)
class ParetoFront:
    """The representations that no other dominates; prints as a table.

    Attributes:
        points: list of `ParetoPoint` by rising bytes, and so by better scores.
        trials: list of all `ParetoPoint`, by rising bytes.
        objective: name of the score.
        direction: `"max"` where a larger score is the better one, else `"min"`.
    """

    points: list
    trials: list
    objective: str
    direction: str

    @classmethod
    def from_trials(cls, trials: list, objective: str, direction: str = "max") -> "ParetoFront":
        """Finds the front of representations.

        Args:
            trials: list of `ParetoPoint`. Of equal ones the first is on the front.
            objective: name of the score.
            direction: `"max"` or `"min"`. Defaults to `"max"`.

        Returns:
            A `ParetoFront`.

        Raises:
            ValueError: for another direction.

        Example:

        >>> rows = [ParetoPoint(4e4, 0.9, {}, "0"), ParetoPoint(6e4, 0.8, {}, "1")]
        >>> [row.trial_id for row in ParetoFront.from_trials(rows, "val_accuracy").points]
        ['0']
        """
        if direction not in ("max", "min"):
            raise ValueError(f'direction must be "max" or "min". Received: direction={direction!r}')
        sign = 1 if direction == "max" else -1
        trials = sorted(trials, key=lambda row: (row.bytes, -sign * row.score))
        points: list[ParetoPoint] = []
        for row in trials:
            if math.isnan(row.score):  # of a fit that diverged
                continue
            if not points or sign * row.score > sign * points[-1].score:
                points.append(row)
        return cls(points, trials, objective, direction)

    def best(self, max_bytes: float | None = None) -> ParetoPoint:
        """The best score in at most so many bytes.

        Args:
            max_bytes: `None` for any number. Defaults to `None`.

        Returns:
            A `ParetoPoint`.

        Raises:
            ValueError: where nothing that was tried is so small.
        """
        fitting = [row for row in self.points if max_bytes is None or row.bytes <= max_bytes]
        if not fitting:
            smallest = "no trial"
            if self.points:
                smallest = f"the smallest takes {self.points[0].bytes:,.0f}"
            raise ValueError(
                f"Expected a trial of at most {max_bytes} bytes among {len(self.trials)}. "
                f"Received: {smallest}"
            )
        return fitting[-1]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.trials for name in row.hyperparameters))
        columns = [["bytes", *(f"{row.bytes:,.0f}" for row in self.points)]]
        columns.append([self.objective, *(_SCORE.format(row.score) for row in self.points)])
        for name in names:
            columns.append([name, *(str(row.hyperparameters.get(name)) for row in self.points)])
        columns.append(["trial", *(row.trial_id for row in self.points)])
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in zip(*columns, strict=True)
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, "", f"{len(self.points)} of {len(self.trials)} trials"])
