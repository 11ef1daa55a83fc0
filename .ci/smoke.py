"""A smoke test of the installed package: fit, rebuild, save, load, and the trained networks.

`make packaging` runs it in environments without the packages of the extras.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

import keras_nern

installed = pathlib.Path(keras_nern.__file__).parent
assert pathlib.Path(sys.prefix) in installed.parents, f"not the wheel: {installed}"
assert (installed / "py.typed").exists()
print("keras_nern", keras_nern.__version__, "tensorflow", tf.__version__, end=" ")
print("keras", keras.__version__, "numpy", np.__version__)

keras.utils.set_random_seed(0)
base = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.Conv2D(6, 1),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5),
    ]
)
images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")

nern = keras_nern.NeRNModel(base, hidden_size=32, permutation="cross_filter", view="block")
nern.compile(reconstruction_steps=300)
history = nern.fit(images, epochs=1, verbose=0)
error = nern.relative_error()
assert error < 0.1, error  # kernels of zeros have an error of 1
rebuilt = nern.reconstruct()
np.testing.assert_allclose(rebuilt.predict(images, verbose=0), nern(images), rtol=1e-4, atol=1e-4)
small = keras_nern.compress(nern, bits=6)
assert small.summary_table().representation_bytes < nern.summary_table().representation_bytes

with tempfile.TemporaryDirectory() as folder:
    nern.save(f"{folder}/nern.keras")
    loaded = keras.models.load_model(f"{folder}/nern.keras")
    np.testing.assert_array_equal(loaded(images), nern(images))
    loaded.fit(keras_nern.NoiseDataset(base, steps=2), verbose=0)
    nern.kernel_permutation().save(f"{folder}/order.npz")
    assert keras_nern.Permutation.load(f"{folder}/order.npz") == nern.kernel_permutation()

assert keras_nern.models.list_models()
for name in keras_nern.models.list_models():
    logits = keras_nern.models.load(name).predict(np.zeros((1, 32, 32, 3)), verbose=0)
    assert np.isfinite(logits).all()
print(f"works: relative error {float(error):.4f}")
