import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern import losses

TRAINED = {
    "loss",
    "reconstruction_loss",
    "relative_error",
    "logits_loss",
    "feature_map_loss",
}


@pytest.mark.traced
def test_fits_without_compile(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    assert isinstance(nern.optimizer, keras.optimizers.Muon)
    nern.reconstruction_steps = 3  # makes the test short
    history = nern.fit(images, verbose=0)
    assert set(history.history) == TRAINED
    assert set(history.reconstruction) == {"loss", "reconstruction_loss", "relative_error"}
    assert int(nern.reconstruction_iterations) == 3
    assert int(nern.optimizer.iterations) == 1


def _as_generator(images, labels):
    while True:
        yield images[:6], labels[:6]


DATA = {
    "images": lambda x, y: {"x": x},
    "images and labels": lambda x, y: {"x": x, "y": y},
    "a pair": lambda x, y: {"x": (x, y)},
    "tensor": lambda x, y: {"x": tf.constant(x)},
    "dataset of images": lambda x, y: {"x": tf.data.Dataset.from_tensor_slices(x).batch(6)},
    "dataset of pairs": lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(6)},
    "dataset of triples": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices((x, y, np.ones(12))).batch(6)
    },
    "bytes": lambda x, y: {"x": (10 * np.abs(x)).astype("uint8")},
    "generator": lambda x, y: {"x": _as_generator(x, y), "steps_per_epoch": 2},
    "generator of images": lambda x, y: {"x": (x[:6] for _ in range(4)), "steps_per_epoch": 2},
    "a list": lambda x, y: {"x": [x, y]},
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_fits_data_in_every_form(nern, images, labels, data):
    history = nern.fit(**data(images, labels), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
    assert set(history.history) == TRAINED


def test_only_reconstructs_without_images(nern):
    history = nern.fit(steps_per_epoch=4, epochs=3, verbose=0)
    assert set(history.history) == {"loss", "reconstruction_loss", "relative_error"}
    assert len(history.history["loss"]) == 3
    assert int(nern.reconstruction_iterations) == 12


@pytest.mark.traced
@pytest.mark.parametrize("shape", [{"hidden_size": 64}, {"hidden_size": 30, "experts": 3}])
def test_reconstruction_reduces_the_error(base, shape):
    nern = keras_nern.NeRNModel(base, **shape)
    history = nern.fit(steps_per_epoch=150, epochs=2, verbose=0)
    assert nern.fit(steps_per_epoch=1, verbose=0).history["relative_error"][0] < 0.05
    assert history.history["relative_error"][1] < history.history["relative_error"][0]


@pytest.mark.traced
@pytest.mark.parametrize("experts", [1, 3])
def test_distillation_reduces_its_losses(base, images, experts):
    nern = keras_nern.NeRNModel(base, hidden_size=32, experts=experts)
    nern.compile(
        reconstruction_steps=20,
        distillation_learning_rate=2e-3,
        logits_weight=1.0,
        feature_map_weight=0.1,
    )
    nern.fit(images, epochs=1, verbose=0)
    before = nern.evaluate(images, verbose=0, return_dict=True)
    nern.fit(images, epochs=60, verbose=0)
    after = nern.evaluate(images, verbose=0, return_dict=True)
    assert after["logits_loss"] < 0.5 * before["logits_loss"]
    assert after["feature_map_loss"] < before["feature_map_loss"]


def test_the_second_fit_only_distills(nern, images):
    first = nern.fit(images, epochs=1, verbose=0)
    second = nern.fit(images, epochs=1, verbose=0)
    assert first.steps == {
        "reconstruction": [1, 2, 3, 4, 5],
        "curvature": [],
        "distillation": [1],
    }
    assert second.reconstruction == {}
    assert int(nern.reconstruction_iterations) == 5


def test_the_default_schedule_spans_each_phase_of_a_fit(nern, images):
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(float(nern.optimizer.learning_rate))
    )
    nern.fit(images, epochs=2, batch_size=6, verbose=0, callbacks=[record])
    before = (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(rates, [*(1e-2 * before), *(2.5e-4 * cosine)], rtol=1e-5)
    rates.clear()  # another fit starts again
    nern.fit(images, epochs=2, batch_size=6, verbose=0, callbacks=[record])
    np.testing.assert_allclose(rates, 2.5e-4 * cosine, rtol=1e-5)
    rates.clear()  # the second half of a fit, resumed without its schedule
    nern.fit(images, epochs=4, initial_epoch=2, batch_size=6, verbose=0, callbacks=[record])
    np.testing.assert_allclose(rates, 2.5e-4 * cosine, rtol=1e-5)
    rates.clear()  # an epoch of unknown length
    untold = tf.data.Dataset.from_tensor_slices(images).batch(6).filter(lambda _: True)
    with pytest.warns(UserWarning, match="ran out of data"):  # raised by Keras
        nern.fit(untold, epochs=2, verbose=0, callbacks=[record])
    np.testing.assert_allclose(rates, 2.5e-4, rtol=1e-5)
    rates.clear()
    nern.fit(steps_per_epoch=2, epochs=2, verbose=0, callbacks=[record])
    np.testing.assert_allclose(rates, 1e-2 * cosine, rtol=1e-5)


def test_the_learning_rate_is_positive_after_compile_and_in_longer_fits(nern, images):
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(float(nern.optimizer.learning_rate))
    )
    nern.fit(images, epochs=2, verbose=0)
    nern.compile()
    nern.reconstruction_steps = 5
    nern.fit(images, epochs=4, initial_epoch=2, verbose=0, callbacks=[record])
    nern.fit(images, epochs=8, initial_epoch=4, verbose=0, callbacks=[record])
    assert len(rates) == 6
    assert min(rates) > 0


