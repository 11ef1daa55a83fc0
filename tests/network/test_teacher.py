"""Distillation of the logits of another network than the base."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern import losses

layers = keras.layers
NAMES = ("logits_loss", "feature_map_loss", "agreement")


def _classifier(side=8, classes=3, activation=None):
    """A classifier without any convolution, which could not be a base."""
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((side, side, 1)),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(classes, activation=activation),
        ],
        name="other",
    )


def _logits(model, images):
    return model(images, training=False)


def _results(nern, images):
    found = nern.evaluate(images, verbose=0, return_dict=True)
    return [found[name] for name in NAMES]


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_logits_are_the_teachers_and_the_rest_is_the_bases(base, images, activation):
    teacher = _classifier(activation=activation)
    nern = keras_nern.NeRNModel(base, 8, teacher=teacher)
    plain = keras_nern.NeRNModel(base, 8)
    plain.set_weights(nern.get_weights())
    outputs = _logits(teacher, images)
    expected = losses.logits_distillation_loss(
        keras.ops.log(outputs) if activation else outputs, _logits(nern.reconstruct(), images)
    )
    logits, *others = _results(nern, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4)
    plain_logits, *plain_others = _results(plain, images)
    assert abs(logits - plain_logits) > 0.01
    np.testing.assert_allclose(others, plain_others, rtol=1e-5)
    nern.teacher = None
    np.testing.assert_allclose(_results(nern, images), [plain_logits, *plain_others], rtol=1e-5)


@pytest.mark.traced
def test_distillation_approaches_the_teacher_and_leaves_it_alone(base, images):
    teacher = _classifier()
    before = teacher.get_weights()
    nern = keras_nern.NeRNModel(base, 16, teacher=teacher)
    nern.compile(
        reconstruction_steps=0,
        reconstruction_weight=0,
        feature_map_weight=0,
        logits_weight=1,
        distillation_learning_rate=1e-2,
    )
    start, _, _ = _results(nern, images)
    nern.fit(tf.data.Dataset.from_tensors(images).repeat(120), verbose=0)
    end, _, _ = _results(nern, images)
    assert end < 0.6 * start
    for weight, value in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    tracked = {id(variable) for variable in nern.variables}
    assert not tracked & {id(variable) for variable in teacher.variables}
    # a new teacher counts in the next step, although the step is traced
    nern.teacher = None
    expected, _, _ = _results(nern, images)
    assert abs(expected - end) > 0.2 * end
    found = nern.fit(images, verbose=0).history["logits_loss"][0]
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_compress_keeps_the_teacher(base):
    nern = keras_nern.NeRNModel(base, 8, teacher=_classifier())
    assert keras_nern.compress(nern, bits=8).teacher is nern.teacher


# Keras warns of dicts whose keys are not the names of the tensors
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_inputs_are_matched_by_position():
    """The base takes a list of inputs, the teacher a dict of others' names."""
    a, b = (keras.Input((6, 6, 1), name=name) for name in ("a", "b"))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(a) - 2.0 * layers.Conv2D(2, 3)(b))
    base = keras.Model([a, b], layers.Dense(3)(x))
    x = layers.Flatten()(a) - 3.0 * layers.Flatten()(b)
    teacher = keras.Model({"p": a, "q": b}, layers.Dense(3)(x))
    nern = keras_nern.NeRNModel(base, 8, teacher=teacher)
    first, second = np.random.default_rng(0).normal(size=(2, 4, 6, 6, 1)).astype("float32")
    (found,) = nern.teacher.logits([first, second])
    np.testing.assert_allclose(found, teacher({"p": first, "q": second}), rtol=1e-5)


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.head = layers.Flatten(), layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.head(self.flatten(x))


def test_a_subclassed_teacher_knows_its_activation(base, images):
    teacher = _Subclassed()
    teacher(images)
    nern = keras_nern.NeRNModel(base, 8, teacher=teacher)
    (found,) = nern.teacher.logits(images)
    np.testing.assert_allclose(found, keras.ops.log(teacher(images)), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _classifier(side=9), r"inputs of the base's shapes, \[\(8, 8, 1\)\].*\(9, 9, 1\)"),
        (lambda: _classifier(classes=4), r"outputs of the base's shapes, \[\(3,\)\].*\[\(4,\)\]"),
        (lambda: keras.Sequential([layers.Dense(3)]), "teacher must be a built keras.Model"),
        (lambda: 3, "teacher must be a keras.Model or a path. Received: teacher=3"),
        (lambda: "missing.keras", "teacher must be .* the path of a .keras file.*missing.keras"),
    ],
)
def test_raises_for_a_teacher_that_does_not_fit(base, make, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.NeRNModel(base, 8, teacher=make())


def test_a_model_is_saved_with_the_path_of_its_teacher(base, images, tmp_path):
    teacher = _classifier()
    teacher.save(tmp_path / "teacher.keras")
    nern = keras_nern.NeRNModel(base, 8, teacher=tmp_path / "teacher.keras")
    nern.save(tmp_path / "nern.keras")
    copy = keras.models.load_model(tmp_path / "nern.keras")
    assert copy.teacher.path == str(tmp_path / "teacher.keras")
    np.testing.assert_allclose(_results(copy, images), _results(nern, images), rtol=1e-5)
    size = (tmp_path / "nern.keras").stat().st_size
    nern.teacher = None
    nern.save(tmp_path / "nern.keras")
    assert size - (tmp_path / "nern.keras").stat().st_size < 1000  # it held no weights
    assert keras.models.load_model(tmp_path / "nern.keras").teacher is None


def test_a_teacher_without_a_file_is_refused_before_any_work_is_lost(base, images, tmp_path):
    nern = keras_nern.NeRNModel(base, 8, teacher=_classifier())
    message = "assign the path of a .keras file or None to nern.teacher before saving.*'other'"
    path = tmp_path / "nern.keras"
    with pytest.raises(ValueError, match=message):
        nern.save(path)
    with pytest.raises(ValueError, match=message):
        nern.fit(images, verbose=0, callbacks=keras.callbacks.ModelCheckpoint(path))
    assert not path.exists()
    weights = tmp_path / "a.weights.h5"
    nern.compile(reconstruction_steps=1)
    checkpoint = keras.callbacks.ModelCheckpoint(weights, save_weights_only=True)
    nern.fit(images, verbose=0, callbacks=checkpoint)
    assert weights.exists()
    nern.export(tmp_path / "nern.nern")
