import warnings

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.permutations.orders import block_order
from keras_nern.permutations.permutation import Permutation


def _assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def _slow_kernels(nern):
    """Computes every kernel by its formula, one coordinate at a time."""
    kernels = {}
    for index, name in enumerate(("stem", "conv", "shortcut")):
        original = nern.base.get_layer(name).kernel.numpy()
        kh, kw, cin, cout = original.shape
        scale = np.std(original) if nern.normalize == "layer" else 1.0
        offset = (0, 4, 28)[index]  # of 52 blocks
        blocks = original.transpose(3, 2, 0, 1).reshape(cout, cin, kh * kw)
        order = list(block_order(blocks, nern.permutation, nern.permutation_method, nern.metric))
        kernels[name] = np.zeros(original.shape)
        for f in range(cout):
            for c in range(cin):
                position = order.index(f * cin + c)
                if nern.experts == 1:
                    coordinate = np.array([[index, position // cin, position % cin]])
                    block = nern.predictor(coordinate).numpy()
                else:
                    expert, place = 0, offset + position
                    while place >= nern.predictor.run_lengths[expert]:
                        place -= nern.predictor.run_lengths[expert]
                        expert += 1
                    block = nern.predictor(np.full((nern.experts, 1), place))[expert].numpy()
                block = block.reshape(3, 3)
                top, left = (3 - kh) // 2, (3 - kw) // 2
                crop = block[top : top + kh, left : left + kw]
                kernels[name][:, :, c, f] = scale * crop
    return kernels


@pytest.mark.parametrize("experts", [1, 5])
@pytest.mark.parametrize("permutation", [None, "in_filter", "cross_filter"])
@pytest.mark.parametrize(
    ("normalize", "metric", "method"),
    [(None, "cosine", "greedy"), ("layer", "euclidean", "two_opt")],
)
def test_predicts_each_kernel_from_its_coordinate(
    base, permutation, normalize, metric, method, experts
):
    nern = keras_nern.NeRNModel(
        base,
        8,
        num_layers=3,
        experts=experts,
        permutation=permutation,
        normalize=normalize,
        metric=metric,
        permutation_method=method,
    )
    kernels = nern.predict_kernels()
    expected = _slow_kernels(nern)
    assert list(kernels) == list(expected)
    for name in expected:
        np.testing.assert_allclose(kernels[name], expected[name], atol=1e-6)


def test_accepts_and_saves_a_permutation(base, tmp_path):
    permutation = Permutation.from_model(base, "in_filter", "two_opt", "cosine")
    nern = keras_nern.NeRNModel(base, 8, permutation=permutation)
    assert nern.permutation == "in_filter"
    assert nern.kernel_permutation() == permutation
    np.testing.assert_array_equal(nern.coordinates(), permutation.coordinates())
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    assert loaded.kernel_permutation() == permutation


def test_raises_for_the_permutation_of_another_network(base):
    other = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    message = r"a permutation of the base's blocks.*\(4, 1\).*Received: .*\[\(2, 1\)\]"
    with pytest.raises(ValueError, match=message):
        keras_nern.NeRNModel(base, 8, permutation=Permutation.from_model(other))


def test_call_and_predict_match_the_rebuilt_classifier(nern, images, labels):
    nern.fit(images, epochs=1, verbose=0)
    rebuilt = nern.reconstruct()
    expected = rebuilt(images).numpy()
    np.testing.assert_allclose(nern(images), expected, atol=1e-6)
    np.testing.assert_allclose(nern.predict(images, verbose=0), expected, atol=1e-6)
    nern.fit(images, epochs=1, verbose=0)  # predict must not use kernels from before the fit
    after = nern.reconstruct()(images).numpy()
    assert np.abs(after - expected).max() > 1e-4
    np.testing.assert_allclose(nern.predict(images, verbose=0), after, atol=1e-6)


def test_reconstruct_copies_everything_except_kernels(nern):
    rebuilt = nern.reconstruct()
    assert rebuilt.get_config() == nern.base.get_config()
    predicted = nern.predict_kernels()
    for copy, original in zip(rebuilt.layers, nern.base.layers, strict=True):
        for a, b in zip(copy.weights, original.weights, strict=True):
            assert a is not b
            if a.name == "kernel" and copy.name in predicted:
                np.testing.assert_array_equal(a, predicted[copy.name])
            else:
                np.testing.assert_array_equal(a, b)


def test_the_base_does_not_change(base, images, labels, tmp_path):
    before, trainable = base.get_weights(), [layer.trainable for layer in base.layers]
    nern = keras_nern.NeRNModel(base, 8, permutation="cross_filter", normalize="layer")
    nern.compile(reconstruction_steps=3)
    nern.fit(images, labels, epochs=1, validation_data=(images, labels), verbose=0)
    nern.trainable = False
    nern.reconstruct().set_weights([0 * w for w in before])
    nern.save(tmp_path / "nern.keras")
    assert nern.base is base
    _assert_same(before, base.get_weights())
    assert [layer.trainable for layer in base.layers] == trainable


@pytest.mark.parametrize("permutation", [None, "in_filter", "cross_filter"])
def test_a_kernel_alone_is_predicted_by_its_experts_only(base, permutation):
    """Ranks 0 to 3, 4 to 27 and 28 to 51; five runs start at 0, 7, 18, 30 and 41."""
    nern = keras_nern.NeRNModel(base, 4, 3, permutation=permutation, experts=5)
    assert nern._representation.runs.starts.tolist() == [0, 7, 18, 30, 41]
    expected = nern.predict_kernels()
    assert list(expected) == ["stem", "conv", "shortcut"]
    needed = {"stem": [0], "conv": [0, 1, 2], "shortcut": [2, 3, 4]}
    weights = nern.predictor.get_weights()
    for name, experts in needed.items():
        others = [expert for expert in range(5) if expert not in experts]
        for layer, value in zip(nern.predictor.layers, weights, strict=True):
            value = value.copy()
            value[others] = np.nan
            layer.kernel.assign(value)
        found = nern.predict_kernels(name)
        assert list(found) == [name]
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
        for expert in experts:  # and all of them are needed
            broken = [value.copy() for value in weights]
            broken[0][expert] = np.nan
            nern.predictor.set_weights(broken)
            assert np.isnan(nern.predict_kernels(name)[name]).any()
        nern.predictor.set_weights(weights)


def test_some_kernels_are_predicted_by_name(nern):
    expected = nern.predict_kernels()
    for names in ("conv", ["conv"], ("shortcut", "stem"), []):
        found = nern.predict_kernels(names)
        assert list(found) == ([names] if isinstance(names, str) else list(names))
        for name, value in found.items():
            assert type(value) is np.ndarray
            np.testing.assert_allclose(value, expected[name], atol=1e-6)
    with pytest.raises(ValueError, match=r"layers must be one of .*'stem'.*layers='convolution'"):
        nern.predict_kernels(["conv", "convolution"])


def test_one_predictor_by_default_and_local_ones_for_a_larger_size(base):
    nern = keras_nern.NeRNModel(base)
    assert (nern.experts, nern.hidden_size, nern.num_layers) == (1, 8, 5)
    assert (nern.normalize, type(nern.encoding)) == (None, keras_nern.PositionalEncoding)
    nern = keras_nern.NeRNModel(base, size="80 kB")
    assert 1 < nern.experts < 5
    assert 28 <= nern.hidden_size <= 36
    assert (nern.num_layers, nern.normalize, nern.encoding) == (9, "layer", None)
    assert 0.9 * 80_000 < nern.summary_table().representation_bytes <= 80_000
    nern = keras_nern.NeRNModel(base, size=3, experts=2, permutation="cross_filter", bits=5)
    weights = 4 * 9 + 24 * 9 + 24
    assert 0.75 < nern.predictor.num_bytes / (3 * weights * 5 / 8) <= 1
    with pytest.raises(ValueError, match=r"Expected hidden_size or size\. Received: hidden_size=4"):
        keras_nern.NeRNModel(base, hidden_size=4, size=0.4)
    with pytest.raises(ValueError, match="experts must be at most 52, the number of blocks"):
        keras_nern.NeRNModel(base, hidden_size=4, experts=53)


@pytest.mark.parametrize("permutation", [None, "cross_filter"])
@pytest.mark.parametrize("normalize", ["auto", None])
def test_the_size_in_bytes_is_that_of_the_representation(base, permutation, normalize):
    for experts in (1, 2, 5):
        nern = keras_nern.NeRNModel(
            base, permutation=permutation, normalize=normalize, experts=experts, size="30 kB"
        )
        found = nern.summary_table().representation_bytes
        assert found <= 30_000
        wider = keras_nern.NeRNModel(
            base,
            nern.hidden_size + 1,
            permutation=permutation,
            normalize=normalize,
            experts=experts,
        )
        assert wider.summary_table().representation_bytes > 30_000


def test_only_the_predictor_is_trainable(nern):
    paths = {id(weight) for weight in nern.predictor.weights}
    assert {id(weight) for weight in nern.trainable_variables} == paths
    assert len(paths) == 10


def test_a_perfect_predictor_rebuilds_the_base(base, images):
    # The encoding is one-hot, and the output layer contains the kernels.
    nern = keras_nern.NeRNModel(base, 52, num_layers=2, encoding=_OneHot(base))
    nern.predictor.hidden[0].kernel.assign(np.eye(52))
    nern.predictor.hidden[0].bias.assign(np.zeros(52))
    blocks = nern._original.blocks
    nern.predictor.output_layer.kernel.assign(
        np.concatenate([blocks.kernel_blocks(i).reshape(-1, 9) for i in range(3)])
    )
    np.testing.assert_allclose(nern(images), base(images), atol=1e-6)
    metrics = nern.evaluate(images, return_dict=True, verbose=0)
    assert metrics["relative_error"] == pytest.approx(0, abs=1e-10)
    assert metrics["agreement"] == 1


class _OneHot(keras.layers.Layer):
    """Coordinates of `base`'s 52 kernels as one-hot rows."""

    def __init__(self, base, **kwargs):
        super().__init__(**kwargs)
        self.start = np.array([0, 4, 28], "int32")
        self.width = np.array([1, 4, 4], "int32")

    def call(self, inputs):
        layer, f, c = tf.unstack(tf.cast(inputs, "int32"), axis=1)
        return tf.one_hot(tf.gather(self.start, layer) + f * tf.gather(self.width, layer) + c, 52)


class _Halve(keras.layers.Layer):
    def call(self, inputs):
        return inputs / 2


def test_reconstructs_unregistered_and_lambda_layers():
    base = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Lambda(lambda x: x / 255),
            _Halve(),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(),
        ]
    )
    nern = keras_nern.NeRNModel(base, 4)
    images = np.ones((1, 4, 4, 1), "float32")
    np.testing.assert_allclose(nern.reconstruct()(images), nern(images), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be .* at least 1. Received: hidden_size=0"),
        ({"num_layers": 1}, "num_layers must be .* at least 2. Received: num_layers=1"),
        ({"permutation": "random"}, "permutation must be one of .*permutation='random'"),
        ({"metric": "angle"}, "metric must be one of .*metric='angle'"),
        ({"permutation_method": "exact"}, "permutation_method must be one of .*'exact'"),
        (
            {"normalize": "kernel"},
            r"normalize must be one of \('auto', None, 'layer'\).*normalize='kernel'",
        ),
    ],
)
def test_raises_for_invalid_arguments(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.NeRNModel(base, **arguments)


def _assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def _counted(call, calls):
    def counted(self, inputs, **arguments):
        calls.append(int(np.prod(inputs.shape if self.experts > 1 else inputs.shape[:1])))
        return call(self, inputs, **arguments)

    return counted


SLOW_CHUNKS = [(1, True), (5, False)]

SHAPES_THAT_WRAP = {
    "even and oblong kernels, groups, dilation": lambda: [
        keras.Input((12, 12, 4)),
        keras.layers.Conv2D(4, (2, 5), groups=2),
        keras.layers.Conv2D(4, 3, dilation_rate=2),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Dense(2, activation="softmax"),
    ],
    "1x1 alone, one output": lambda: [
        keras.Input((4, 4, 2)),
        keras.layers.Conv2D(3, 1, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(1, activation="sigmoid"),
    ],
    "a nested model": lambda: [
        keras.Input((12, 12, 4)),
        keras.Sequential([keras.Input((12, 12, 4)), keras.layers.Conv2D(3, 3)], name="inner"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ],
}


@pytest.mark.parametrize(
    ("experts", "jit_compile"),
    [(1, False), (5, True), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW_CHUNKS)],
)
def test_blocks_of_a_large_network_are_predicted_in_chunks(
    base, images, monkeypatch, experts, jit_compile
):
    nern = keras_nern.NeRNModel(base, 8, 3, permutation="cross_filter", experts=experts)
    kernels = list(nern.predict_kernels().values())
    # 17 of 52 blocks at once; or two of five runs of up to 12 blocks. The last chunk is smaller.
    widest, chunk = (240, 17) if experts == 1 else (16, 2 * 12)
    monkeypatch.setattr("keras_nern.representation.MAX_ACTIVATIONS", widest * chunk)
    calls = []
    monkeypatch.setattr(type(nern.predictor), "call", _counted(type(nern.predictor).call, calls))
    _assert_close(nern._representation.kernels(), kernels)
    assert len(calls) >= 3
    assert max(calls) == chunk
    _assert_close(tf.function(nern._representation.kernels, jit_compile=jit_compile)(), kernels)
    assert max(calls) == chunk
    one = tf.function(lambda: nern._representation.kernel(1), jit_compile=jit_compile)
    _assert_close([one(), nern._representation.kernel(1)], [kernels[1]] * 2)
    # a step that draws kernels predicts the others in chunks
    nern.compile(
        reconstruction_steps=0,
        distillation_sampling=keras_nern.UniformSampling(9),
        jit_compile=jit_compile,
    )
    before = nern.relative_error()
    nern.fit(images, batch_size=6, verbose=0)
    assert nern.relative_error() != before
    np.testing.assert_allclose(
        nern.predict(images, verbose=0), nern.reconstruct()(images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layers", SHAPES_THAT_WRAP.values(), ids=SHAPES_THAT_WRAP)
def test_represents_other_classifiers(layers):
    base = keras.Sequential(layers())
    shape = base.input_shape[1:]
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    labels = np.array([0, 1, 0, 1])
    nern = keras_nern.NeRNModel(base, 8, permutation="cross_filter")
    nern.compile(reconstruction_steps=2)
    nern.fit(images, labels, epochs=1, verbose=0)
    metrics = nern.evaluate(images, labels, verbose=0, return_dict=True)
    assert np.isfinite(list(metrics.values())).all()
    predicted = nern.predict(images, verbose=0)
    np.testing.assert_allclose(predicted, nern.reconstruct()(images), atol=1e-5)
    classes = predicted[:, 0] > 0.5 if predicted.shape[1] == 1 else predicted.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(np.mean(classes == labels))


CONTINUE = """
import sys, keras, numpy as np, keras_nern
path, out, initial_epoch = sys.argv[1:]
images = np.random.default_rng(2).normal(size=(12, 8, 8, 1)).astype("float32")
nern = keras.models.load_model(path)
before = nern.predict(images, verbose=0)
nern.fit(images, epochs=4, initial_epoch=int(initial_epoch), shuffle=False, verbose=0)
np.savez(out, before=before, after=nern.predict(images, verbose=0))
"""


def _sequential_base():
    base = keras.Sequential(name="sequential")
    for layer in (
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ):
        base.add(layer)
    return base


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        pytest.param("reconstruction", "sequential", marks=pytest.mark.slow),
        ("distillation", "functional"),
        ("reconstruction", "local predictors"),
        pytest.param("distillation", "local predictors", marks=pytest.mark.slow),
        pytest.param("reconstruction", "functional", marks=pytest.mark.slow),
        pytest.param("distillation", "sequential", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_fit_continues_in_a_new_process(base, images, tmp_path, phase, kind):
    """A fit that is stopped, saved, loaded and continued ends with the weights of a whole fit."""
    base = _sequential_base() if kind == "sequential" else base
    experts = 3 if kind == "local predictors" else 1
    keras.utils.set_random_seed(4)
    whole = _a_model_for_stopping(base, experts)
    start = whole.get_weights()
    whole.fit(images, epochs=4, shuffle=False, verbose=0)

    keras.utils.set_random_seed(4)
    stopped = _a_model_for_stopping(base, experts)
    for a, b in zip(start, stopped.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    if phase == "reconstruction":
        _stop(stopped, at=5, images=images)
    else:
        stop = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: setattr(stopped, "stop_training", epoch == 1)
        )
        stopped.fit(images, epochs=4, shuffle=False, verbose=0, callbacks=[stop])
    stopped.save(tmp_path / "nern.keras")

    epoch = "0" if phase == "reconstruction" else "2"
    assert (
        processes.start(CONTINUE, tmp_path / "nern.keras", tmp_path / "out.npz", epoch).wait() == 0
    )
    with np.load(tmp_path / "out.npz") as there:
        np.testing.assert_allclose(there["before"], stopped.predict(images, verbose=0), atol=1e-6)
        np.testing.assert_allclose(there["after"], whole.predict(images, verbose=0), atol=1e-5)


def _a_model_for_stopping(base, experts):
    nern = keras_nern.NeRNModel(base, 16, permutation="cross_filter", experts=experts)
    nern.compile(
        reconstruction_steps=9,
        curvature_steps=0 if experts == 1 else 6,
        kernel_sampling=keras_nern.MagnitudeSampling(20),
        distillation_sampling=keras_nern.UniformSampling(3),
    )
    return nern


def _stop(nern, at, images):
    """Interrupts the reconstruction phase, as Ctrl-C does, after `at` steps."""
    step = nern.make_train_function

    def interrupted(force=False):
        step(force)
        function = nern.train_function

        def counted(iterator):
            if int(nern.reconstruction_iterations) == at:
                raise KeyboardInterrupt
            return function(iterator)

        nern.train_function = counted

    nern.make_train_function = interrupted
    with pytest.raises(KeyboardInterrupt):
        nern.fit(images, epochs=4, shuffle=False, verbose=0)
    assert int(nern.reconstruction_iterations) == at
    del nern.make_train_function


@pytest.mark.parametrize("experts", [1, 3])
def test_loading_keeps_order_scales_and_settings(base, tmp_path, experts):
    nern = keras_nern.NeRNModel(
        base, 8, 3, permutation="in_filter", normalize="layer", experts=experts
    )
    nern.compile(reconstruction_steps=7, temperature=3.0, kernel_sampling="magnitude")
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    assert (loaded.experts, loaded.hidden_size, loaded.num_layers) == (experts, 8, 3)
    assert loaded.normalize == "layer"
    _assert_same(loaded.predict_kernels().values(), nern.predict_kernels().values())
    np.testing.assert_array_equal(loaded.coordinates(), nern.coordinates())
    np.testing.assert_array_equal(loaded.scales, nern.scales)
    _assert_same(loaded.base.get_weights(), base.get_weights())
    assert (loaded.permutation, loaded.reconstruction_steps) == ("in_filter", 7)
    assert loaded.temperature == 3
    assert isinstance(loaded.kernel_sampling, keras_nern.MagnitudeSampling)
    assert str(loaded.summary_table()) == str(nern.summary_table())


def test_loading_weights_of_other_shapes_raises_and_changes_nothing(base, images, nern, tmp_path):
    other = keras_nern.NeRNModel(base, 8)
    other.compile(reconstruction_steps=2)
    other.fit(images, verbose=0)
    other.save_weights(tmp_path / "narrow.weights.h5")
    before, plan = nern.get_weights(), nern._schedule.get_config()
    with pytest.raises(ValueError, match=r"objects could not be loaded|shape"):
        nern.load_weights(tmp_path / "narrow.weights.h5")
    _assert_same(before, nern.get_weights())
    assert nern.phase == "reconstruction"
    assert nern._schedule.get_config() == plan
    nern.fit(images, verbose=0)
    assert int(nern.reconstruction_iterations) == 5


def test_loading_weights_of_another_base_raises_and_changes_nothing(base, nern, tmp_path):
    other = keras.models.clone_model(base)
    keras_nern.NeRNModel(other, 16).save_weights(tmp_path / "other.weights.h5")
    before, predictor = base.get_weights(), nern.get_weights()
    with pytest.raises(ValueError, match="Expected weights of a representation of this base"):
        nern.load_weights(tmp_path / "other.weights.h5")
    _assert_same(before, base.get_weights())
    _assert_same(predictor, nern.get_weights())
    nern.save_weights(tmp_path / "own.weights.h5")
    nern.predictor.output_layer.kernel.assign(np.zeros((16, 9)))
    nern.load_weights(tmp_path / "own.weights.h5")
    _assert_same(predictor, nern.get_weights())


def test_warns_of_a_predictor_that_is_larger_than_the_kernels(base):
    with pytest.warns(UserWarning, match=r"has [\d,]+ parameters for 276 weights"):
        keras_nern.NeRNModel(base, hidden_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        keras_nern.NeRNModel(base, hidden_size=1, num_layers=2)  # 241 + 18 parameters


def test_the_automatic_view_is_saved_as_the_one_it_stands_for(base, tmp_path):
    nern = keras_nern.NeRNModel(base, 4)
    assert nern.view == "crop"
    nern.save(tmp_path / "nern.keras")
    assert keras.models.load_model(tmp_path / "nern.keras").view == "crop"