def test_a_users_optimizer_is_reset_only_between_phases(nern, images):
    nern.compile(keras.optimizers.SGD(0.125, momentum=0.5), reconstruction_steps=2)
    nern.fit(images, epochs=1, verbose=0)
    assert float(nern.optimizer.learning_rate) == 0.125
    assert nern.optimizer.momentum == 0.5
    assert int(nern.optimizer.iterations) == 1
    nern.fit(images, epochs=1, verbose=0)
    assert int(nern.optimizer.iterations) == 2


def test_a_used_optimizer_is_reset_between_phases(nern, images):
    optimizer = keras.optimizers.Adam(1e-2)
    nern.compile(optimizer, reconstruction_steps=4)
    nern.fit(steps_per_epoch=4, verbose=0)
    assert int(optimizer.iterations) == 4
    nern.compile(optimizer, reconstruction_steps=0)
    states = []

    def on_epoch_begin(epoch, logs):
        states.extend(np.abs(variable).max() for variable in optimizer.variables)

    look = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)
    nern.fit(images, verbose=0, callbacks=[look])
    assert int(optimizer.iterations) == 1
    assert sorted(states)[-2:] == [0, pytest.approx(1e-2)]  # all except the learning rate


def test_validation_split_is_ignored_as_in_keras(nern, images):
    nern.compile(reconstruction_steps=1)
    data = tf.data.Dataset.from_tensors(images)
    given = {"validation_data": data, "validation_split": 0.5, "validation_freq": np.int64(1)}
    history = nern.fit(data, verbose=0, **given).history
    assert "val_agreement" in history
    nern.fit(images, validation_split=None, verbose=0)
    weights = np.ones(len(images))  # positional arguments in the order of Keras
    labels = np.zeros(len(images))
    nern.evaluate(images, labels, len(images), 0, weights)


def test_a_users_optimizer_keeps_its_settings(nern, images):
    optimizer = keras.optimizers.SGD(0.125, weight_decay=0.5, momentum=0.5)
    optimizer.exclude_from_weight_decay(var_names=["kernel", "bias"])
    nern.compile(optimizer, reconstruction_steps=3)
    nern.scale_losses(reconstruction_loss=0.0)
    before = [variable.numpy() for variable in nern.trainable_variables]

    def on_epoch_begin(epoch, logs):
        optimizer.learning_rate = 0.0625

    lower = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)
    nern.fit(steps_per_epoch=3, verbose=0)
    for variable, value in zip(nern.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)  # no weight decay
    nern.fit(images, verbose=0, callbacks=[lower])
    assert nern.optimizer is optimizer
    assert float(nern.optimizer.learning_rate) == 0.0625
    assert int(optimizer.iterations) == 1


