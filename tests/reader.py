"""The files and names that examples of the documentation need.

Provides small versions of the files and names that examples use (`classifier.keras`,
`cifar10_resnet20.npz`, `base`, `images`, ...) and limits fits to `STEPS` steps. The code of the
examples runs unchanged.
"""

import functools
import pathlib
import re
import shutil

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
import tensorflow_datasets
from torch_states import torch_state

import keras_nern
import keras_nern.tuner
from keras_nern import compression
from keras_nern.callbacks import EvaluateRebuilt

STEPS = 2  # in either phase
TRIALS = 2  # of a search
IMAGES = 16
KERAS_2 = pathlib.Path(__file__).parent / "made_elsewhere/keras2_depthwise.h5"


def classifier():
    """A small classifier for the images and classes of CIFAR-10.

    Its kernels hold enough weights for two local predictors of the default size.
    """
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(64, 3, strides=4, use_bias=False, name="conv1"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(64, 3, name="conv2"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="head"),
        ]
    )


def data(seed):
    """Images float32 `(n, 32, 32, 3)` and labels int64 `(n,)`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(IMAGES, 32, 32, 3)).astype("float32"), rng.integers(0, 10, IMAGES)


def cifar10():
    """Noise in the format of `keras.datasets.cifar10.load_data`."""
    rng = np.random.default_rng(1)

    def part():
        images = rng.integers(0, 256, (IMAGES, 32, 32, 3)).astype("uint8")
        return images, rng.integers(0, 10, (IMAGES, 1)).astype("uint8")

    return part(), part()


def tfds_load(name, split, batch_size, as_supervised, **arguments):
    """Noise in the format of `tensorflow_datasets.load("cifar10", ...)` in one batch."""
    assert (name, batch_size, as_supervised) == ("cifar10", -1, True)
    images, labels = cifar10()[0]
    return tf.constant(images), tf.constant(labels[:, 0], "int64")


def shorten_fits(monkeypatch):
    """Limits fits to `STEPS` eager steps and searches to `TRIALS` trials; prevents downloads.

    Periodic callbacks act every `STEPS` steps.
    """
    fit, compile_ = keras_nern.NeRNModel.fit, keras_nern.NeRNModel.compile
    init_callback, init_oracle = EvaluateRebuilt.__init__, keras_tuner.Oracle.__init__

    def short_fit(self, x=None, *args, epochs=1, steps_per_epoch=None, **kwargs):
        if steps_per_epoch is not None or isinstance(x, keras.utils.PyDataset):
            steps_per_epoch = STEPS
        return fit(self, x, *args, epochs=1, steps_per_epoch=steps_per_epoch, **kwargs)

    @functools.wraps(compile_)  # whose signature searches read
    def short_compile(self, optimizer="auto", *, reconstruction_steps=STEPS, **kwargs):
        steps = 0 if self.residual else min(STEPS, reconstruction_steps)
        if self.experts > 1 and kwargs.get("curvature_steps", "auto") == "auto":
            kwargs["curvature_steps"] = STEPS
        kwargs.setdefault("run_eagerly", True)
        return compile_(self, optimizer, reconstruction_steps=steps, **kwargs)

    def frequent(self, *args, frequency=STEPS, **kwargs):
        init_callback(self, *args, frequency=min(STEPS, frequency), **kwargs)

    def few_trials(self, *args, max_trials=TRIALS, **kwargs):
        init_oracle(self, *args, max_trials=min(TRIALS, max_trials), **kwargs)

    monkeypatch.setattr(keras_nern.NeRNModel, "fit", short_fit)
    monkeypatch.setattr(keras_nern.NeRNModel, "compile", short_compile)
    monkeypatch.setattr(EvaluateRebuilt, "__init__", frequent)
    monkeypatch.setattr(keras_tuner.Oracle, "__init__", few_trials)
    monkeypatch.setattr(compression, "TRIALS", STEPS)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", cifar10)
    monkeypatch.setattr(tensorflow_datasets, "load", tfds_load)


def searched(base, images):
    """A tuner after its search."""
    hypermodel = keras_nern.tuner.NeRNHyperModel(base, max_bytes=10_000)
    objective = keras_tuner.Objective("val_agreement", "max")
    tuner = keras_tuner.RandomSearch(hypermodel, objective, max_trials=1, directory="searches")
    tuner.search(images, epochs=1, validation_data=images)
    return tuner


def namespace(code):
    """The names that `code` uses; writes the files that it reads to the working directory."""

    def has(name):
        return re.search(rf"\b{re.escape(name)}\b", code) is not None

    names = {
        "keras": keras,
        "keras_nern": keras_nern,
        "np": np,
        "pathlib": pathlib,
        "re": re,
        "tf": tf,
    }
    names["images"], names["labels"] = data(seed=0)
    names["others"], _ = data(seed=2)  # images that no fit sees
    base = classifier()
    if has("base") or has("model") or has("nern"):
        names["base"] = names["model"] = base
    if has("nern"):
        names["nern"] = keras_nern.NeRNModel(base, hidden_size=16)
    if has("dataset"):
        images = tf.data.Dataset.from_tensor_slices(names["images"])
        names["dataset"] = images.batch(8, drop_remainder=True)
    if has("tuner") and "tuner =" not in code and "keras_tuner" not in code:
        names["tuner"] = searched(base, names["images"])
    if has("classifier.keras"):
        base.save("classifier.keras")
    if has("old.h5"):
        shutil.copy(KERAS_2, "old.h5")
    if has("cifar10_resnet20.npz"):
        state = torch_state(keras_nern.models.resnet_cifar(depth=20))
        np.savez("cifar10_resnet20.npz", **state)
    return names
