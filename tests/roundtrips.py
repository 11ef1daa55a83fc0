"""One harness for what every registered object must survive."""

import keras


def assert_config_round_trip(obj):
    """`obj` can be rebuilt from its config, and the copy has the same config."""
    config = keras.saving.serialize_keras_object(obj)
    assert config["registered_name"].startswith("keras_nern>"), config["registered_name"]
    # Keras changes the config it reads: give it one of its own.
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(obj))
    assert type(copy) is type(obj)
    assert keras.saving.serialize_keras_object(copy) == config
    return copy


def assert_saves_inside_a_model(layer, inputs, folder):
    """A model around `layer` saves and loads as `.keras` and answers the same."""
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=inputs.dtype), layer])
    expected = model(inputs)
    model.save(folder / "layer.keras")
    loaded = keras.models.load_model(folder / "layer.keras")
    assert keras.ops.all(keras.ops.equal(loaded(inputs), expected))
