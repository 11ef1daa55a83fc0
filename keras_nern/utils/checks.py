"""What an argument may be, and the errors for what it may not.

An error says what was expected, what was received, and the argument's name, so that it is
understood where it is raised, far from the line that passed the argument.
"""

import numbers
from collections.abc import Sequence


def one_of(name: str, value: object, choices: Sequence) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {name}={value!r}")


def integer(name: str, value: object, least: int) -> int:
    """An integer of any type, NumPy's too, as Python's.

    Raises:
        ValueError: where it is none, or below `least`.
    """
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"{name} must be an integer of at least {least}. Received: {name}={value!r}"
        )
    return int(value)
