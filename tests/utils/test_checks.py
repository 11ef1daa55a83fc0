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


def test_one_of_takes_arrays_for_no_choice():
    with pytest.raises(ValueError, match=r"kind must be one of \(0, 1\)\. Received: kind=array"):
        checks.one_of("kind", np.zeros(2), (0, 1))


@pytest.mark.parametrize("value", [0, 0.5, np.float32(1), 1])
def test_share_converts_numbers_between_0_and_1(value):
    assert checks.share("sparsity", value) == float(value)


@pytest.mark.parametrize(
    ("value", "with_one", "allowed"),
    [(1, False, "[0, 1)"), (1.1, True, "[0, 1]"), (-0.1, True, "[0, 1]")]
    + [(value, True, "[0, 1]") for value in (np.nan, "a", None, True, 1j)],
)
def test_share_raises_for_other_values(value, with_one, allowed):
    message = f"sparsity must be a number in {allowed}. Received: sparsity={value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checks.share("sparsity", value, with_one)


def test_flag_takes_bools_only():
    assert checks.flag("pruned", np.bool_(True)) is True
    for value in (1, 0.0, "yes", None, np.ones(1, bool)):
        with pytest.raises(ValueError, match=r"^pruned must be True or False\. Received: pruned="):
            checks.flag("pruned", value)


def test_path_takes_no_numbers(tmp_path):
    checks.path("path", tmp_path)
    checks.path("path", "a.nern")
    for value in (3, None, b"a"):
        with pytest.raises(ValueError, match=r"^path must be a path, .*Received: path="):
            checks.path("path", value)


def test_reals_converts_structures_of_finite_numbers():
    for value in (1, [True, 2], np.float16(1), ((1, 2), (3, 4))):
        found = checks.reals("mean", value)
        assert found.dtype == "float64"
        np.testing.assert_array_equal(found, value)
    for value in ("a", None, np.nan, [1, np.inf], 1j, [[1], [2, 3]], {}):
        with pytest.raises(
            ValueError, match=r"^mean must be finite real numbers\. Received: mean="
        ):
            checks.reals("mean", value)
