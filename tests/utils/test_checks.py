import re

import numpy as np
import pytest

from keras_nern.utils import checks


def test_one_of_raises_for_another_value():
    checks.one_of("kind", "b", ("a", "b"))
    checks.one_of("kind", None, (None, "b"))
    with pytest.raises(ValueError, match=r"^kind must be one of \('a', 'b'\)\. Received: kind='c'"):
        checks.one_of("kind", "c", ("a", "b"))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integer_converts_integers_of_any_type(value):
    found = checks.integer("steps", value, minimum=3)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [2, -1, 3.0, np.float32(3), "3", None, True])
def test_integer_raises_for_other_and_for_smaller_values(value):
    message = rf"^steps must be an integer of at least 3\. Received: steps={re.escape(repr(value))}"
    with pytest.raises(ValueError, match=message):
        checks.integer("steps", value, minimum=3)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int8(2)])
def test_number_converts_numbers_of_any_type(value):
    found = checks.number("rate", value, minimum=2)
    assert found == 2.0
    assert type(found) is float


def test_number_has_no_limits_by_default():
    assert checks.number("rate", -1e300) == -1e300
    assert checks.number("rate", 1e-300, positive=True) == 1e-300


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        ("1", {}, "a finite number"),
        (None, {}, "a finite number"),
        (True, {}, "a finite number"),
        (1j, {}, "a finite number"),
        (np.nan, {}, "a finite number"),
        (-np.inf, {}, "a finite number"),
        (np.inf, {"minimum": 0}, "a finite number of at least 0"),
        (0.4, {"minimum": 0.5}, "a finite number of at least 0.5"),
        (0, {"positive": True}, "a finite number above 0"),
    ],
)
def test_number_raises_for_other_values(value, limits, expected):
    message = re.escape(f"rate must be {expected}. Received: rate={value!r}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        checks.number("rate", value, **limits)


def test_accepted_selects_the_arguments_of_a_function():
    def function(a, *, b=0, **kwargs):
        pass

    assert checks.accepted(function, {"b": 1, "c": 2, "a": 3}) == {"b": 1, "a": 3}
