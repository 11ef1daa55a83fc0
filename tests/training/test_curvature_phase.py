"""The phase of a fit between reconstruction and distillation, on the curvature of the losses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import start

import keras_nern
from keras_nern.training.fit_callbacks import DivergedError

EXPERTS = [1, 3]
CURVATURE = {"loss", "relative_error", "curvature_loss"}
RECONSTRUCTION = {"loss", "relative_error", "reconstruction_loss"}


def _model(base, experts=1, **settings):
    keras.utils.set_random_seed(4)
    nern = keras_nern.NeRNModel(base, hidden_size=8, num_layers=3, experts=experts)
    nern.compile(
        **{
            "reconstruction_steps": 4,
            "curvature_steps": 6,
            "distillation_learning_rate": 1e-2,
            **settings,
        }
    )
    return nern


def _kernels(nern):
    return np.concatenate([kernel.ravel() for kernel in nern.predict_kernels().values()])


def _assert_same(a, b):
    np.testing.assert_allclose(_kernels(a), _kernels(b), rtol=1e-5, atol=1e-6)


def _cost(nern):
    return float(sum(nern._objective.curvature_terms(nern._representation.kernels())))


@pytest.mark.traced
@pytest.mark.parametrize("experts", EXPERTS)
def test_the_phase_lowers_its_loss_and_that_of_distillation(base, images, experts):
    nern = _model(base, experts, reconstruction_steps=60, curvature_steps=200)
    if experts == 1:
        nern.curvature_learning_rate = 3e-3
    nern.gather_curvature(images)
    nern.fit(steps_per_epoch=60, verbose=0)
    cost, before = _cost(nern), nern.evaluate(images, verbose=0, return_dict=True)
    history = nern.fit(images, epochs=0, verbose=0)
    after = nern.evaluate(images, verbose=0, return_dict=True)
    assert _cost(nern) < 0.8 * cost
    curve = history.curvature["curvature_loss"]
    assert history.steps["curvature"] == list(range(2, 201, 2))
    assert curve[0] == pytest.approx(cost, rel=0.1)
    assert _cost(nern) == pytest.approx(curve[-1], rel=0.1)  # the present, not the mean

    def distilled(results):
        return 1e-2 * results["logits_loss"] + 2e-2 * results["feature_map_loss"]

    assert distilled(after) < 0.9 * distilled(before)


def test_the_history_holds_each_phase(base, images):
    nern = _model(base)
    history = nern.fit(images, epochs=2, verbose=0)
    assert set(history.reconstruction) == RECONSTRUCTION
    assert set(history.curvature) == CURVATURE
    assert history.curvature["loss"] == history.curvature["curvature_loss"]
    assert set(history.history) == RECONSTRUCTION | {"logits_loss", "feature_map_loss"}
    assert history.steps == {
        "reconstruction": [1, 2, 3, 4],
        "curvature": [1, 2, 3, 4, 5, 6],
        "distillation": [1, 2],
    }
    for phase in ("reconstruction", "curvature"):
        lengths = {len(values) for values in getattr(history, phase).values()}
        assert lengths == {len(history.steps[phase])}
    assert history.curvature["relative_error"][-1] != history.history["relative_error"][0]
    assert (int(nern.reconstruction_iterations), int(nern.curvature_iterations)) == (4, 6)
    second = nern.fit(images, verbose=0)  # only distills
    assert second.reconstruction == second.curvature == {}
    nern.curvature_steps = 8
    third = nern.fit(images, verbose=0)
    assert third.reconstruction == {}
    assert set(third.curvature) == CURVATURE
    assert int(nern.curvature_iterations) == 8


@pytest.mark.parametrize("experts", EXPERTS)
def test_the_logged_loss_is_the_cost_of_the_kernels(base, images, experts):
    nern = _model(base, experts, optimizer=keras.optimizers.SGD(0.0), curvature_steps=1)
    history = nern.fit(images, epochs=0, verbose=0)
    factors = nern._objective._factors
    assert len(factors) == 3
    costs = []
    for name, (inputs, outputs, *_) in zip(nern.original_kernels(), factors, strict=True):
        error = nern.original_kernels()[name] - nern.predict_kernels()[name]
        error = error.reshape(-1, error.shape[-1])  # (patch, filters)
        costs.append(0.5 * np.trace(outputs.numpy()[0] @ error.T @ inputs.numpy()[0] @ error))
    assert history.curvature["curvature_loss"][0] == pytest.approx(sum(costs), rel=1e-4)


PHASES = {
    "reconstruction": {"curvature_steps": 0, "epochs": 0},
    "curvature": {"reconstruction_steps": 0, "epochs": 0},
    "distillation": {"reconstruction_steps": 0, "curvature_steps": 0, "epochs": 1},
    "no reconstruction": {"reconstruction_steps": 0, "epochs": 1},
    "no curvature": {"curvature_steps": 0, "epochs": 1},
    "no distillation": {"epochs": 0},
}


@pytest.mark.parametrize("name", PHASES)
def test_each_phase_can_be_left_out(base, images, name):
    settings = dict(PHASES[name])
    epochs = settings.pop("epochs")
    nern = _model(base, **settings)
    before = _kernels(nern)
    history = nern.fit(images, epochs=epochs, verbose=0)
    ran = [bool(one) for one in (history.reconstruction, history.curvature, history.history)]
    steps = [nern.reconstruction_steps, nern.curvature_steps, epochs]
    assert ran == [one > 0 for one in steps]
    assert int(nern.reconstruction_iterations) == nern.reconstruction_steps
    assert int(nern.curvature_iterations) == nern.curvature_steps
    assert np.abs(_kernels(nern) - before).max() > 0
    assert nern._objective.has_curvature == (nern.curvature_steps > 0)


def test_a_reconstruction_that_ends_early_continues_with_the_next_phase(base, images):
    for steps in (0, 6):
        nern = _model(base, curvature_steps=steps, reconstruction_steps=30)

        def finish(batch, logs, nern=nern):
            if nern.phase == "reconstruction" and batch == 2:
                nern.finish_reconstruction()

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=finish)
        history = nern.fit(images, verbose=0, callbacks=[callback])
        assert int(nern.reconstruction_iterations) == 3
        assert int(nern.curvature_iterations) == steps
        assert history.epoch == [0]


def test_a_callback_that_stops_the_phase_stops_the_fit(base, images):
    nern = _model(base)

    def stop(batch, logs):
        nern.stop_training = nern.phase == "curvature" and batch == 2

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    history = nern.fit(images, verbose=0, callbacks=[callback])
    assert int(nern.curvature_iterations) == 3
    assert history.history == {}
    assert nern.phase == "curvature"
    again = nern.fit(images, verbose=0)  # runs the rest
    assert int(nern.curvature_iterations) == 6
    assert again.epoch == [0]


# Data.


class _Sequence(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.images[4 * index : 4 * index + 4], np.zeros(4)


def _generator(images, pairs=True):
    for begin in range(0, 12, 4):
        batch = images[begin : begin + 4]
        yield (batch, np.zeros(4)) if pairs else batch


DATA = {
    "pair": lambda base, x: {"x": (x, np.zeros(12)), "batch_size": 4},
    "dataset": lambda base, x: {"x": tf.data.Dataset.from_tensor_slices(x).batch(4)},
    "endless": lambda base, x: {
        "x": tf.data.Dataset.from_tensor_slices(x).batch(4).repeat(),
        "steps_per_epoch": 3,
    },
    "PyDataset": lambda base, x: {"x": _Sequence(x)},
    "generator": lambda base, x: {"x": _generator(x)},
    "generator of images": lambda base, x: {"x": _generator(x, pairs=False)},
}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(data, id=name, marks=[pytest.mark.slow] * (name in ("pair", "endless")))
        for name, data in DATA.items()
    ],
)
def test_data_in_every_form_give_the_same_kernels(base, images, data):
    """Generators, too, train on every batch, although the curvature was gathered from some."""
    expected = _model(base)
    expected.fit(images, batch_size=4, shuffle=False, verbose=0)
    nern = _model(base)
    settings = {**data(base, images), "shuffle": False}
    if isinstance(settings["x"], (tf.data.Dataset, type(_generator(images)))):
        del settings["shuffle"]
    if isinstance(settings["x"], type(_generator(images))):
        settings["steps_per_epoch"] = 3  # for the schedule
    nern.fit(**settings, verbose=0)
    assert int(nern.phase_iterations) == 3
    if data is DATA["endless"]:  # 512 images in place of 12
        return
    for a, b in zip(nern._objective._factors, expected._objective._factors, strict=True):
        np.testing.assert_allclose(a.inputs, b.inputs, rtol=1e-4, atol=1e-5)
    _assert_same(nern, expected)


def test_a_generator_is_read_only_as_far_as_needed(base, images, monkeypatch):
    monkeypatch.setattr("keras_nern.training.fit.CURVATURE_IMAGES", 5)
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield (images[:4] + len(read),)

    nern = _model(base)
    seen = []
    record = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: seen.append(len(read)))
    nern.fit(endless(), steps_per_epoch=4, verbose=0, callbacks=[record])
    assert seen == [2]  # 5 images are in two batches
    assert int(nern.phase_iterations) == 4


@pytest.mark.parametrize("experts", EXPERTS)
def test_noise_is_enough(base, experts):
    noise = keras_nern.NoiseDataset(base, batch_size=6, steps=2)
    history = _model(base, experts).fit(noise, verbose=0)
    assert history.curvature["curvature_loss"][0] > 0


def test_curvature_that_was_gathered_before_is_kept(base, images):
    nern = _model(base)
    nern.gather_curvature(images[:3])
    before = [one.inputs.numpy() for one in nern._objective._factors]
    nern.fit(images, verbose=0)
    for a, one in zip(before, nern._objective._factors, strict=True):
        np.testing.assert_array_equal(a, one.inputs)
    nern.gather_curvature(images)
    assert np.abs(before[0] - nern._objective._factors[0].inputs).max() > 0


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("pair", "dataset", "generator")]


@pytest.mark.parametrize("kind", ["array", "noise", *SLOW])
def test_curvature_is_gathered_from_the_first_images(base, images, labels, kind):
    noise = keras_nern.NoiseDataset(base, steps=2, batch_size=6)
    used = np.concatenate([noise[0], noise[1]]) if kind == "noise" else images
    data = {
        "array": images,
        "pair": (images, labels),
        "dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(5).repeat(),
        "noise": noise,
        "generator": (images[begin : begin + 4] for begin in (0, 4, 8)),
    }[kind]
    nern = _model(base)
    nern.gather_curvature(data, images=11, batch_size=5)
    pixels = used[:11, :, :, 0]
    middle = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))[:, 1:-1, 1:-1]
    stem = nern._objective._factors[0].inputs.numpy()[0]
    assert stem[4, 4] == pytest.approx(np.mean(middle**2), rel=1e-4)  # of the middle of a patch


def test_raises_for_images_of_another_shape(nern):
    with pytest.raises(ValueError, match=r"x must contain images of shape \(batch, 8, 8, 1\)"):
        nern.gather_curvature(np.zeros((3, 9, 8, 1)))


# Gradients.


@pytest.mark.parametrize("experts", EXPERTS)
def test_sampled_kernels_have_the_gradients_of_all_kernels(base, images, experts):
    class Every(keras_nern.AllKernels):
        """A batch in which every kernel is drawn once."""

        def sample(self, count, seed, cumulative=None):
            assert count == 52
            return keras.ops.arange(count, dtype="int32")

    def change(sampling):
        nern = _model(
            base,
            experts,
            optimizer=keras.optimizers.SGD(10.0),
            reconstruction_steps=0,
            curvature_steps=1,
            distillation_sampling=sampling,
        )
        before = [weight.numpy() for weight in nern.trainable_variables]
        nern.fit(images, epochs=0, verbose=0)
        return [a - b.numpy() for a, b in zip(before, nern.trainable_variables, strict=True)]

    for a, b in zip(change(Every()), change("all"), strict=True):
        assert np.abs(b).max() > 1e-5
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_scaled_loss_has_scaled_gradients(base, images):
    def change(scale):
        nern = _model(
            base, optimizer=keras.optimizers.SGD(1.0), reconstruction_steps=0, curvature_steps=1
        )
        before = nern.predictor.get_weights()
        nern.scale_losses(curvature_loss=scale)
        nern.fit(images, epochs=0, verbose=0)
        return [a - b for a, b in zip(before, nern.predictor.get_weights(), strict=True)]

    for a, b in zip(change(1.0), change(0.5), strict=True):
        np.testing.assert_allclose(0.5 * a, b, rtol=1e-3, atol=1e-6)


# Execution.


@pytest.mark.traced
@pytest.mark.parametrize("experts", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_kernels_do_not_depend_on_how_steps_are_executed(base, images, experts):
    def run(**arguments):
        nern = _model(base, experts, optimizer=keras.optimizers.SGD(0.1), **arguments)
        nern.fit(images, epochs=0, verbose=0)
        return nern

    plain = run(run_eagerly=True)
    for arguments in ({"jit_compile": True}, {"jit_compile": False, "steps_per_execution": 4}):
        _assert_same(run(**arguments), plain)


def test_a_base_in_float16_has_the_curvature_of_one_in_float32(images):
    found = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(1)
        base = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", dtype=policy),
                keras.layers.GlobalAveragePooling2D(dtype=policy),
                keras.layers.Dense(3, dtype=policy),
            ]
        )
        history = _model(base).fit(np.repeat(images, 20, 0), epochs=0, verbose=0)
        found.append(history.curvature["curvature_loss"][0])
    assert found[0] == pytest.approx(found[1], rel=0.1)


MIRRORED = """
import json, sys
import keras, numpy as np, tensorflow as tf

