"""checks: arguments of the right kind come back, others are named."""

import numpy as np
import pytest

from keras_nern.utils import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_any_type_come_back_as_pythons(value):
    found = checks.integer("steps", value, minimum=3)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [2, -1, 3.0, np.float32(3), "3", None])
def test_refuses_what_is_no_integer_or_too_small(value):
    with pytest.raises(ValueError, match=r"^steps must be an integer of at least 3\. Received"):
        checks.integer("steps", value, minimum=3)


def test_one_of_names_the_choices_and_what_came():
    checks.one_of("kind", "b", ("a", "b"))
    with pytest.raises(ValueError, match=r"^kind must be one of \('a', 'b'\)\. Received: kind='c'"):
        checks.one_of("kind", "c", ("a", "b"))
