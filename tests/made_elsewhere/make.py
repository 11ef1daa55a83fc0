"""Makes the files of this folder, as a user of an older Keras version has them.

    python -m venv venv && venv/bin/pip install "tensorflow==2.15.1"   # Keras 2.15
    venv/bin/python tests/made_elsewhere/make.py keras2.h5
    venv/bin/python tests/made_elsewhere/make.py keras2_depthwise.h5
    python -m venv venv && venv/bin/pip install "tensorflow==2.18.0" "keras==3.13.0"
    venv/bin/python tests/made_elsewhere/make.py keras3.keras

Writes the classifier to this folder and, as NAME.npz, two images with the outputs that this Keras
version computes for them.
"""

import pathlib
import sys

import keras
import numpy as np

layers = keras.layers
folder, name = pathlib.Path(__file__).parent, sys.argv[1]

inputs = keras.Input((16, 16, 3), name="image")
x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
x = layers.BatchNormalization(name="stem_bn")(x)
x = layers.Activation("relu", name="stem_relu")(x)
if name == "keras2.h5":
    y = layers.Conv2D(8, (1, 7), padding="same", name="oblong")(x)
else:  # Keras 3 needs custom_objects to read those of Keras 2, see docs/troubleshooting.md
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.SeparableConv2D(8, 3, padding="same", name="separable")(y)
x = layers.Add(name="add")([x, y])
x = layers.Conv2D(12, 5, padding="same", groups=2, activation="relu", name="grouped")(x)
x = layers.GlobalAveragePooling2D(name="pool")(x)
model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="classes")(x), name="made")

rng = np.random.default_rng(7)
model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.weights])
bn = model.get_layer("stem_bn")
bn.set_weights([abs(w) + 0.1 for w in bn.get_weights()])  # variances are positive
images = rng.normal(size=(2, 16, 16, 3)).astype("float32")
model.save(folder / name)
np.savez(folder / f"{name}.npz", images=images, outputs=model.predict(images, verbose=0))
print(keras.__version__)
