import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern import NeRNModel
from keras_nern.training.evaluation import METRICS, _classes_of, _to_classes

# outputs of a network that classifies every pixel
BY_PIXEL = np.array([[[[0.9], [0.2]]], [[[0.7], [0.6]]]], "float32")  # (2 images, 1 x 2 pixels)


@pytest.mark.parametrize(
    ("outputs", "activation", "labels", "accuracy"),
    [
        (BY_PIXEL, "sigmoid", [[[1, 0]], [[1, 0]]], 3 / 4),
        (BY_PIXEL, "sigmoid", [[[[1], [0]]], [[[1], [0]]]], 3 / 4),
        (np.concatenate([1 - BY_PIXEL, BY_PIXEL], -1), "softmax", [[[1, 1]], [[1, 1]]], 3 / 4),
        # several binary labels per image
        ([[0.9, 0.2, 0.6], [0.4, 0.7, 0.1]], "sigmoid", [[1, 0, 0], [1, 1, 0]], 4 / 6),
        ([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], "softmax", [[0, 1, 0], [0, 0, 1]], 1 / 2),
        ([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], "softmax", [1, 2], 1 / 2),
    ],
)
def test_accuracy_of_every_kind_of_output(outputs, activation, labels, accuracy):
    """The kernel of the network is 1, so its outputs are the images after the activation."""
    outputs = np.array(outputs, "float32")
    probabilities = np.maximum(outputs, 1e-6)
    images = np.log(probabilities)
    if activation == "sigmoid":
        images = images - np.log(1 - probabilities)
    images = images.reshape(len(images), -1, 1)
    base = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Conv1D(1, 1, kernel_initializer="ones"),
            keras.layers.Reshape(outputs.shape[1:]),
            keras.layers.Activation(activation),
        ]
    )
    nern = NeRNModel(base, hidden_size=4)
    last = nern.predictor.layers[-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    last.bias.assign(np.ones(last.bias.shape))
    found = nern.evaluate(images, np.array(labels), verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["agreement"] == 1


def _reproduced(base):
    """A representation whose predictor is made to reproduce the base, whose kernels are equal."""
    nern = NeRNModel(base, hidden_size=4, num_layers=2)
    last = nern.predictor.layers[-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    last.bias.assign(np.full(last.bias.shape, next(iter(nern.original_kernels().values())).flat[0]))
    return nern


def _two_outputs(structure="list"):
    """Two outputs of other names than their order, of three and of five classes."""
    inputs = keras.Input((2, 2, 1), name="image")
    x = keras.layers.Conv2D(1, 1, kernel_initializer="ones")(inputs)
    x = keras.layers.Flatten()(x)
    zebra, ape = (keras.layers.Dense(n, name=name)(x) for n, name in ((3, "zebra"), (5, "ape")))
    return keras.Model(inputs, [zebra, ape] if structure == "list" else {"z": zebra, "a": ape})


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_labels_are_matched_with_outputs_by_name(structure):
    nern = _reproduced(_two_outputs(structure))
    images = np.random.default_rng(0).normal(size=(9, 2, 2, 1)).astype("float32")
    outputs = nern.predict(images, verbose=0)
    names = ("zebra", "ape") if structure == "list" else ("z", "a")
    if structure == "list":
        outputs = dict(zip(names, outputs, strict=True))
    labels = {name: outputs[name].argmax(axis=-1) for name in names}
    for order in (names, names[::-1]):
        given = {name: labels[name] for name in order}
        dataset = tf.data.Dataset.from_tensor_slices(({"image": images}, given)).batch(4)
        for data in ((images, given), (dataset,)):
            assert nern.evaluate(*data, verbose=0, return_dict=True)["accuracy"] == 1
    if structure == "list":
        in_order = [labels["zebra"], np.eye(5)[labels["ape"]]]
        assert nern.evaluate(images, in_order, verbose=0, return_dict=True)["accuracy"] == 1
    wrong = {**labels, names[0]: (labels[names[0]] + 1) % 3}
    assert nern.evaluate(images, wrong, verbose=0, return_dict=True)["accuracy"] == 0.5


def test_labels_of_every_type(base, images):
    nern = NeRNModel(base, hidden_size=4)
    classes = nern.predict(images, verbose=0).argmax(axis=-1)
    one_hot = np.eye(3)[classes]
    forms = [classes.astype(dtype) for dtype in ("uint8", "int64", "float32")]
    forms += [classes[:, None], one_hot, one_hot.astype(bool), 0.8 * one_hot + 0.1]
    for labels in forms:
        assert nern.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] == 1


def test_labels_of_other_shapes_than_the_outputs_are_not_broadcast():
    predicted = keras.ops.zeros((3, 3), "int32")
    with pytest.raises(ValueError, match=r"of shape \(3,\) for classes of shape \(3, 3\)"):
        _to_classes(np.zeros(3), predicted)


def test_an_output_of_nan_agrees_with_no_class():
    logits = np.array([[0.0, 1.0], [np.nan, 0.0], [1.0, -np.inf]])
    np.testing.assert_array_equal(_classes_of(keras.ops.convert_to_tensor(logits)), [1, -1, 0])


def _top2(name):
    return keras.metrics.SparseTopKCategoricalAccuracy(2, name=name)


def test_compiled_metrics_keep_their_names_unless_the_model_uses_them(base, images, labels):
    nern = NeRNModel(base, hidden_size=4)
    nern.compile(metrics=[_top2("accuracy"), _top2("agreement")], weighted_metrics=[_top2("top2")])
    found = nern.evaluate(images, labels, batch_size=5, verbose=0, return_dict=True)
    probabilities = nern.predict(images, verbose=0)
    top = np.mean([y in row for y, row in zip(labels, probabilities.argsort()[:, 1:], strict=True)])
    for name in ("compiled_accuracy", "compiled_agreement", "top2"):
        assert found[name] == pytest.approx(top)
    assert found["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    assert set(found) - {*METRICS, "top2"} == {"compiled_accuracy", "compiled_agreement"}
    values = nern.evaluate(images, labels, batch_size=5, verbose=0)
    assert dict(zip(nern.metrics_names, values, strict=True)) == pytest.approx(found)
    unlabeled = nern.evaluate(images, verbose=0)
    assert len(unlabeled) == len(nern.metrics_names)
    assert not {"accuracy", "top2", "compiled_accuracy"} & set(nern.metrics_names)


@pytest.mark.parametrize(
    ("structure", "metrics", "expected"),
    [
        ("list", {"ape": [_top2("top2")], "zebra": [_top2("top2")]}, {"ape_top2", "zebra_top2"}),
        ("list", {"ape": [_top2("top2")]}, {"ape_top2"}),
        ("dict", {"z": [_top2("accuracy")], "a": [_top2("top2")]}, {"z_accuracy", "a_top2"}),
    ],
)
def test_compiled_metrics_are_matched_with_outputs_by_name(structure, metrics, expected):
    nern = _reproduced(_two_outputs(structure))
    nern.compile(metrics=metrics)
    images = np.random.default_rng(0).normal(size=(9, 2, 2, 1)).astype("float32")
    large, small = np.arange(9) % 5, np.arange(9) % 3
    labels = {"ape": large, "zebra": small} if structure == "list" else {"a": large, "z": small}
    found = nern.evaluate(images, labels, verbose=0, return_dict=True)
    assert set(found) - set(METRICS) == expected
    if structure == "list":
        logits = nern.predict(images, verbose=0)[1]
        top = [y in row for y, row in zip(large, logits.argsort()[:, -2:], strict=True)]
        assert found["ape_top2"] == pytest.approx(np.mean(top))