def test_a_fit_of_no_epochs_does_not_begin_the_distillation(nern, images):
    nern.compile(keras.optimizers.Adam(1e-2), reconstruction_steps=3)
    nern.fit(images, epochs=0, verbose=0)
    assert int(nern.reconstruction_iterations) == 3
    assert nern.phase == "reconstruction"
    nern.fit(images, epochs=1, verbose=0)
    assert int(nern.optimizer.iterations) == 1


def test_a_frozen_layer_does_not_change(nern, images):
    frozen, other = nern.predictor.layers[1:3]
    frozen.trainable = False
    nern.compile(reconstruction_steps=3)
    before = [layer.kernel.numpy() for layer in (frozen, other)]
    bias = frozen.bias.numpy()
    nern.fit(images, verbose=0)
    np.testing.assert_array_equal(frozen.kernel, before[0])
    np.testing.assert_array_equal(frozen.bias, bias)
    assert np.abs(other.kernel - before[1]).max() > 0


def test_train_on_batch_raises(nern, images):
    with pytest.raises(NotImplementedError, match="trained by fit, which plans phases"):
        nern.train_on_batch(images)


@pytest.mark.traced
def test_the_losses_of_an_epoch_are_means_over_images(nern, images):
    nern.compile(keras.optimizers.SGD(0.0), reconstruction_steps=1)
    images = images * np.linspace(0.1, 3.0, len(images))[:, None, None, None]
    history = nern.fit(images, batch_size=len(images) - 1, shuffle=False, verbose=0).history
    expected = nern.evaluate(images, batch_size=len(images), verbose=0, return_dict=True)
    parts = [nern.evaluate(x, verbose=0, return_dict=True) for x in (images[:-1], images[-1:])]
    name = "feature_map_loss"
    assert history[name][0] == pytest.approx(expected[name], rel=1e-4)
    assert history[name][0] != pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-2)


def test_a_pair_of_arrays_means_images_and_labels(nern, images, labels):
    apart = nern.evaluate(images, labels, verbose=0, return_dict=True)
    assert "accuracy" in apart
    assert nern.evaluate((images, labels), verbose=0, return_dict=True) == pytest.approx(apart)
    watch = keras_nern.callbacks.EvaluateRebuilt((images, labels), frequency=2)
    nern.compile(reconstruction_steps=2)
    nern.fit(images, verbose=0, callbacks=[watch])
    assert "accuracy" in watch.history[0]


