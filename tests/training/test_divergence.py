"""Fits whose losses or weights become NaN or infinite."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.training.fit_callbacks import DivergedError


def _model(base, **settings):
    keras.utils.set_random_seed(4)
    nern = keras_nern.NeRNModel(base, hidden_size=8, num_layers=3)
    nern.compile(**{"reconstruction_steps": 3, **settings})
    return nern


def _spoilt(images, batch, count=4):
    """Batches of three images; one image of that batch, and of all that follow, is NaN."""
    batches = np.repeat(images[None, :3], count, axis=0)
    batches[batch:, 1, 0, 0, 0] = np.nan
    return tf.data.Dataset.from_tensor_slices(batches)


def _state(nern):
    return [np.array(variable) for variable in [*nern.variables, *nern.optimizer.variables]]


class _Keep(keras.callbacks.Callback):
    """Keeps the model's state before the step of a phase."""

    def __init__(self, phase, step):
        super().__init__()
        self.place = (phase, step)
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1
        if (self.model.phase, int(self.model.phase_iterations)) == self.place:
            self.state = _state(self.model)


def _assert_is_back(nern, keep):
    """The model is as it was at that step, and fits again."""
    metrics = {id(variable) for variable in nern.metrics_variables}
    variables = [*nern.variables, *nern.optimizer.variables]
    for variable, before in zip(variables, keep.state, strict=True):
        if id(variable) not in metrics:
            np.testing.assert_array_equal(variable, before)


def test_nan_in_a_later_batch_ends_the_fit(base, images):
    nern, keep = _model(base), _Keep("distillation", 0)
    message = (
        r"Received: NaN or infinity in the images at step 3 of the distillation. The model has its "
        r"last finite state.*unless the images are the cause"
    )
    with pytest.raises(DivergedError, match=message):
        nern.fit(_spoilt(images, 2), verbose=0, callbacks=[keep])
    _assert_is_back(nern, keep)
    assert nern.history.history == {}
    # the optimizer is finite as well, so that the next fit needs no compile
    history = nern.fit(images, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_the_error_names_the_layer_that_overflows(base, images):
    nern = _model(base)
    with pytest.raises(DivergedError, match="infinity in the layer 'stem_bn' at step 1 of the dis"):
        nern.fit(np.full_like(images, 3e38), verbose=0)


def test_weights_that_overflow_in_the_last_step_are_found(base):
    nern = _model(base, optimizer=keras.optimizers.SGD(1e38))
    nern.scale_losses(reconstruction_loss=1e6)
    keep = _Keep("reconstruction", 0)
    with pytest.raises(DivergedError, match="infinity in the predictor at step 1 of the recon"):
        nern.fit(steps_per_epoch=1, verbose=0, callbacks=[keep])
    _assert_is_back(nern, keep)


DIVERGING = {
    "reconstruction": {"reconstruction_steps": 50},
    "distillation": {"reconstruction_steps": 0},
}


@pytest.mark.parametrize("phase", DIVERGING)
@pytest.mark.parametrize("stops", [False, True])
def test_a_learning_rate_that_is_too_large(base, images, labels, phase, stops):
    nern, keep = _model(base, optimizer=keras.optimizers.SGD(1e20), **DIVERGING[phase]), None
    keep = _Keep(phase, 0)
    callbacks = [keep, keras.callbacks.TerminateOnNaN()] if stops else [keep]
    arguments = {"batch_size": 3, "epochs": 2, "verbose": 0, "validation_data": (images, labels)}
    if stops:
        history = nern.fit(images, callbacks=callbacks, **arguments)
        assert history.epoch == ([] if phase == "reconstruction" else [0])
        # validation sees the weights from before
        assert np.isfinite(history.history.get("val_loss", 0)).all()
        assert keep.steps < 4
    else:
        message = f"infinity in the predictor at step [23] of the {phase}"
        with pytest.raises(DivergedError, match=message):
            nern.fit(images, callbacks=callbacks, **arguments)
    _assert_is_back(nern, keep)
    nern.compile(reconstruction_steps=2)
    nern.fit(images, verbose=0)


@pytest.mark.traced
def test_compiled_steps_are_watched(base, images):
    nern = _model(base, jit_compile=True, steps_per_execution=2)
    with pytest.raises(DivergedError, match="NaN or infinity in the images at step 2 of the dist"):
        nern.fit(_spoilt(images, 1), verbose=0)


def test_checks_come_between_epochs_too(base, images, monkeypatch):
    monkeypatch.setattr("keras_nern.training.fit_callbacks.CHECK_EVERY", 4)
    nern, keep = _model(base, reconstruction_steps=0), _Keep("distillation", 7)
    with pytest.raises(DivergedError, match="the images at step 10 of the distillation"):
        nern.fit(_spoilt(images, 9, count=40), verbose=0, callbacks=[keep])
    assert keep.steps == 11  # the check before the twelfth step
    _assert_is_back(nern, keep)  # as it was at the check before the eighth


def test_no_callback_saves_a_state_that_is_not_finite(base, images, tmp_path):
    callbacks = [
        keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1),
        keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True),
    ]
    nern = _model(base)
    with pytest.raises(DivergedError, match="the images at step 3"):
        nern.fit(_spoilt(images, 2), verbose=0, callbacks=callbacks)
    assert not (tmp_path / "last.weights.h5").exists()
    restored = _model(base)
    restored.load_weights(tmp_path / "backup" / "latest.weights.h5")
    assert int(restored.phase_iterations) == 2
    assert all(np.isfinite(one).all() for one in _state(restored))
    again = _model(base)  # the data were mended
    again.fit(_spoilt(images, 9), verbose=0, callbacks=callbacks)
    assert int(again.phase_iterations) == 4


def test_a_fit_that_is_interrupted_after_it_diverged_leaves_a_finite_state(base, images):
    class Interrupt(_Keep):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.phase == "distillation" and batch == 3:
                raise KeyboardInterrupt

    nern, keep = _model(base), Interrupt("distillation", 0)
    with pytest.raises(KeyboardInterrupt):
        nern.fit(_spoilt(images, 2), verbose=0, callbacks=[keep])
    _assert_is_back(nern, keep)


def test_raises_for_weights_that_are_not_finite_before_a_fit(base, images):
    nern = _model(base)
    nern.predictor.output_layer.bias.assign(np.full(9, np.nan))
    with pytest.raises(ValueError, match=r"a predictor with finite weights. .*kernels/bias'\]"):
        nern.fit(images, verbose=0)
    assert int(nern.optimizer.iterations) == 0


def test_raises_for_a_base_that_became_nan(base, images, tmp_path):
    nern = _model(base)
    layer = base.get_layer("conv")
    layer.kernel.assign(layer.kernel * np.nan)
    for call in (
        lambda: nern.fit(images, verbose=0),
        lambda: nern.evaluate(images, verbose=0),
        lambda: nern.gather_curvature(images),
        lambda: nern.export(tmp_path / "a.nern"),
        nern.reconstruct,
    ):
        with pytest.raises(ValueError, match=r"base must have finite weights. .*conv/kernel"):
            call()
    assert int(nern.reconstruction_iterations) == 0
    assert not list(tmp_path.iterdir())
