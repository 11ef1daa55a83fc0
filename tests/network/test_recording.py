import concurrent.futures
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.network.recording import all_operations, capture_calls, first_normalization

RNG = np.random.default_rng(0)


def _wrapped_methods(model):
    """Names of methods that are attributes of an instance."""
    owners = [*all_operations(model), *(layer.dtype_policy for layer in model.layers)]
    names = {"call", "quantized_call", "convert_input"}
    return {name for owner in owners for name in names & set(vars(owner))}


def _mixed():
    """A convolution in float16 whose normalization computes on a cast copy in float32."""
    return keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            keras.layers.Conv2D(2, 3, dtype="mixed_float16"),
            keras.layers.BatchNormalization(dtype="float32"),
            keras.layers.Flatten(),
        ]
    )


def test_records_calls_in_the_order_in_which_they_return(base, images):
    with capture_calls(base) as calls:
        outputs = base(images, training=False)
    names = [call.operation.name for call in calls]
    assert names[:4] == ["stem", "stem_bn", base.layers[3].name, "conv"]
    assert calls[-1].operation is base.get_layer("fc")
    assert calls[-1].output is outputs
    by_name = {call.operation.name: call for call in calls}
    assert by_name["stem_bn"].inputs[0] is by_name["stem"].output


def test_records_the_tensor_before_a_cast():
    model = _mixed()
    with capture_calls(model) as calls:
        model(np.ones((1, 5, 5, 1), "float32"))
    convolution, normalization, _ = calls
    assert convolution.output.dtype == tf.float16
    assert normalization.inputs[0] is convolution.output


def test_records_calls_in_a_traced_function_and_in_a_loop():
    model = _mixed()

    @tf.function
    def run(images):
        def body(image):
            with capture_calls(model) as inner:
                output = model(image[None])[0]
            assert [call.operation for call in inner] == model.layers
            return output

        with capture_calls(model) as calls:
            outputs = model(images)
        assert calls[1].inputs[0] is calls[0].output
        return outputs, tf.map_fn(body, images, fn_output_signature=outputs.dtype)

    outputs, one_by_one = run(RNG.normal(size=(3, 5, 5, 1)).astype("float32"))
    np.testing.assert_allclose(outputs, one_by_one, rtol=1e-3)


def test_records_a_layer_that_a_wrapper_calls_without_its_call_operator():
    convolution = keras.layers.Conv2D(2, 3)
    model = keras.Sequential([keras.Input((2, 5, 5, 1)), keras.layers.TimeDistributed(convolution)])
    with capture_calls(model) as calls:
        model(np.ones((1, 2, 5, 5, 1), "float32"))
    assert [call.operation for call in calls] == [convolution, convolution, model.layers[0]]


def test_nested_blocks_record_the_same_call(base, images):
    with capture_calls(base) as outer, capture_calls(base) as inner:
        base(images, training=False)
    assert all(call.output is other.output for call, other in zip(outer, inner, strict=True))
    assert len(outer) == len(all_operations(base)) - 1  # all but the InputLayer


def test_restores_the_layers(base, images):
    before = base(images, training=False)
    with capture_calls(base):
        assert _wrapped_methods(base) == {"call", "quantized_call", "convert_input"}
    assert not _wrapped_methods(base)
    with pytest.raises(ValueError, match="stop"), capture_calls(base):  # noqa: PT012
        base(images, training=False)
        raise ValueError("stop")
    assert not _wrapped_methods(base)
    np.testing.assert_array_equal(base(images, training=False), before)


def test_a_call_set_on_an_instance_is_recorded_and_survives(base, images):
    layer = base.get_layer("conv_bn")
    layer.call = own = lambda inputs, **kwargs: 2.0 * inputs
    with capture_calls(base) as calls:
        base(images, training=False)
    (call,) = [call for call in calls if call.operation is layer]
    np.testing.assert_array_equal(call.output, 2.0 * call.inputs[0])
    assert vars(layer)["call"] is own
    first_normalization(base, images)[1](images)
    assert vars(layer)["call"] is own


def _in_thread(function):
    """Runs a function in another thread and returns its result."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def test_calls_of_other_threads_are_not_recorded():
    model = _mixed()
    images = RNG.normal(size=(2, 5, 5, 1)).astype("float32")
    expected = model(images)
    with capture_calls(model) as calls:
        outputs = _in_thread(lambda: model(images))
        assert not calls
        mistake = _in_thread(lambda: _message(model.layers[1], 3 * [images]))
        model(images)
    assert len(calls) == 3
    np.testing.assert_array_equal(outputs, expected)
    assert mistake == _message(model.layers[1], 3 * [images])  # errors name the same arguments


def _message(layer, inputs):
    with pytest.raises(Exception, match=r".*") as caught:
        layer(inputs)
    return str(caught.value)


def test_threads_record_the_same_layers_at_once():
    model = _mixed()
    images = RNG.normal(size=(2, 5, 5, 1)).astype("float32")
    barrier = threading.Barrier(2, timeout=60)

    def record(leaves_first):
        with capture_calls(model) as calls:
            barrier.wait()  # both are recording
            model(images[:1] if leaves_first else images)
            barrier.wait()
            if not leaves_first:
                barrier.wait()  # the other one has left
                model(images)
        if leaves_first:
            barrier.wait()
        return calls

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(record, [True, False])
    assert [len(call.output) for call in first] == 3 * [1]
    assert [len(call.output) for call in second] == 6 * [2]
    for convolution, normalization, _ in (first, second[:3], second[3:]):
        assert normalization.inputs[0] is convolution.output
    assert not _wrapped_methods(model)


def test_a_probe_runs_up_to_the_first_normalization(base, images):
    layer, probe = first_normalization(base, images)
    assert layer is base.get_layer("stem_bn")
    later = base.get_layer("conv")
    with capture_calls(base) as calls:
        np.testing.assert_array_equal(probe(images), base.get_layer("stem")(images))
    assert later not in [call.operation for call in calls]
    assert not _wrapped_methods(base)


def test_a_probe_does_not_stop_other_threads():
    model = _mixed()
    convolution, normalization, _ = model.layers
    images = RNG.normal(size=(2, 5, 5, 1)).astype("float32")
    _, probe = first_normalization(model, images)
    call, elsewhere = convolution.call, []

    def call_both(inputs):
        outputs = call(inputs)
        elsewhere.append(_in_thread(lambda: normalization(outputs)))
        return outputs

    convolution.call = call_both
    given = probe(images)
    np.testing.assert_array_equal(elsewhere, [normalization(given)])


def test_raises_without_a_normalization():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"with a BatchNormalization layer. Received: 'plain'"):
        first_normalization(model, np.zeros((1, 4), "float32"))


class Counting(keras.layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


def test_a_probe_changes_no_variable():
    model = keras.Sequential(
        [keras.Input((5, 5, 1)), Counting(), keras.layers.BatchNormalization(), Counting()]
    )
    images = RNG.normal(size=(2, 5, 5, 1)).astype("float32")
    before = [float(layer.count) for layer in (model.layers[0], model.layers[2])]
    _, probe = first_normalization(model, images)
    probe(images)
    assert [float(layer.count) for layer in (model.layers[0], model.layers[2])] == before
