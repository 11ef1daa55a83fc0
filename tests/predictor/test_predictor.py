import keras
import numpy as np
import pytest

from keras_nern import KernelPredictor, PositionalEncoding
from keras_nern.predictor.predictor import OUTPUT_LAYER


def _slow_forward(predictor, coordinates):
    x = np.asarray(PositionalEncoding()(coordinates), "float64")
    *hidden, output = [*predictor.hidden, predictor.output_layer]
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return x @ output.kernel.numpy() + output.bias.numpy()


@pytest.mark.parametrize("blocks", [2, 5])
def test_matches_the_formula(blocks):
    predictor = KernelPredictor(hidden_size=7, num_layers=blocks, block_length=9)
    coordinates = np.random.default_rng(0).integers(0, 60, (11, 3))
    predicted = predictor(coordinates).numpy()
    assert predicted.shape == (11, 9)
    np.testing.assert_allclose(predicted, _slow_forward(predictor, coordinates), atol=1e-5)


def test_parameter_count_of_the_paper():
    predictor = KernelPredictor(hidden_size=160)
    predictor.build((None, 3))
    assert predictor.count_params() == 241 * 160 + 3 * 161 * 160 + 161 * 9


def test_stays_in_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        predictor = KernelPredictor(hidden_size=4)
        assert predictor(np.zeros((1, 3), "int32")).dtype == "float32"
        assert {weight.dtype for weight in predictor.weights} == {"float32"}
        assert all(layer.compute_dtype == "float32" for layer in predictor.hidden)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_takes_any_layer_as_encoding():
    predictor = KernelPredictor(hidden_size=4, encoding=keras.layers.Rescaling(0.1))
    predictor.build((None, 3))
    assert predictor.hidden[0].kernel.shape == (3, 4)
    assert predictor.output_layer.name == OUTPUT_LAYER


class _Plain(keras.layers.Layer):
    """An encoding as a user writes it: `call`, and a sublayer that builds itself."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(5)

    def call(self, inputs):
        return self.dense(keras.ops.cast(inputs, "float32"))


def test_takes_an_encoding_that_only_has_a_call():
    predictor = KernelPredictor(hidden_size=4, encoding=_Plain())
    predictor.build((None, 3))
    assert predictor.hidden[0].kernel.shape == (5, 4)
    assert len(predictor.weights) == 2 + 2 * 5


def test_takes_integers_of_numpy():
    predictor = KernelPredictor(hidden_size=np.int64(4), num_layers=np.int32(3))
    assert predictor(np.zeros((1, 3), "int32")).shape == (1, 9)
    assert type(predictor.get_config()["hidden_size"]) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1. .*hidden_size=0"),
        ({"hidden_size": 2.5}, "hidden_size must be an integer of at least 1. .*hidden_size=2.5"),
        ({"hidden_size": "wide"}, "hidden_size must be an integer .*hidden_size='wide'"),
        ({"hidden_size": 4, "num_layers": 1}, "num_layers must be .* at least 2.*num_layers=1"),
        ({"hidden_size": 4, "block_length": 0}, "block_length must be .* at least 1"),
        ({"hidden_size": 4, "encoding": "sines"}, "encoding must be a Keras layer .*'sines'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        KernelPredictor(**arguments)
