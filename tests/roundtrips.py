"""Round trips that every registered object must survive."""

import keras


def assert_config_round_trip(obj):
    """Checks that `obj` can be built from its config, and returns the copy."""
    config = keras.saving.serialize_keras_object(obj)
    assert config["registered_name"].startswith("keras_nern>"), config["registered_name"]
    # Keras changes the config that it reads, so it gets one of its own.
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(obj))
    assert type(copy) is type(obj)
    assert keras.saving.serialize_keras_object(copy) == config
    return copy


def assert_saves_inside_a_model(layer, inputs, folder):
    """Checks that a saved and loaded model that contains `layer` gives the same outputs."""
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=inputs.dtype), layer])
    expected = model(inputs)
    model.save(folder / "layer.keras")
    loaded = keras.models.load_model(folder / "layer.keras")
    assert keras.ops.all(keras.ops.equal(loaded(inputs), expected))
