import math
import sys

import pytest

from keras_nern.utils.optional import require


def test_returns_the_module():
    assert require("math", "compact") is math


def test_raises_for_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    message = r'^safetensors is not installed: run `pip install "keras-nern\[compact\]"`\. Received'
    with pytest.raises(ImportError, match=message):
        require("safetensors.numpy", "compact")
