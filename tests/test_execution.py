"""One fit on other devices, in other precisions, compiled otherwise."""

import functools
import json
import socket

import keras
import numpy as np
import pytest
from processes import classifier, start

import keras_nern


def _fit(images, policy="float32", experts=1, **compile_arguments):
    keras.mixed_precision.set_global_policy(policy)
    try:
        keras.utils.set_random_seed(4)
        nern = keras_nern.NeRNModel(classifier(), 16, permutation="cross_filter", experts=experts)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    nern.compile(
        **{
            "reconstruction_steps": 6,
            "curvature_steps": 0 if experts == 1 else 6,
            # keras.random.uniform, which draws from runs, gives other numbers in XLA
            "kernel_sampling": keras_nern.UniformSampling(20) if experts == 1 else "all",
            "distillation_learning_rate": 1e-2,
            **compile_arguments,
        }
    )
    history = nern.fit(images, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return nern, history


@pytest.fixture(scope="module")
def plain():
    """The fit that others are compared with, its history, and its images, by experts."""
    images = np.random.default_rng(2).normal(size=(12, 8, 8, 1)).astype("float32")
    return functools.cache(
        lambda experts: (*_fit(images, experts=experts, jit_compile=False), images)
    )


@pytest.mark.parametrize(
    ("policy", "jit_compile", "experts"),
    [
        ("mixed_float16", False, 1),
        ("mixed_bfloat16", False, 1),
        pytest.param("mixed_float16", True, 1, marks=pytest.mark.slow),
        pytest.param("mixed_float16", True, 3, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", True, 1, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", False, 3, marks=pytest.mark.slow),
    ],
)
def test_a_base_in_mixed_precision_is_fitted_in_float32(plain, policy, jit_compile, experts):
    full, expected, images = plain(experts)
    nern, history = _fit(images, policy, experts, jit_compile=jit_compile)
    assert {weight.dtype for weight in nern.trainable_variables} == {"float32"}
    assert all(layer.compute_dtype == "float32" for layer in nern.predictor.hidden)
    assert nern.base.layers[0].compute_dtype == policy.removeprefix("mixed_")
    scaled = isinstance(nern.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    # without images, only the predictor computes, in float32
    for name, values in expected.reconstruction.items():
        np.testing.assert_allclose(history.reconstruction[name], values, rtol=1e-4)
    tolerance = 2e-2 if policy == "mixed_bfloat16" else 4e-3
    for name in ("loss", "feature_map_loss", "relative_error"):
        np.testing.assert_allclose(history.history[name], expected.history[name], rtol=tolerance)
    rebuilt = nern.reconstruct()
    assert rebuilt.layers[0].compute_dtype == nern.base.layers[0].compute_dtype
    np.testing.assert_allclose(rebuilt(images), nern.predict(images, verbose=0), atol=1e-2)
    np.testing.assert_allclose(
        nern.predict(images, verbose=0), full.predict(images, verbose=0), atol=0.02
    )


def test_the_loss_scale_can_be_disabled_and_is_kept_between_phases(images):
    refused, _ = _fit(images, "mixed_float16", auto_scale_loss=False, run_eagerly=True)
    assert isinstance(refused.optimizer, keras.optimizers.Muon)
    own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0)
    nern, _ = _fit(images, "mixed_float16", optimizer=own, run_eagerly=True)
    assert isinstance(nern.optimizer.inner_optimizer, keras.optimizers.SGD)
    nern, _ = _fit(images, "mixed_float16", run_eagerly=True)
    assert float(nern.optimizer.dynamic_scale) == 2.0**15  # Keras's first; no step overflowed


@pytest.mark.parametrize(
    "arguments",
    [
        {"jit_compile": True},
        {"run_eagerly": True},
        {"steps_per_execution": 4},
        pytest.param({"experts": 3, "jit_compile": True}, marks=pytest.mark.slow),
        {"experts": 3, "run_eagerly": True},
    ],
    ids=[
        *("compiled by XLA", "eager", "four steps at once"),
        *("local, compiled by XLA", "local, eager"),
    ],
)
def test_kernels_do_not_depend_on_how_steps_are_executed(plain, arguments):
    full, _, images = plain(arguments.get("experts", 1))
    other, _ = _fit(images, **arguments)
    kernels = full.predict_kernels().values(), other.predict_kernels().values()
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_keras_clips_gradients(images):
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1e-3)
    nern = keras_nern.NeRNModel(classifier(), 16)
    before = [weight.numpy() for weight in nern.trainable_variables]
    nern.compile(optimizer=optimizer, reconstruction_steps=0)
    nern.fit(images, batch_size=12, verbose=0)
    change = [a - b.numpy() for a, b in zip(before, nern.trainable_variables, strict=True)]
    norm = np.sqrt(sum(np.sum(np.square(part)) for part in change))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_keras_averages_weights(images):
    """The average of the weights w1 and w2 after two steps, with momentum 0.5, is (w1 + w2) / 2."""
    steps = []

    def fit(**arguments):
        keras.utils.set_random_seed(4)
        nern = keras_nern.NeRNModel(classifier(), 16)
        nern.compile(optimizer=keras.optimizers.SGD(0.1, **arguments), reconstruction_steps=0)
        record = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: steps.append(_flat(nern))
        )
        nern.fit(images, batch_size=6, shuffle=False, verbose=0, callbacks=[record])
        return _flat(nern)

    np.testing.assert_array_equal(fit(), steps[1])
    averaged = fit(use_ema=True, ema_momentum=0.5)
    np.testing.assert_allclose(averaged, (steps[0] + steps[1]) / 2, atol=1e-6)


