"""Argument checks, whose errors name the argument, the allowed values and the received one."""

import inspect
import math
import numbers
import os
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


def share(name: str, value: Any, with_one: bool = True) -> float:
    """Converts a share between 0 and 1 of any type to `float`.

    Args:
        name: the argument's name, for the error.
        value: the argument.
        with_one: whether 1 is allowed. Defaults to `True`.

    Raises:
        ValueError: if `value` is not a number in [0, 1], or [0, 1).
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1 or (value == 1 and not with_one):
        allowed = "[0, 1]" if with_one else "[0, 1)"
        raise ValueError(f"{name} must be a number in {allowed}. Received: {name}={value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Converts a bool, or NumPy's, to `bool`; raises a ValueError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False. Received: {name}={value!r}")
    return bool(value)


def instance(name: str, value: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Raises a ValueError unless `value` is of one of `kinds`, which `what` names."""
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be {what}. Received: {name}={value!r}")


def path(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is a path; `open` also takes numbers."""
    instance(name, value, (str, os.PathLike), "a path, a str or an os.PathLike")


def reals(name: str, value: Any) -> np.ndarray:
    """Converts a number or a structure of numbers to a float64 array.

    Args:
        name: the argument's name, for the error.
        value: the argument.

    Raises:
        ValueError: if `value` is not an array of finite real numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite real numbers. Received: {name}={value!r}")
    return array.astype("float64")


def accepted(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the entries of `arguments` that are parameters of `function`."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}
