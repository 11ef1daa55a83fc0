"""Config round trips of the registered objects, and of a model with every argument."""

import keras
import numpy as np
import pytest
from roundtrips import assert_config_round_trip, assert_saves_inside_a_model

import keras_nern
from keras_nern.training.optimizer import PlannedCosineDecay

OBJECTS = {
    "encoding": lambda: keras_nern.PositionalEncoding(7, 1.25),
    "predictor": lambda: keras_nern.KernelPredictor(
        6, 3, 5, keras_nern.PositionalEncoding(2), bits=4, pruned=True
    ),
    "all kernels": keras_nern.AllKernels,
    "uniform sampling": lambda: keras_nern.UniformSampling(17),
    "magnitude sampling": lambda: keras_nern.MagnitudeSampling(17, 0.75),
    "schedule": lambda: PlannedCosineDecay(0.5, 7),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object_is_rebuilt_from_its_config(name):
    assert_config_round_trip(OBJECTS[name]())


@pytest.mark.parametrize("name", ["encoding", "predictor"])
def test_layer_is_saved_inside_a_model(name, tmp_path):
    coordinates = np.random.default_rng(0).integers(0, 50, (4, 3)).astype("int32")
    assert_saves_inside_a_model(OBJECTS[name](), coordinates, tmp_path)


def test_model_config_contains_every_argument(base):
    arguments = {
        "hidden_size": 6,
        "num_layers": 3,
        "permutation": "in_filter",
        "normalize": "layer",
        "metric": "cosine",
        "permutation_method": "two_opt",
        "output_activation": "softmax",
        "feature_maps": "both",
        "view": "block",
        "block_size": 2,
        "include_dense": True,
        "name": "mine",
    }
    encoding = keras_nern.PositionalEncoding(3, 1.5)
    nern = keras_nern.NeRNModel(base, encoding=encoding, **arguments)
    copy = assert_config_round_trip(nern)
    assert {name: getattr(copy, name) for name in arguments} == arguments
    assert (copy.encoding.num_frequencies, copy.encoding.base) == (3, 1.5)
    assert copy.base is not base
    assert isinstance(copy.optimizer, keras.optimizers.Muon)
    small = keras_nern.compress(copy, bits=5)
    assert {name: getattr(small, name) for name in arguments} == arguments
