"""A reader of the documentation: who has what its examples take for granted.

`classifier.keras`, `cifar10_resnet20.npz` and a few small arrays stand for the reader's own
network and images, and no fit runs for longer than `STEPS` steps. The code itself is the
documentation's.
"""

import pathlib
import re

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from torch_states import torch_state

import keras_nern
import keras_nern.tuner
from keras_nern.callbacks import EvaluateRebuilt
from keras_nern.training.fit import RepresentationTrainer
from keras_nern.training.settings import RepresentationCompiler

STEPS = 2  # of either phase
TRIALS = 2  # of a search
IMAGES = 16


def classifier():
    """A small classifier of CIFAR-10's images and classes."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(4, 3, strides=4, use_bias=False, name="conv1"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(6, 3, name="conv2"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="head"),
        ]
    )


def data(seed):
    """Images float32 `(n, 32, 32, 3)` and labels int64 `(n,)`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(IMAGES, 32, 32, 3)).astype("float32"), rng.integers(0, 10, IMAGES)


def cifar10():
    """What `keras.datasets.cifar10.load_data` gives, but few images, of noise."""
    rng = np.random.default_rng(1)

    def part():
        images = rng.integers(0, 256, (IMAGES, 32, 32, 3)).astype("uint8")
        return images, rng.integers(0, 10, (IMAGES, 1)).astype("uint8")

    return part(), part()


def hurry(monkeypatch):
    """Lets no fit take longer than `STEPS` steps, nor wait for a graph; downloads nothing.

    What happens every so many steps happens every `STEPS`; a search ends after `TRIALS`.
    """
    fit, compile_ = RepresentationTrainer.fit, RepresentationCompiler.compile

    def short_fit(self, x=None, *args, epochs=1, steps_per_epoch=None, **kwargs):
        if steps_per_epoch is not None or isinstance(x, keras.utils.PyDataset):
            steps_per_epoch = STEPS
        return fit(self, x, *args, epochs=1, steps_per_epoch=steps_per_epoch, **kwargs)

    def short_compile(self, *args, reconstruction_steps=STEPS, **kwargs):
        steps = min(STEPS, reconstruction_steps)
        kwargs.setdefault("run_eagerly", True)
        return compile_(self, *args, reconstruction_steps=steps, **kwargs)

    def often(self, *args, frequency=STEPS, **kwargs):
        init(self, *args, frequency=min(STEPS, frequency), **kwargs)

    def few_trials(self, *args, max_trials=TRIALS, **kwargs):
        start(self, *args, max_trials=min(TRIALS, max_trials), **kwargs)

    init, start = EvaluateRebuilt.__init__, keras_tuner.Oracle.__init__
    monkeypatch.setattr(keras_tuner.Oracle, "__init__", few_trials)
    monkeypatch.setattr(EvaluateRebuilt, "__init__", often)
    monkeypatch.setattr(RepresentationTrainer, "fit", short_fit)
    monkeypatch.setattr(RepresentationCompiler, "compile", short_compile)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", cifar10)


def searched(base, images):
    """A tuner after its search."""
    hypermodel = keras_nern.tuner.NeRNHyperModel(base, max_bytes=10_000)
    objective = keras_tuner.Objective("val_agreement", "max")
    tuner = keras_tuner.RandomSearch(hypermodel, objective, max_trials=1, directory="searches")
    tuner.search(images, epochs=1, validation_data=images)
    return tuner


def namespace(code):
    """Those of the names which examples take for granted that `code` has in it.

    Files go to the working directory.
    """

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
    if has("cifar10_resnet20.npz"):
        state = torch_state(keras_nern.models.resnet_cifar(depth=20))
        np.savez("cifar10_resnet20.npz", **state)
    return names