def _flat(nern):
    return np.concatenate([weight.numpy().ravel() for weight in nern.trainable_variables])


# Several devices. TensorFlow sets them up when it starts, so each fit is a process.

FIT = """
import json, sys
import keras, numpy as np, tensorflow as tf

kind, out, optimizer, experts = sys.argv[1:]
if kind == "mirrored":
    cpu, = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
elif kind == "workers":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()
import keras_nern
from processes import classifier

keras.utils.set_random_seed(0)
images = np.random.default_rng(2).normal(size=(24, 8, 8, 1)).astype("float32")
labels = np.arange(24) % 3
with strategy.scope():
    if experts == "0":  # integers
        nern = keras_nern.NeRNModel(classifier(), size=0)
        nern = keras_nern.compress(nern, max_bytes=1_680, data=images, verbose=0)
    else:
        nern = keras_nern.NeRNModel(
            classifier(), 16, permutation="cross_filter", experts=int(experts)
        )
    nern.compile(
        optimizer=optimizer,
        reconstruction_steps=20 if int(experts) else 0,
        curvature_steps=5 if int(experts) > 1 else 0,
        kernel_sampling=keras_nern.MagnitudeSampling(9),
        distillation_learning_rate=1e-2,
        # Keras (3.15) cannot build compiled metrics between workers
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
        if kind != "workers" else None,
    )
dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
if kind == "workers":
    try:
        nern.fit(dataset)
    except ValueError as error:
        assert "x must give images without labels under a multi-worker strategy" in str(error)
        dataset = dataset.map(lambda image, label: image)
watch = keras_nern.callbacks.EvaluateRebuilt(dataset, frequency=5)
history = nern.fit(
    dataset,
    epochs=3,
    verbose=0,
    validation_data=dataset,
    callbacks=[watch, keras_nern.callbacks.LossWarmup(4)],
)
logs = {"first": history.reconstruction, **history.history, "watched": watch.history[-1]["loss"]}
with open(out, "w") as file:
    json.dump({
        "replicas": strategy.num_replicas_in_sync,
        "logs": logs,
        "iterations": int(keras.ops.convert_to_numpy(nern.optimizer.iterations)),
        "kernels": [kernel.tolist() for kernel in nern.predict_kernels().values()]
        if int(experts) else [one.numpy().tolist() for one in nern.residual_layer.levels],
    }, file)
"""


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")

    @functools.cache
    def result(optimizer="auto", experts=1):
        out = folder / f"{optimizer} {experts}"
        assert start(FIT, "one", out, optimizer, experts).wait() == 0
        return json.loads(out.read_text())

    return result


def _assert_same(result, expected):
    assert (expected["replicas"], result["replicas"]) == (1, 2)
    assert result["iterations"] == expected["iterations"] == 9
    for name in result["logs"]:
        values = expected["logs"][name]
        if name == "first":
            for loss, mean in values.items():
                np.testing.assert_allclose(result["logs"][name][loss], mean, rtol=1e-5)
        else:
            np.testing.assert_allclose(result["logs"][name], values, rtol=2e-5, atol=1e-6)
    for a, b in zip(result["kernels"], expected["kernels"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "experts"),
    [("auto", 3), ("auto", 1), ("adam", 1), ("auto", 0)],
)
@pytest.mark.slow  # test_curvature_phase.py fits local predictors on two replicas
def test_two_replicas_fit_like_one_device(on_one_device, tmp_path, optimizer, experts):
    assert start(FIT, "mirrored", tmp_path / "out.json", optimizer, experts).wait() == 0
    result = json.loads((tmp_path / "out.json").read_text())
    expected = on_one_device(optimizer, experts)
    _assert_same(result, expected)
    assert set(result["logs"]) == set(expected["logs"]) > {"val_top2", "val_accuracy", "watched"}


NOISE = """
import json
import sys
import keras
import tensorflow as tf
import keras_nern
from processes import classifier

kind, out = sys.argv[1:]
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.get_strategy()
if kind == "mirrored":
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
keras.utils.set_random_seed(3)
with strategy.scope():
    base = classifier()
    nern = keras_nern.NeRNModel(base, 8)
    nern.compile(reconstruction_steps=3, distillation_learning_rate=1e-2)
noise = keras_nern.NoiseDataset(base, batch_size=4, steps=5)
losses = []
note = lambda batch, logs: losses.append(logs["loss"])
callback = keras.callbacks.LambdaCallback(on_train_batch_end=note)
nern.fit(noise, epochs=2, verbose=0, callbacks=[callback])
with open(out, "w") as file:
    json.dump([strategy.num_replicas_in_sync, losses], file)
"""


@pytest.mark.slow
def test_two_replicas_receive_the_noise_of_one_device(tmp_path):
    results = []
    for kind in ("one", "mirrored"):
        assert start(NOISE, kind, tmp_path / kind).wait() == 0
        results.append(json.loads((tmp_path / kind).read_text()))
    (one, expected), (two, losses) = results
    assert (one, two, len(losses)) == (1, 2, 13)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_two_workers_fit_like_one_device(on_one_device, tmp_path):
    workers = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        out = tmp_path / f"{index}.json"
        processes.append(start(FIT, "workers", out, "auto", 1, TF_CONFIG=json.dumps(task)))
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for index in range(2):
        result = json.loads((tmp_path / f"{index}.json").read_text())
        _assert_same(result, on_one_device())
        of_labels = {"val_accuracy", "val_base_accuracy", "val_top2"}
        assert set(result["logs"]) == set(on_one_device()["logs"]) - of_labels


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
