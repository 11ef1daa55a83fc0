"""Runs the steps of fits in this folder eagerly, unless a test is marked `traced`.

A fit of a few steps takes seconds to trace and milliseconds to run.
"""

import functools

import pytest

import keras_nern


@pytest.fixture(autouse=True)
def _eager(request, monkeypatch):
    if request.node.get_closest_marker("traced"):
        return
    compile_ = keras_nern.NeRNModel.compile

    @functools.wraps(compile_)
    def eager(self, *args, **kwargs):
        if not kwargs.get("jit_compile"):
            kwargs.setdefault("run_eagerly", True)
        compile_(self, *args, **kwargs)

    monkeypatch.setattr(keras_nern.NeRNModel, "compile", eager)
