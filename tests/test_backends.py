"""A representation trained on TensorFlow gives the same numbers on other Keras backends."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from other_backend import local_results, residual_results, results
from processes import ROOT

import keras_nern

SCRIPT = pathlib.Path(__file__).with_name("other_backend.py")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_gives_the_results_of_tensorflow(backend, base, images, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    nern = keras_nern.NeRNModel(base, 16, permutation="cross_filter", normalize="layer")
    nern.compile(reconstruction_steps=20)
    nern.fit(steps_per_epoch=20, verbose=0)
    nern.save(tmp_path / "nern.keras")
    small = keras_nern.compress(nern, bits=4)
    small.save(tmp_path / "small.keras")
    local = keras_nern.NeRNModel(
        base, 12, num_layers=3, permutation="cross_filter", view="block", experts=4
    )
    local.save(tmp_path / "local.keras")
    local.export(tmp_path / "local.nern", precision="int7")
    integers = keras_nern.NeRNModel(base, size=0)
    residual = keras_nern.compress(integers, max_bytes="10 kB", data=images, verbose=0)
    residual.export(tmp_path / "residual.nern")
    np.save(tmp_path / "images.npy", images)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, env=environment)
    expected = results(nern, small, images)
    expected |= local_results(local, tmp_path / "local.nern", images)
    exact = residual_results(tmp_path / "residual.nern")
    assert any(one.std() > 0 for one in exact.values())
    with np.load(tmp_path / f"{backend}.npz") as received:
        assert set(received.files) == set(expected) | set(exact)
        for name, value in exact.items():
            np.testing.assert_array_equal(received[name], value, err_msg=name, strict=True)
        for name, value in expected.items():
            np.testing.assert_allclose(
                received[name], value, rtol=1e-4, atol=1e-5, err_msg=name, strict=name != "bits"
            )
    errors = json.loads((tmp_path / f"{backend}.json").read_text())
    for method in ("fit", "evaluate", "predict", "gather_curvature"):
        assert errors[method] == (
            f"{method} needs KERAS_BACKEND=tensorflow; reconstruct() returns the rebuilt "
            f"classifier on every backend. Received: KERAS_BACKEND={backend}"
        )
