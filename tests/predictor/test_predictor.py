import keras
import numpy as np
import pytest

from keras_nern import KernelPredictor, PositionalEncoding
from keras_nern.predictor.predictor import OUTPUT_LAYER


def _slow_forward(predictor, coordinates):
    x = np.asarray(PositionalEncoding()(coordinates), "float64")
    for layer in predictor.hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return x @ predictor.output_layer.kernel.numpy() + predictor.output_layer.bias.numpy()


@pytest.mark.parametrize("num_layers", [2, 5])
def test_matches_the_formula(num_layers):
    predictor = KernelPredictor(hidden_size=7, num_layers=num_layers, block_length=9)
    coordinates = np.random.default_rng(0).integers(0, 60, (11, 3))
    predicted = predictor(coordinates).numpy()
    assert predicted.shape == (11, 9)
    np.testing.assert_allclose(predicted, _slow_forward(predictor, coordinates), atol=1e-5)
    outputs, means = predictor.predict_with_means(coordinates)
    np.testing.assert_array_equal(outputs, predicted)
    features = PositionalEncoding()(coordinates).numpy()
    np.testing.assert_allclose(means[0], features.mean(axis=0), atol=1e-6)
    assert len(means) == num_layers


def test_parameter_count_of_the_paper():
    predictor = KernelPredictor(hidden_size=160)
    predictor.build((None, 3))
    count = 241 * 160 + 3 * 161 * 160 + 161 * 9
    assert predictor.count_params() == predictor.num_parameters == count


def test_stays_in_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        predictor = KernelPredictor(hidden_size=4)
        assert predictor(np.zeros((1, 3), "int32")).dtype == "float32"
        assert {weight.dtype for weight in predictor.weights} == {"float32"}
        assert all(layer.compute_dtype == "float32" for layer in predictor.hidden)
    finally:
        keras.mixed_precision.set_global_policy("float32")


class _Plain(keras.layers.Layer):
    """An encoding as users write one: only `call`, and a sublayer that builds itself."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(5)

    def call(self, inputs):
        return self.dense(keras.ops.cast(inputs, "float32"))


@pytest.mark.parametrize(
    ("encoding", "features", "weights"),
    [(lambda: keras.layers.Rescaling(0.1), 3, 0), (_Plain, 5, 4 * 5)],
)
def test_accepts_any_layer_as_encoding(encoding, features, weights):
    predictor = KernelPredictor(hidden_size=4, num_layers=2, encoding=encoding())
    predictor.build((None, 3))
    assert predictor.hidden[0].kernel.shape == (features, 4)
    dense = (features + 1) * 4 + 5 * 9
    assert predictor.num_parameters == dense + weights
    assert predictor.num_bytes == 4 * (dense + weights)


def test_accepts_numpy_integers():
    predictor = KernelPredictor(hidden_size=np.int64(4), num_layers=np.int32(3))
    assert predictor(np.zeros((1, 3), "int32")).shape == (1, 9)
    assert type(predictor.get_config()["hidden_size"]) is int
    assert predictor.output_layer.name == OUTPUT_LAYER


def test_from_config_restores_every_argument():
    encoding = PositionalEncoding(5, base=0.9)
    predictor = KernelPredictor(4, 3, 25, encoding, bits=3, pruned=True, name="mine")
    copy = KernelPredictor.from_config(predictor.get_config())
    assert copy.get_config() == predictor.get_config()
    assert (copy.hidden_size, copy.num_layers, copy.block_length) == (4, 3, 25)
    assert (copy.encoding.num_frequencies, copy.encoding.base) == (5, 0.9)
    assert (copy.bits, copy.pruned, copy.name) == (3, True, "mine")
    assert KernelPredictor.from_config({"hidden_size": 4, "encoding": encoding}).bits is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1. .*hidden_size=0"),
        ({"hidden_size": 2.5}, "hidden_size must be an integer of at least 1. .*hidden_size=2.5"),
        ({"hidden_size": "wide"}, "hidden_size must be an integer .*hidden_size='wide'"),
        ({"hidden_size": 4, "num_layers": 1}, "num_layers must be .* at least 2.*num_layers=1"),
        ({"hidden_size": 4, "block_length": 0}, "block_length must be .* at least 1"),
        ({"hidden_size": 4, "encoding": "sines"}, "encoding must be a Keras layer .*'sines'"),
        ({"hidden_size": 4, "bits": 9}, "bits must be an integer from 2 to 8. Received: bits=9"),
    ],
)
def test_raises_for_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KernelPredictor(**arguments)
