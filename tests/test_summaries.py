import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.analysis import kernel_images

pytest.importorskip("tensorboard", reason="install keras-nern[tensorboard]")


def _read(folder):
    """The summaries in a run's event files: {tag: {step: value}}, an image as its pixels."""
    found = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                if array.dtype == object:  # width, height and a PNG
                    array = tf.io.decode_png(array[2]).numpy()
                found.setdefault(value.tag, {})[event.step] = array
    return found


@pytest.fixture
def record(nern):
    """What a model was at each step, as a callback that comes before the one tested."""
    seen = {}

    def note(batch, logs):
        step = (nern.phase, int(nern.phase_iterations))
        seen[step] = (nern.layer_errors(), nern.predict_kernels())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    callback.seen = seen
    return callback


def test_errors_and_pictures_are_written_every_so_many_steps(nern, images, record, tmp_path):
    summaries = keras_nern.KernelSummaries(tmp_path, frequency=2, layers=["conv"], limit=5)
    # Keras's own comes first, and lets only every third step be recorded.
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=3)
    nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=[board, record, summaries])
    originals = nern.original_kernels()
    for phase, steps in (("reconstruction", [2, 4]), ("distillation", [2, 4, 6])):
        found = _read(tmp_path / phase)
        assert set(found) == {*(f"layer_error/{name}" for name in originals), "kernels/conv"}
        assert all(list(values) == steps for values in found.values())
        for step in steps:
            errors, kernels = record.seen[phase, step]
            for name, error in errors.items():
                assert found[f"layer_error/{name}"][step] == pytest.approx(error, rel=1e-6)
            expected = kernel_images.kernel_image(originals["conv"], kernels["conv"], limit=5)
            np.testing.assert_array_equal(found["kernels/conv"][step], expected)
    losses = _read(tmp_path / "train")
    # steps of both phases are numbered through: 5 of reconstruction, 6 of distillation
    assert list(losses["batch_reconstruction_loss"]) == [3, 6, 9]
    assert list(losses["batch_feature_map_loss"]) == [6, 9]


def test_errors_and_pictures_are_written_every_epoch(nern, images, record, tmp_path):
    callbacks = [
        record,
        keras_nern.KernelSummaries(tmp_path),
        keras.callbacks.TensorBoard(tmp_path),
    ]
    history = nern.fit(images, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distillation", "train"]
    for name, values in history.items():
        written = _read(tmp_path / "train")[f"epoch_{name}"]
        assert written == pytest.approx(dict(enumerate(values)), rel=1e-6)
    found = _read(tmp_path / "distillation")
    names = list(nern.original_kernels())
    assert set(found) == {f"{kind}/{name}" for kind in ("layer_error", "kernels") for name in names}
    # step 0 is where the reconstruction ended
    moments = {0: ("reconstruction", 5), 3: ("distillation", 3), 6: ("distillation", 6)}
    for name in names:
        written = found[f"layer_error/{name}"]
        expected = {step: record.seen[moment][0][name] for step, moment in moments.items()}
        assert written == pytest.approx(expected, rel=1e-6)


def test_a_reconstruction_alone_has_epochs_of_its_own(nern, tmp_path):
    nern.fit(
        steps_per_epoch=2,
        epochs=2,
        verbose=0,
        callbacks=[keras_nern.KernelSummaries(tmp_path)],
    )
    found = _read(tmp_path / "reconstruction")
    assert list(found["layer_error/stem"]) == [0, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frequency": 0}, "frequency must be an integer of at least 1. Received: frequency=0"),
        ({"frequency": "batch"}, "frequency must be .* Received: frequency='batch'"),
        ({"limit": 0}, "limit must be an integer of at least 1. Received: limit=0"),
    ],
)
def test_refuses(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_nern.KernelSummaries(tmp_path, **arguments)


def test_refuses_unknown_layers_before_any_training(nern, images, tmp_path):
    summaries = keras_nern.KernelSummaries(tmp_path, layers=["stem", "fc"])
    with pytest.raises(
        ValueError, match=r"layers must be among \['stem', .*\]. Received: \['fc'\]"
    ):
        nern.fit(images, verbose=0, callbacks=[summaries])
    assert int(nern.reconstruction_iterations) == 0
    assert not list(tmp_path.iterdir())


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"needs `pip install keras-nern\[tensorboard\]`"):
        keras_nern.KernelSummaries(tmp_path)