def test_the_default_optimizer_is_reset_between_phases(base, images):
    """The first step of the distillation does not depend on steps of the reconstruction."""

    def change(before):
        keras.utils.set_random_seed(5)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.compile(reconstruction_steps=before)
        if before:
            start = nern.predictor.get_weights()
            nern.fit(steps_per_epoch=before, verbose=0)
            nern.predictor.set_weights(start)
        weights = [weight.numpy() for weight in nern.trainable_variables]
        nern.fit(images, batch_size=12, epochs=1, verbose=0)
        return [a - b.numpy() for a, b in zip(weights, nern.trainable_variables, strict=True)]

    for a, b in zip(change(0), change(40), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_muon_trains_hidden_layers_and_adamw_the_rest(nern):
    by_adamw = {
        variable.path
        for variable, velocity in zip(
            nern.trainable_variables, nern.optimizer.adam_velocities, strict=True
        )
        if velocity is not None
    }
    kernels = {layer.kernel.path for layer in nern.predictor.hidden}
    assert by_adamw == {v.path for v in nern.trainable_variables} - kernels


@pytest.mark.parametrize("normalize", [None, "layer"])
def test_evaluate_reports_every_metric(base, images, labels, normalize):
    nern = keras_nern.NeRNModel(base, hidden_size=16, normalize=normalize)
    nern.compile(reconstruction_steps=5)
    nern.fit(images, epochs=1, verbose=0)
    metrics = nern.evaluate(images, labels, batch_size=5, verbose=0, return_dict=True)
    rebuilt, base = nern.reconstruct(), nern.base
    student, teacher = rebuilt(images).numpy(), base(images).numpy()
    assert metrics["accuracy"] == pytest.approx(np.mean(student.argmax(1) == labels))
    agreement = np.mean(student.argmax(1) == teacher.argmax(1))
    assert metrics["agreement"] == pytest.approx(agreement)
    logits = float(losses.logits_distillation_loss(teacher, student))
    assert metrics["logits_loss"] == pytest.approx(logits, rel=1e-4)
    original = [layer.kernel.numpy() for layer in (base.layers[1], *_convs(base)[1:])]
    predicted = nern.predict_kernels().values()
    error = sum(np.sum((a - b) ** 2) for a, b in zip(original, predicted, strict=True))
    total = sum(np.sum(a**2) for a in original)
    assert metrics["relative_error"] == pytest.approx(error / total, rel=1e-4)
    squares = [np.mean((a - b) ** 2) for a, b in zip(original, predicted, strict=True)]
    if normalize:  # the mean of the layers, each in units of its scale
        error = np.mean([one / np.var(a) for one, a in zip(squares, original, strict=True)])
    else:
        error = np.average(squares, weights=[a.size for a in original])
    assert metrics["reconstruction_loss"] == pytest.approx(np.sqrt(error), rel=1e-4)
    weighted = (
        metrics["reconstruction_loss"]
        + 1e-2 * metrics["logits_loss"]
        + 2e-2 * metrics["feature_map_loss"]
    )
    assert metrics["loss"] == pytest.approx(weighted, rel=1e-5)
    assert "accuracy" not in nern.evaluate(images, verbose=0, return_dict=True)


def _convs(base):
    return [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]


@pytest.mark.parametrize("shape", ["classes", "column", "one-hot"])
def test_accuracy_accepts_labels_in_every_form(nern, images, labels, shape):
    forms = {"classes": labels, "column": labels[:, None], "one-hot": np.eye(3)[labels]}
    metrics = nern.evaluate(images, forms[shape], verbose=0, return_dict=True)
    expected = np.mean(nern.predict(images, verbose=0).argmax(1) == labels)
    assert metrics["accuracy"] == pytest.approx(expected)


def test_the_history_contains_validation_and_compiled_metrics(nern, images, labels):
    nern.compile(
        reconstruction_steps=2,
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    history = nern.fit(images, epochs=2, validation_data=(images, labels), verbose=0).history
    for name in ("val_accuracy", "val_agreement", "val_relative_error", "val_loss", "val_top2"):
        assert len(history[name]) == 2
    assert history["val_accuracy"][-1] == pytest.approx(
        np.mean(nern.predict(images, verbose=0).argmax(1) == labels)
    )


@pytest.mark.parametrize(
    "sampling", ["all", keras_nern.UniformSampling(16), keras_nern.MagnitudeSampling(16, 0.5)]
)
@pytest.mark.parametrize("experts", [1, 3])
def test_sampled_gradients_reach_the_predictor_in_both_phases(base, images, sampling, experts):
    nern = keras_nern.NeRNModel(base, hidden_size=8, experts=experts)
    nern.compile(
        kernel_sampling=sampling,
        distillation_sampling=sampling,
        reconstruction_steps=2,
        curvature_steps=0,
    )
    before = [weight.numpy() for weight in nern.trainable_variables]
    nern.fit(images, epochs=1, verbose=0)
    for a, b in zip(before, nern.trainable_variables, strict=True):
        axes = None if experts == 1 else (1, 2)
        assert (np.abs(a - b.numpy()).max(axis=axes) > 0).all()  # of every expert


class _Drawn(keras_nern.AllKernels):
    """Draws the same kernels in every step, two of them several times."""

    indices = np.array([3, 9, 3, 30, 9, 3], "int32")

    def sample(self, count, seed, cumulative=None):
        return keras.ops.convert_to_tensor(self.indices)


@pytest.mark.parametrize("experts", [1, 3])
def test_a_kernel_drawn_twice_has_the_gradient_of_one_draw(base, images, experts):
    def change(sampling):
        keras.utils.set_random_seed(2)
        nern = keras_nern.NeRNModel(base, hidden_size=8, experts=experts)
        nern.compile(
            optimizer=keras.optimizers.SGD(1.0),
            reconstruction_steps=0,
            curvature_steps=0,
            reconstruction_weight=0.0,
            distillation_sampling=sampling,
        )
        before = [weight.numpy() for weight in nern.trainable_variables]
        nern.fit(images, batch_size=12, verbose=0)
        return [a - b.numpy() for a, b in zip(before, nern.trainable_variables, strict=True)]

    once = _Drawn()
    once.indices = np.unique(_Drawn.indices)
    for a, b in zip(change(_Drawn()), change(once), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


@pytest.mark.traced
@pytest.mark.parametrize(("experts", "normalize"), [(1, None), (4, "layer")])
def test_a_distillation_step_follows_the_gradient_of_the_formula(base, images, experts, normalize):
    """Compares a step of SGD with the gradient of the formula."""
    nern = keras_nern.NeRNModel(
        base, 8, permutation="cross_filter", experts=experts, normalize=normalize
    )
    nern.compile(
        optimizer=keras.optimizers.SGD(1.0),
        reconstruction_steps=0,
        curvature_steps=0,
        reconstruction_weight=1.0,
        logits_weight=0.5,
        feature_map_weight=0.25,
        temperature=2.0,
    )
    original = nern._original
    with tf.GradientTape() as tape:
        if experts == 1:
            blocks = nern.predictor(nern.coordinates())
        else:  # 52 blocks in four runs, in the order of their coordinates
            layers, filters, columns = nern.coordinates().T
            ranks = np.array([0, 4, 28])[layers] + filters * np.array([1, 4, 4])[layers] + columns
            lengths = nern.predictor.run_lengths
            assert len(set(lengths)) > 1
            runs = nern.predictor(np.tile(np.arange(max(lengths)), (4, 1)))
            rows = tf.concat([run[:n] for run, n in zip(runs, lengths, strict=True)], axis=0)
            blocks = tf.gather(rows, ranks)
        scales = [np.std(own.values()) if normalize else 1.0 for own in original.blocks.kernels]
        kernels = [
            scale * kernel
            for scale, kernel in zip(scales, original.blocks.split(blocks), strict=True)
        ]
        teacher, student = original.forward(images), original.forward(images, kernels)
        error = [
            tf.reduce_sum((kernel - own.variable) ** 2) / scale**2
            for kernel, own, scale in zip(kernels, original.blocks.kernels, scales, strict=True)
        ]
        if normalize:  # each layer has the same share
            sizes = [own.num_weights for own in original.blocks.kernels]
            error = [92 / size * one for size, one in zip(sizes, error, strict=True)]
        loss = (
            tf.sqrt(tf.add_n(error) / 276)
            + 0.5 * losses.logits_distillation_loss(teacher.outputs, student.outputs, 2.0)
            + 0.25 * losses.feature_map_distillation_loss(teacher.maps, student.maps)
        )
    variables = nern.trainable_variables
    gradients = tape.gradient(loss, variables)
    expected = [v.numpy() - g.numpy() for v, g in zip(variables, gradients, strict=True)]
    history = nern.fit(images, batch_size=12, verbose=0).history
    assert history["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(expected, variables, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_seed_determines_the_result(base, images, experts):
    def kernels():
        keras.utils.set_random_seed(3)
        nern = keras_nern.NeRNModel(base, hidden_size=8, experts=experts)
        sampling = keras_nern.MagnitudeSampling(16)
        nern.compile(reconstruction_steps=4, curvature_steps=3, kernel_sampling=sampling)
        nern.fit(images, epochs=2, batch_size=4, verbose=0)
        return nern.predict_kernels()

    first, second = kernels(), kernels()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_targets_are_the_current_weights_of_the_base(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.fit(steps_per_epoch=2, verbose=0)
    for layer in _convs(base):
        layer.kernel.assign(0 * layer.kernel)
    squares = sum(np.sum(kernel**2) for kernel in nern.predict_kernels().values())
    expected = pytest.approx(np.sqrt(squares / 276), rel=1e-4)
    evaluated = nern.evaluate(images, verbose=0, return_dict=True)
    assert evaluated["reconstruction_loss"] == expected
    for layer in _convs(base):
        layer.kernel.assign(layer.kernel + 1)
    squares = sum(np.sum((kernel - 1) ** 2) for kernel in nern.predict_kernels().values())
    expected = pytest.approx(np.sqrt(squares / 276), rel=1e-4)
    # all 52 kernels are in the batch of the one step
    assert nern.fit(steps_per_epoch=1, verbose=0).history["reconstruction_loss"][0] == expected


@pytest.mark.traced
def test_a_second_fit_reuses_the_traced_step(nern, images):
    nern.fit(images, epochs=1, verbose=0)
    function = nern.train_function
    nern.fit(images, epochs=1, verbose=0)
    assert nern.train_function is function


@pytest.mark.traced
def test_callbacks_of_keras_work(nern, images, tmp_path):
    csv, best = tmp_path / "log.csv", tmp_path / "best.keras"
    history = nern.fit(
        images,
        epochs=4,
        validation_data=(images,),
        verbose=0,
        callbacks=[
            keras.callbacks.CSVLogger(csv),
            keras.callbacks.ModelCheckpoint(best, monitor="val_loss"),
            keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=1e9, patience=1),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    assert len(history.history["loss"]) == 2
    assert len(csv.read_text().splitlines()) == 3
    loaded = keras.models.load_model(best)
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), nern.predict(images, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"logits_weight": -1.0},
            "logits_weight must be a finite number of at least 0. Received: .*=-1.0",
        ),
        (
            {"reconstruction_steps": float("nan")},
            "reconstruction_steps must be an integer of at least 0",
        ),
        (
            {"temperature": 0},
            "temperature must be a finite number above 0. Received: temperature=0",
        ),
        ({"kernel_sampling": "most"}, "kernel_sampling must be one of .*'most'"),
        ({"loss": "mse"}, "NeRNModel has its own losses.*loss='mse'"),
        ({"loss_weights": [1.0]}, r"NeRNModel has its own losses.*loss_weights=\[1.0\]"),
        (
            {"reconstruction_steps": 2.5},
            "reconstruction_steps must be an integer of at least 0. Received: .*2.5",
        ),
        (
            {"gradient_centering": "off"},
            'gradient_centering must be True, False or "auto". Received: gradient_centering=.off',
        ),
        ({"optimizer": None}, 'optimizer must be a Keras optimizer, its name or "auto"'),
    ],
)
def test_compile_raises_for_invalid_arguments_and_changes_nothing(nern, arguments, message):
    before = nern.get_compile_config()
    with pytest.raises(ValueError, match=message):
        nern.compile(reconstruction_weight=7.0, **arguments)
    assert nern.get_compile_config() == before


IMAGES = np.zeros((2, 8, 8, 1), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "fit needs steps_per_epoch if x is None .*Received: x=None"),
        (
            {"x": tf.data.Dataset.from_tensors(np.zeros((2, 8, 8, 1))).repeat()},
            "fit needs steps_per_epoch if .* never ends. Received: x=<_RepeatDataset",
        ),
        (
            {"x": tf.data.Dataset.from_tensors(np.zeros((2, 8, 8, 1))), "validation_split": 0.5},
            r"validation_split need x to be arrays.*validation_split=0.5",
        ),
        (
            {"x": tf.data.Dataset.from_tensors(np.zeros((2, 8, 8, 1))), "y": np.zeros(2)},
            "validation_split need x to be arrays.*y=labels",
        ),
        (
            {"x": tf.data.Dataset.from_tensors(IMAGES), "sample_weight": np.ones(2)},
            "validation_split need x to be arrays.*sample_weight=weights",
        ),
        ({"x": IMAGES, "y": np.zeros(3)}, r"y must have as many labels as images.*2 im.*\(3,\)"),
        ({"x": IMAGES, "sample_weight": np.zeros(1)}, "sample_weight must have as many sample w"),
        (
            {"x": IMAGES, "sample_weight": np.ones(2)},
            "sample_weight needs labels, because .*Received: sample_weight of type ndarray, y=None",
        ),
        ({"x": IMAGES, "class_weight": {0: 1.0}}, "class_weight needs images with labels, in"),
        ({"steps_per_epoch": 1, "class_weight": {0: 1.0}}, "class_weight needs .*type NoneType"),
        (
            {
                "x": ((image, np.zeros(2)) for image in [IMAGES]),
                "steps_per_epoch": 1,
                "class_weight": {0: 1.0},
            },
            "class_weight needs images with labels, .*Received: x of type generator",
        ),
        (
            {"x": IMAGES, "y": np.zeros(2), "sample_weight": np.ones(2), "class_weight": {0: 1.0}},
            "class_weight must be None if images have weights",
        ),
        (
            {"x": IMAGES, "y": np.zeros(2), "class_weight": {"cat": 1.0}},
            "A class of class_weight must be an integer of at least 0. Received: .*'cat'",
        ),
        (
            {"x": IMAGES, "y": np.zeros(2), "class_weight": {0: -1.0}},
            "A weight of class_weight must be a finite number of at least 0. Received: .*-1.0",
        ),
        ({"x": IMAGES, "class_weight": {}}, "class_weight must be a dict from classes to weights"),
        (
            {"x": IMAGES, "validation_data": (IMAGES, np.zeros(3))},
            "validation_data must have as many labels as images",
        ),
        (
            {"x": IMAGES, "validation_data": (IMAGES, np.array(["cat", "dog"]))},
            "validation_data must have labels that are real numbers .*Received: labels of type str",
        ),
        (
            {"x": IMAGES, "validation_data": tf.data.Dataset.from_tensors(IMAGES).repeat()},
            "fit needs validation_steps if validation_data never ends",
        ),
        ({"x": "images/"}, "x must be arrays, a tf.data.Dataset.*Received: x of type str"),
        ({"x": iter([IMAGES])}, "x must be arrays, .*Received: x of type list_iterator"),
        ({"x": IMAGES, "validation_split": 1.0}, "validation_split must be at least 0 and below 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be an integer of at least 1"),
        (
            {"x": IMAGES, "callbacks": [keras_nern.callbacks.EvaluateRebuilt(IMAGES, np.ones(3))]},
            "y must have as many labels as images",
        ),
        ({"x": np.zeros((0, 8, 8, 1))}, "x must contain at least one batch of images"),
        ({"x": np.zeros((2, 9, 8, 1))}, r"x must contain images of shape \(batch, 8, 8, 1\)"),
        (
            {"x": np.zeros((2, 8, 8, 1)), "validation_data": (np.zeros((2, 8, 8, 3)),)},
            r"validation_data must contain images of shape .*Received: \(2, 8, 8, 3\)",
        ),
    ],
)
def test_fit_raises_for_invalid_arguments_before_training(nern, arguments, message):
    with pytest.raises(ValueError, match=message):
        nern.fit(**arguments, verbose=0)
    assert int(nern.optimizer.iterations) == int(nern.reconstruction_iterations) == 0


