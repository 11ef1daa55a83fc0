import keras
import numpy as np
import pytest
from roundtrips import assert_config_round_trip, assert_saves_inside_a_model

import keras_nern

OBJECTS = {
    "encoding": lambda: keras_nern.PositionalEncoding(7, 1.25),
    "predictor": lambda: keras_nern.KernelPredictor(
        6, 3, 5, keras_nern.PositionalEncoding(2), activation="tanh"
    ),
    "all": keras_nern.AllKernels,
    "uniform": lambda: keras_nern.UniformSampling(17),
    "magnitude": lambda: keras_nern.MagnitudeSampling(17, 0.75),
    "schedule": lambda: keras_nern.training.optimizer.PlannedCosineDecay(0.5, 7),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_config(name):
    assert_config_round_trip(OBJECTS[name]())


@pytest.mark.parametrize("name", ["encoding", "predictor"])
def test_layer_inside_a_saved_model(name, tmp_path):
    coordinates = np.random.default_rng(0).integers(0, 50, (4, 3)).astype("int32")
    assert_saves_inside_a_model(OBJECTS[name](), coordinates, tmp_path)


def test_model_config_keeps_every_argument(base):
    nern = keras_nern.NeRNModel(
        base,
        hidden_size=6,
        num_layers=3,
        permutation="in_filter",
        encoding=keras_nern.PositionalEncoding(3, 1.5),
        normalize="layer",
        metric="cosine",
        permutation_method="two_opt",
        output_activation="softmax",
        name="mine",
    )
    copy = assert_config_round_trip(nern)
    assert (copy.hidden_size, copy.num_layers, copy.name) == (6, 3, "mine")
    assert (copy.permutation, copy.normalize, copy.metric) == ("in_filter", "layer", "cosine")
    assert copy.permutation_method == "two_opt"
    assert copy.output_activation == "softmax"
    assert keras_nern.compress(copy, bits=5).output_activation == "softmax"
    assert (copy.encoding.num_frequencies, copy.encoding.base) == (3, 1.5)
    assert copy.base is not base
    assert isinstance(copy.optimizer, keras.optimizers.Muon)
