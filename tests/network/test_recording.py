import keras
import numpy as np
import pytest

from keras_nern.network.recording import all_operations, capture_calls, first_normalisation


def test_notes_the_calls_in_the_order_they_are_done(base, images):
    with capture_calls(base) as calls:
        outputs = base(images, training=False)
    names = [call.operation.name for call in calls]
    assert names[:4] == ["stem", "stem_bn", base.layers[3].name, "conv"]
    assert calls[-1].operation is base.get_layer("fc")
    assert calls[-1].output is outputs
    by_name = {call.operation.name: call for call in calls}
    assert by_name["stem_bn"].inputs[0] is by_name["stem"].output


def test_leaves_the_layers_as_they_were(base, images):
    before = base(images, training=False)
    with capture_calls(base):
        pass
    assert all("call" not in vars(operation) for operation in all_operations(base))
    with pytest.raises(ValueError, match=r".*"), capture_calls(base):  # noqa: PT012
        base(images, training=False)
        raise ValueError("stop")
    assert all("call" not in vars(operation) for operation in all_operations(base))
    np.testing.assert_array_equal(base(images, training=False), before)


def test_runs_up_to_the_first_normalisation(base, images):
    layer, probe = first_normalisation(base, images)
    assert layer is base.get_layer("stem_bn")
    np.testing.assert_array_equal(probe(images), base.get_layer("stem")(images))
    assert "call" not in vars(layer)


def test_needs_a_normalisation():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"with a BatchNormalization layer. Received: 'plain'"):
        first_normalisation(model, np.zeros((1, 4), "float32"))