def _weighted(images, labels, weights, kind):
    if kind == "sample_weight":
        return {"x": images, "y": labels, "sample_weight": weights[labels]}
    if kind == "class_weight":  # a missing class has the weight 1
        return {"x": images, "y": labels, "class_weight": {0: weights[0], 2: weights[2]}}
    pairs = tf.data.Dataset.from_tensor_slices((images, labels)).batch(len(images))
    if kind == "dataset and class_weight":
        return {"x": pairs, "class_weight": dict(enumerate(weights))}
    return {"x": pairs.map(lambda x, y: (x, y, tf.gather(weights, y)))}


@pytest.mark.parametrize(
    "kind", ["sample_weight", "class_weight", "dataset and class_weight", "triples"]
)
def test_weights_of_images_count_in_the_distillation(base, images, labels, kind):
    """By hand: the mean over images of weight times loss."""
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.compile(keras.optimizers.SGD(0.0), reconstruction_steps=0)
    weights = np.array([0.5, 1.0, 3.0], "float32")
    each = [nern.evaluate(one[None], verbose=0, return_dict=True) for one in images]
    given = _weighted(images, labels, weights, kind)
    history = nern.fit(**given, batch_size=12, verbose=0).history
    for name in ("logits_loss", "feature_map_loss"):
        expected = np.mean([weights[y] * one[name] for one, y in zip(each, labels, strict=True)])
        assert history[name][0] == pytest.approx(expected, rel=1e-4)
        assert history[name][0] != pytest.approx(np.mean([one[name] for one in each]), rel=1e-2)
    if kind == "sample_weight":
        results = nern.evaluate(**given, batch_size=12, verbose=0, return_dict=True)
        assert results["logits_loss"] == pytest.approx(history["logits_loss"][0], rel=1e-4)
        assert results["agreement"] == np.mean([one["agreement"] for one in each])


