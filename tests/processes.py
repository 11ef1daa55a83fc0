"""Python processes for tests that kill them or need several, and a classifier for them."""

import os
import pathlib
import subprocess
import sys

import keras

import keras_nern

ROOT = pathlib.Path(keras_nern.__file__).parents[1]


def start(script, *arguments, piped=False, **environment):
    """Starts a script in a new Python process that can import the package and this module.

    With `piped`, its standard input and output are pipes of text.
    """
    paths = [str(ROOT), str(pathlib.Path(__file__).parent)]
    pipe = subprocess.PIPE if piped else None
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        stdin=pipe,
        stdout=pipe,
        text=piped,
    )


def classifier():
    """A small classifier of images `(8, 8, 1)`: 36 kernels in two convolutions, 3 classes."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(5, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