kind, out, experts = sys.argv[1:]
strategy = tf.distribute.get_strategy()
if kind == "two":
    cpu, = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
import keras_nern
from processes import classifier

keras.utils.set_random_seed(0)
images = np.random.default_rng(2).normal(size=(24, 8, 8, 1)).astype("float32")
with strategy.scope():
    nern = keras_nern.NeRNModel(classifier(), 8, num_layers=3, experts=int(experts))
    nern.compile(
        reconstruction_steps=3, curvature_steps=9, distillation_sampling="magnitude",
        curvature_learning_rate=1e-3,
    )
history = nern.fit(tf.data.Dataset.from_tensor_slices(images).batch(8), epochs=1, verbose=0)
with open(out, "w") as file:
    json.dump({
        "replicas": strategy.num_replicas_in_sync,
        "steps": int(keras.ops.convert_to_numpy(nern.curvature_iterations)),
        "history": history.curvature,
        "kernels": [kernel.tolist() for kernel in nern.predict_kernels().values()],
    }, file)
"""


@pytest.mark.parametrize("experts", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_two_replicas_fit_like_one_device(tmp_path, experts):
    results = []
    for kind in ("one", "two"):
        assert start(MIRRORED, kind, tmp_path / kind, experts).wait() == 0
        results.append(json.loads((tmp_path / kind).read_text()))
    one, two = results
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert one["steps"] == two["steps"] == 9
    for name, values in one["history"].items():
        np.testing.assert_allclose(two["history"][name], values, rtol=1e-4)
    for a, b in zip(one["kernels"], two["kernels"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


# Callbacks, progress, restarts.


class _Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events, self.logs = [], {}

    def on_train_batch_begin(self, batch, logs=None):
        self.events.append(f"{self.model.phase} {batch} begin")

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(f"{self.model.phase} {batch} end")
        self.logs[self.model.phase] = set(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(f"epoch {epoch}")


def _batches(phase, steps):
    return [f"{phase} {step} {what}" for step in steps for what in ("begin", "end")]


def test_callbacks_receive_the_steps_of_all_phases(base, images):
    nern, record = _model(base), _Record()
    nern.fit(images, verbose=0, callbacks=[record])
    assert record.events == [
        *_batches("reconstruction", range(4)),
        *_batches("curvature", range(6)),
        "epoch 0",
        *_batches("distillation", range(1)),
    ]
    assert record.logs["curvature"] == CURVATURE


def test_nothing_is_printed_about_phases_that_do_not_run(base, images, capsys):
    _model(base, reconstruction_steps=0, curvature_steps=0).fit(images, verbose=2)
    assert capsys.readouterr().out.startswith("1/1 ")


class _Kill(keras.callbacks.Callback):
    """Raises a KeyboardInterrupt, as Ctrl-C does, after a step of a phase."""

    def __init__(self, *place):
        super().__init__()
        self.place = place

    def on_train_batch_end(self, batch, logs=None):
        if (self.model.phase, int(self.model.phase_iterations)) == self.place:
            raise KeyboardInterrupt


def _fit(nern, images, folder, frequency, *callbacks):
    dataset = tf.data.Dataset.from_tensor_slices(images).shuffle(12, seed=3).batch(4)
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=frequency)
    return nern.fit(dataset, epochs=2, verbose=0, callbacks=[backup, *callbacks])


PLACES = [
    ("reconstruction", 3, 2),
    ("reconstruction", 4, 1),  # at the last step
    ("curvature", 1, 1),
    ("curvature", 4, 3),
    ("curvature", 6, 1),  # at the last step
    ("distillation", 2, 1),
    ("distillation", 4, 4),  # saved in the curvature phase
]
FEW = [("curvature", 4, 3), ("curvature", 6, 1), ("distillation", 4, 4)]


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize(
    ("phase", "step", "frequency"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one not in FEW)) for one in PLACES],
)
def test_a_restored_fit_ends_with_the_same_kernels(
    base, images, tmp_path, experts, phase, step, frequency
):
    settings = {"distillation_sampling": keras_nern.UniformSampling(9)}
    whole = _model(base, experts, **settings)
    _fit(whole, images, tmp_path / "whole", frequency)
    killed = _model(base, experts, **settings)
    with pytest.raises(KeyboardInterrupt):
        _fit(killed, images, tmp_path / "killed", frequency, _Kill(phase, step))
    again, record = _model(base, experts, **settings), _Record()
    _fit(again, images, tmp_path / "killed", frequency, record)
    counters = again.reconstruction_iterations, again.curvature_iterations, again.phase_iterations
    assert [int(one) for one in counters] == [4, 6, 6]
    assert len(record.events) < 2 * (4 + 6 + 6) + 2  # it did not start again
    _assert_same(again, whole)


def test_a_saved_model_continues_after_the_phase(base, images, tmp_path):
    nern = _model(base, optimizer="adam")
    nern.fit(images, epochs=0, verbose=0)
    nern.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert (int(loaded.curvature_iterations), loaded.phase) == (6, "curvature")
    assert (loaded.curvature_steps, loaded.curvature_learning_rate) == (6, 1e-3)
    a, b = (one.fit(images, batch_size=6, shuffle=False, verbose=0) for one in (nern, loaded))
    assert a.curvature == b.curvature == {}
    _assert_same(nern, loaded)


@pytest.mark.parametrize("experts", EXPERTS)
def test_compression_keeps_the_steps(base, images, experts):
    nern = _model(base, experts)
    nern.fit(images, epochs=0, verbose=0)
    small = keras_nern.compress(nern, bits=6)
    assert int(small.curvature_iterations) == 6
    assert int(small.reconstruction_iterations) == 4
    assert small.curvature_steps == 6
    history = small.fit(images, verbose=0)
    assert history.reconstruction == history.curvature == {}


@pytest.mark.parametrize("stops", [False, True])
def test_a_rate_that_is_too_large_names_the_phase(base, images, stops):
    nern = _model(base, optimizer=keras.optimizers.SGD(1e30), reconstruction_steps=0)
    before = _kernels(nern)
    if stops:
        history = nern.fit(images, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
        assert history.history == {}
        assert nern.phase == "curvature"
    else:
        with pytest.raises(DivergedError, match="infinity in the predictor at step 2 of the curv"):
            nern.fit(images, verbose=0)
    assert int(nern.curvature_iterations) == 0
    np.testing.assert_array_equal(_kernels(nern), before)  # the last finite state


def test_the_default_optimizer_at_an_absurd_rate_is_found(base, images):
    nern = _model(base, curvature_learning_rate=1e10, curvature_steps=60)
    with pytest.raises(DivergedError, match="of the curvature"):
        nern.fit(images, verbose=0)
    assert np.isfinite(_kernels(nern)).all()
