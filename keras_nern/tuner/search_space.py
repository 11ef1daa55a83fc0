"""The representations that fit a budget of bytes.

The size of a representation is known before it is built:

    bytes = predictor (`predictor.size`) + 4 bytes per layer scale + bits of the permutation / 8

Combinations of values that exceed the budget at every width are excluded. For every other
combination, let H be the largest width within the budget. The search chooses the width as a
percentage of H, h = H * width / 100, so every point of the space fits. `experts="auto"` stands for
the number of experts that `predictor.size.auto_experts` chooses for the whole budget.

Defaults (`"auto"`, `None`) are replaced by the values they stand for. Several experts have neither
`num_frequencies` nor `encoding_base`. Of combinations that are equal after this, the search keeps
the first.

Failing trials over budget instead would not work with keras-tuner: three failures in a row end a
search, failed trials count in `max_trials`, a Gaussian process learns nothing from them and
suggests them again, and a Hyperband bracket with failed trials skips its later rounds.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import permutation_bits
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.positional_encoding import PositionalEncoding
from keras_nern.predictor.runs import NUM_FREQUENCIES
from keras_nern.predictor.size import (
    NUM_LAYERS,
    auto_experts,
    byte_budget,
    max_width,
    predictor_bytes,
)
from keras_nern.utils import checks

MIN_WIDTH = 4


class SearchSpace:
    """The combinations of values that fit a budget.

    Args:
        blocks: the `Blocks` to represent.
        max_bytes: the budget, as for `NeRNHyperModel`.
        narrowest: smallest width to search, in percent of the largest one that fits.
        choices: dict from `hidden_size`, `permutation`, `bits`, `num_layers`, `experts`,
            `num_frequencies` and `encoding_base` to a list of values, as for `NeRNHyperModel`.
            `hidden_size=[None]` stands for every width that fits.
        arguments: dict of `NeRNModel` arguments that are the same in every trial. Those that
            change the size count in the bytes.

    Raises:
        ValueError: if a list is empty or contains a value twice, `max_bytes` or `narrowest` is
            out of range, or no combination fits the budget.
    """

    def __init__(
        self,
        blocks: Blocks,
        max_bytes: float | str,
        narrowest: int,
        choices: dict[str, list],
        arguments: dict[str, Any],
    ) -> None:
        self.max_bytes = int(byte_budget("max_bytes", max_bytes))
        self.narrowest = checks.integer("narrowest", narrowest, minimum=1)
        if self.narrowest > 100:
            raise ValueError(
                f"narrowest must be a percentage of at most 100. Received: narrowest={narrowest!r}"
            )
        self.blocks = blocks
        self.arguments = arguments
        self._default_encoding = PositionalEncoding()
        # keras-tuner chooses labels, because it passes strings between processes unchanged.
        self.choices = {name: _labeled(name, values) for name, values in choices.items()}
        combinations: dict[tuple, tuple] = {}  # values -> the first labels for them
        for labels in itertools.product(*self.choices.values()):
            resolved = {**self._values(labels), "permutation": None}
            permutation = dict(zip(self.choices, labels, strict=True))["permutation"]
            combinations.setdefault((*resolved.values(), permutation), labels)
        sizes = {one: self._min_bytes(self._values(one)) for one in combinations.values()}
        smallest = min(sizes.values())
        if smallest > self.max_bytes:
            raise ValueError(
                f"max_bytes must be at least {math.ceil(smallest):,}, the size of the smallest "
                f"representation in the search space. Received: max_bytes={self.max_bytes:,}"
            )
        self._fitting = [labels for labels, size in sizes.items() if size <= self.max_bytes]

    def __str__(self) -> str:
        searched: dict[str, Any] = {"max_bytes": self.max_bytes, "narrowest": self.narrowest}
        searched |= {name: list(labels) for name, labels in self.choices.items()}
        return ", ".join(f"{name}={value}" for name, value in searched.items())

    @property
    def experts(self) -> list[int]:
        """The numbers of experts that fit the budget."""
        return sorted({self._values(labels)["experts"] for labels in self._fitting})

    def _values(self, labels: Sequence[str]) -> dict[str, Any]:
        """The values of a combination of labels, with `"auto"` and defaults replaced."""
        values = {
            name: values[label]
            for (name, values), label in zip(self.choices.items(), labels, strict=True)
        }
        if values["experts"] == "auto":
            values["experts"] = self._auto_experts(values)
        several = values["experts"] > 1
        values["num_layers"] = values["num_layers"] or NUM_LAYERS[several]
        if several:  # whose places have features of their own
            values["num_frequencies"] = values["encoding_base"] = None
            return values
        if values["num_frequencies"] is None:
            values["num_frequencies"] = self._default_encoding.num_frequencies
        if values["encoding_base"] is None:
            values["encoding_base"] = self._default_encoding.base
        return values

    def _auto_experts(self, values: dict[str, Any]) -> int:
        """The number of experts that `"auto"` stands for in a combination."""
        of_one = ("hidden_size", "num_frequencies", "encoding_base")
        if any(values[name] is not None for name in of_one):
            return 1
        available = self.max_bytes - self._bytes_beside_predictor({**values, "experts": 2})
        config = {**self.arguments, **values, "block_length": self.blocks.block_length}
        config |= {"num_bytes": available, "num_blocks": self.blocks.num_blocks}
        return auto_experts(**checks.accepted(auto_experts, config))

    def _config(self, values: dict[str, Any]) -> dict[str, Any]:
        """All arguments that the functions of `predictor.size` take, and others."""
        several = values["experts"] > 1
        return {
            **self.arguments,
            **values,
            "block_length": self.blocks.block_length,
            "features": 2 * (NUM_FREQUENCIES if several else 3 * values["num_frequencies"]),
        }

    def _bytes_beside_predictor(self, values: dict[str, Any]) -> float:
        """The bytes of layer scales and permutation."""
        normalize = self.arguments.get("normalize", "auto")
        if normalize == "auto":
            normalize = "layer" if values["experts"] > 1 else None
        scales = 0 if normalize is None else len(self.blocks.kernels)
        permutation = values["permutation"]
        if isinstance(permutation, Permutation):
            bits = permutation.bits
        else:
            bits = sum(permutation_bits(grid, permutation) for grid in self.blocks.grids)
        return 4 * scales + bits / 8

    def num_bytes(self, values: dict) -> float:
        """The bytes of a representation, as `report.SummaryTable` counts them.

        Args:
            values: the return value of `declare`.
        """
        arguments = checks.accepted(predictor_bytes, self._config(values))
        return predictor_bytes(**arguments) + self._bytes_beside_predictor(values)

    def _min_bytes(self, values: dict[str, Any]) -> float:
        return self.num_bytes({**values, "hidden_size": values["hidden_size"] or MIN_WIDTH})

    def declare(self, hp: Any) -> dict:
        """Declares the hyperparameters of this space and reads their values.

        Args:
            hp: `keras_tuner.HyperParameters`; missing hyperparameters are added with their
                defaults.

        Returns:
            A dict from the names in `choices` to values: for `experts` the number of them, and
            `None` for `num_frequencies` and `encoding_base` of several experts.

        Raises:
            ValueError: if `hp` belongs to another search space.
        """
        # Stored with every trial, because the other values are only valid in this space.
        space = hp.Fixed("space", str(self))
        if space != str(self):
            raise ValueError(
                "The directory contains trials of another search space: continue with that one, or "
                "pass another project_name or overwrite=True. "
                f"Expected: {space}. Received: {self}"
            )
        values = self._values(self._choose(hp, list(self.choices), self._fitting))
        if values["hidden_size"] is None:
            width = hp.Int("width", self.narrowest, 100, sampling="log", default=100)
            available = self.max_bytes - self._bytes_beside_predictor(values)
            config = {**self._config(values), "num_bytes": available}
            largest = max_width(**checks.accepted(max_width, config))
            values["hidden_size"] = max(MIN_WIDTH, largest * width // 100)
        return values

    def _choose(
        self, hp: Any, names: list[str], combinations: Sequence, condition: str = ""
    ) -> tuple:
        """Declares a choice for each name and returns the chosen combination of labels.

        If every label of a name allows the same combinations of the later names, the choices
        are independent. Otherwise the later choices are declared under conditions, and the
        conditions are part of their names, because keras-tuner (1.4.8) loses values of a name
        that is declared several times.
        """
        if not names:
            return ()
        name, *others = names
        labels = list(dict.fromkeys(one[0] for one in combinations))
        followers: dict[tuple, list[str]] = {}  # combinations of the later names -> labels
        for label in labels:
            rest = tuple(one[1:] for one in combinations if one[0] == label)
            followers.setdefault(rest, []).append(label)
        declared = name + condition
        chosen = hp.Choice(declared, labels) if len(labels) > 1 else labels[0]
        if chosen not in (None, *labels):  # None if a condition does not hold
            raise ValueError(f"{declared} must be one of {labels}. Received: {chosen!r}")
        if len(followers) == 1:
            return (chosen, *self._choose(hp, others, next(iter(followers)), condition))
        combination: tuple = ()
        for rest, group in followers.items():
            group_condition = f"{condition}, {name}={'|'.join(group)}"
            with hp.conditional_scope(declared, group):
                later = self._choose(hp, others, rest, group_condition)
            if chosen in group:
                combination = (chosen, *later)
        return combination


def _labeled(name: str, values: list) -> dict[str, Any]:
    """A dict from labels to values."""
    labeled = {_label(value): value for value in values}
    if not values or len(labeled) < len(values):
        raise ValueError(
            f"{name} must be a value or a list of different values. Received: {name}={values!r}"
        )
    return labeled


def _label(value: Any) -> str:
    if isinstance(value, Permutation):  # kind and sizes do not tell permutations apart
        return f"{value.kind} {value.digest()[:12]}"
    return str(value)