def test_images_of_weight_0_have_no_gradient(base, images, labels):
    def kernels(images, labels, weights):
        keras.utils.set_random_seed(3)
        nern = keras_nern.NeRNModel(base, hidden_size=8)
        nern.compile(keras.optimizers.SGD(1.0), reconstruction_steps=0, reconstruction_weight=0)
        before = np.concatenate([one.numpy().ravel() for one in nern.trainable_variables])
        nern.fit(images, labels, sample_weight=weights, batch_size=12, verbose=0)
        after = np.concatenate([one.numpy().ravel() for one in nern.trainable_variables])
        return after - before

    weights = np.array([2.0] * 6 + [0.0] * 6)
    some = kernels(images, labels, weights)
    assert np.abs(some).max() > 1e-6
    np.testing.assert_allclose(some, kernels(images[:6], labels[:6], np.ones(6)), atol=1e-7)


def test_fit_raises_for_unknown_arguments_before_training(nern, images):
    with pytest.raises(TypeError, match="unexpected keyword argument 'validation_frequency'"):
        nern.fit(images, validation_frequency=2)
    assert int(nern.reconstruction_iterations) == 0


def test_weighted_metrics_use_validation_weights(nern, images, labels):
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    nern.compile(reconstruction_steps=2, weighted_metrics=[metric])
    weights = np.where(labels == 0, 1.0, 0.0)
    history = nern.fit(
        images, epochs=1, validation_data=(images, labels, weights), verbose=0
    ).history
    top = np.argsort(nern.predict(images, verbose=0), axis=1)[:, -2:]
    expected = np.mean([0 in row for row in top[labels == 0]])
    assert history["val_top2"][0] == pytest.approx(expected)


def test_stopping_at_the_last_step_of_the_reconstruction_ends_the_fit(nern, images):
    def stop(batch, logs):
        nern.stop_training = nern.phase == "reconstruction" and batch == 4

    record = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    history = nern.fit(images, verbose=0, callbacks=[record])
    assert int(nern.reconstruction_iterations) == 5
    assert nern.phase == "reconstruction"
    assert history.history == {}
    assert history.steps["reconstruction"] == [1, 2, 3, 4, 5]
    assert nern.history is history


def test_stopping_before_the_first_step_ends_the_fit(nern, images):
    stop = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: setattr(nern, "stop_training", True)
    )
    assert nern.fit(images, verbose=0, callbacks=[stop]).history == {}
    assert int(nern.reconstruction_iterations) == 0
