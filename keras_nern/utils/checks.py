"""Argument checks, whose errors name the argument, the allowed values and the received one."""

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np


def one_of(name: str, value: object, choices: Collection) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if not any(value is choice or _is_equal(value, choice) for choice in choices):
        raise ValueError(f"{name} must be one of {choices}. Received: {name}={value!r}")


def _is_equal(value: object, choice: object) -> bool:
    equal = value == choice
    return isinstance(equal, (bool, np.bool_)) and bool(equal)  # arrays compare by entry


def integer(name: str, value: Any, minimum: int) -> int:
    """Converts an integer of any type, such as NumPy's, to `int`.

    Args:
        name: the argument's name, for the error.
        value: the argument.
        minimum: smallest value allowed.

    Returns:
        `value` as an `int`.

    Raises:
        ValueError: if `value` is a bool, is not an integer, or is below `minimum`.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise ValueError(
            f"{name} must be an integer of at least {minimum}. Received: {name}={value!r}"
        )
    return int(value)


def number(name: str, value: Any, minimum: float = -math.inf, positive: bool = False) -> float:
    """Converts a finite real number of any type to `float`.

    Args:
        name: the argument's name, for the error.
        value: the argument.
        minimum: smallest value allowed. Defaults to no limit.
        positive: whether `value` must be above 0. Defaults to `False`.

    Returns:
        `value` as a `float`.

    Raises:
        ValueError: if `value` is not a number, not finite or too small.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if (
        not is_number
        or not -math.inf < value < math.inf
        or value < minimum
        or (positive and value <= 0)
    ):
        bound = " above 0" if positive else f" of at least {minimum:g}" * (minimum > -math.inf)
        raise ValueError(f"{name} must be a finite number{bound}. Received: {name}={value!r}")
    return float(value)


def accepted(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the entries of `arguments` that are parameters of `function`."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}
