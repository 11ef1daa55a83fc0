"""What a search may choose: the representations that fit a budget of bytes, and no others.

    bytes(h) = predictor of width h + 4 bytes a layer scale + bits of the permutation / 8

is known before anything is built (`budget`). What cannot fit at any width is left out. For
what can, let H be the largest width with bytes(H) <= `max_bytes`; the width is searched as a
share of it, h = H * width / 100, so that every point of the space fits. The alternative, to
draw widths up to the largest of all and fail the trials over budget, does worse in each of
keras-tuner's searches: three failures in a row end any search, failed trials count in
`max_trials`, a Gaussian process learns nothing from them and asks for them again, and a
bracket of Hyperband that lost trials goes without its later rounds.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import permutation_bits
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.size import max_width, predictor_bytes

LEAST_WIDTH = 4  # a budget for less is none


class SearchSpace:
    """The combinations of values that fit a budget.

    Args:
        blocks: the `blocks.Blocks` to represent.
        scales: number of layer scales that are kept.
        max_bytes: the budget.
        narrowest: the least width to search, in percent of the widest.
        choices: a dict from `hidden_size`, `permutation`, `bits`, `num_layers`,
            `num_frequencies` and `encoding_base` to a value, or a list of some to
            choose among; `hidden_size=None` for all that there is room for.

    Raises:
        ValueError: for a choice that is empty or has a value twice, a budget or percentage
            that is none, or a budget that nothing fits.
    """

    def __init__(
        self, blocks: Blocks, scales: int, max_bytes: float, narrowest: int, choices: dict
    ) -> None:
        if not isinstance(max_bytes, (int, float, np.number)) or not 1 <= max_bytes < math.inf:
            raise ValueError(
                f"max_bytes must be a number of at least 1. Received: max_bytes={max_bytes!r}"
            )
        if not isinstance(narrowest, (int, np.integer)) or not 1 <= narrowest <= 100:
            raise ValueError(
                f"narrowest must be a percentage, 1 to 100. Received: narrowest={narrowest!r}"
            )
        self.blocks = blocks
        self.scales = scales
        self.max_bytes = int(max_bytes)
        self.narrowest = int(narrowest)
        # By strings, which keras-tuner keeps exactly, also between processes.
        self.choices = {name: _labelled(name, values) for name, values in choices.items()}
        combinations = [self._values(one) for one in itertools.product(*self.choices.values())]
        least = [self._least_bytes(values) for values in combinations]
        if min(least) > self.max_bytes:
            raise ValueError(
                "max_bytes must leave room for one of the predictors to choose among, the "
                f"smallest of which takes {math.ceil(min(least)):,} bytes. "
                f"Received: max_bytes={self.max_bytes:,}"
            )
        self._fitting = [
            labels
            for labels, size in zip(itertools.product(*self.choices.values()), least, strict=True)
            if size <= self.max_bytes
        ]

    def __str__(self) -> str:
        searched: dict[str, Any] = {name: list(labels) for name, labels in self.choices.items()}
        searched = {"max_bytes": self.max_bytes, "narrowest": self.narrowest, **searched}
        return ", ".join(f"{name}={value}" for name, value in searched.items())

    def _values(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            name: values[label]
            for (name, values), label in zip(self.choices.items(), labels, strict=True)
        }

    def _predictor(self, values: dict[str, Any]) -> dict[str, Any]:
        """What tells a predictor's bytes besides its width."""
        return {
            "num_layers": values["num_layers"],
            "block_length": self.blocks.block_length,
            "features": 3 * 2 * values["num_frequencies"],
            "bits": values["bits"],
        }

    def _beside(self, values: dict[str, Any]) -> float:
        """The bytes of layer scales and permutation."""
        permutation = values["permutation"]
        if isinstance(permutation, Permutation):
            bits = permutation.bits
        else:
            bits = sum(permutation_bits(grid, permutation) for grid in self.blocks.grids)
        return 4 * self.scales + bits / 8

    def num_bytes(self, values: dict) -> float:
        """The bytes of a representation, as `report.SummaryTable` counts them.

        Args:
            values: what `declare` gives.
        """
        size = predictor_bytes(values["hidden_size"], **self._predictor(values))
        return size + self._beside(values)

    def _least_bytes(self, values: dict[str, Any]) -> float:
        return self.num_bytes({**values, "hidden_size": values["hidden_size"] or LEAST_WIDTH})

    def declare(self, hp: Any) -> dict:
        """Asks for hyperparameters, and tells what their values stand for.

        Args:
            hp: `keras_tuner.HyperParameters`; what they do not have yet is added.

        Returns:
            A dict from the names of `choices` to values.

        Raises:
            ValueError: for hyperparameters of another search space.
        """
        # Kept with every trial, as it is what gives the others their meaning.
        space = hp.Fixed("space", str(self))
        if space != str(self):
            raise ValueError(
                "The trials in this directory are of another search: go on with what that "
                "searches, or give another project_name, or overwrite=True. "
                f"Expected: {space}. Received: {self}"
            )
        values = self._values(self._choose(hp, list(self.choices), self._fitting))
        if values["hidden_size"] is None:
            width = hp.Int("width", self.narrowest, 100, sampling="log", default=100)
            room = max_width(self.max_bytes - self._beside(values), **self._predictor(values))
            values["hidden_size"] = max(LEAST_WIDTH, room * width // 100)
        return values

    def _choose(
        self, hp: Any, names: list[str], combinations: Sequence, condition: str = ""
    ) -> tuple:
        """Asks for one of the combinations (tuples of labels), name by name.

        Where all labels of a name can be followed by the same, they are one flat choice;
        else what can follow them is asked for under conditions. Names then tell them, as
        keras-tuner (1.4.8) loses the value of a name that has several.
        """
        if not names:
            return ()
        name, *others = names
        labels = list(dict.fromkeys(one[0] for one in combinations))
        after: dict[tuple, list[str]] = {}  # what may follow -> the labels that it may
        for label in labels:
            rest = tuple(one[1:] for one in combinations if one[0] == label)
            after.setdefault(rest, []).append(label)
        asked = name + condition
        chosen = hp.Choice(asked, labels) if len(labels) > 1 else labels[0]
        if chosen not in (None, *labels):  # None where a condition is not met
            raise ValueError(f"{asked} must be one of {labels}. Received: {chosen!r}")
        if len(after) == 1:
            return (chosen, *self._choose(hp, others, next(iter(after)), condition))
        found: tuple = ()
        for rest, those in after.items():
            met = f"{condition}, {name}={'|'.join(those)}"
            with hp.conditional_scope(asked, those):
                followed = self._choose(hp, others, rest, met)
            if chosen in those:
                found = (chosen, *followed)
        return found


def _labelled(name: str, values: Any) -> dict[str, Any]:
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if not values:
        raise ValueError(f"{name} must be a value, or a list of some. Received: {values!r}")
    labelled = {_label(value): value for value in values}
    if len(labelled) < len(values):
        raise ValueError(f"{name} must be values that differ. Received: {name}={values!r}")
    return labelled


def _label(value: Any) -> str:
    if isinstance(value, Permutation):  # of which many have one kind and the same sizes
        return f"{value.kind} {value.digest()[:12]}"
    return str(value)
