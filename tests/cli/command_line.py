"""Runs of the command line in this process."""

import contextlib
import io
import json

import keras
import numpy as np

from keras_nern.cli.__main__ import main


def run(*arguments):
    """Returns the exit code and what was printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in arguments])
    return code, out.getvalue(), err.getvalue()


def results(*arguments):
    """Returns the JSON document of a run that succeeds and prints nothing else on stdout."""
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def fit_command(folder, output, *more):
    """A quick fit of the folder's classifier on its images."""
    small = ("--hidden-size", 8, "--reconstruction-steps", 10, "--quiet")
    images = ("--data", folder / "images.npz", "--epochs", 2, "--batch-size", 4)
    return ("fit", folder / "base.keras", folder / output, *small, *images, *more)


def kernels(path):
    return keras.models.load_model(path).predict_kernels()


def assert_same(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], atol=1e-6)
