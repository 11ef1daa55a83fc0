import functools

import keras
import pytest
from artifact_files import classifier

import keras_nern


@pytest.fixture(autouse=True)
def _seeded():
    """Replaces the fixture of tests/conftest.py: no test here depends on the names of layers."""
    keras.utils.set_random_seed(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "classifier.nern"


@pytest.fixture(scope="module")
def nern():
    """A representation that no test changes."""
    keras.utils.set_random_seed(0)
    return keras_nern.NeRNModel(classifier(), hidden_size=16, permutation="in_filter")


@pytest.fixture(scope="module")
def compressed(nern):
    """A cached function from the arguments of `compress` to its result for `nern`."""
    return functools.cache(functools.partial(keras_nern.compress, nern))
