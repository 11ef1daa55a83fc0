import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.data.inputs import (
    check_inputs,
    check_targets,
    input_batches,
    is_pair,
    never_ends,
    steps_per_epoch_of,
    unpack,
    unpack_validation,
)
from keras_nern.network.signature import Signature

SHAPE = (4, 4, 3)
ONE = Signature({"image": SHAPE}, {"class": (5,)})
TWO = Signature({"image": SHAPE, "age": (1,)}, {"class": (5,)}, "list")
TWO_BY_KEY = Signature({"age": (1,), "image": SHAPE}, {"class": (5,)}, "dict")


class _Batches(keras.utils.PyDataset):
    def __init__(self, count, shape=SHAPE):
        super().__init__()
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.zeros((2, *self.shape)), np.zeros(2)


class _Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return np.zeros((2, *SHAPE))


def _dataset(count=5, shape=SHAPE, labels=True, batch=2):
    images = np.zeros((count, *shape), "uint8")
    data = (images, np.zeros(count)) if labels else images
    dataset = tf.data.Dataset.from_tensor_slices(data)
    return dataset.batch(batch) if batch else dataset


def _unknown_length(dataset):
    return dataset.filter(lambda *_: True)


def _unknown_shapes(dataset):
    """The same elements, whose shapes are unknown until they are read."""
    return dataset.map(lambda x, y: tf.py_function(lambda *xy: xy, [x, y], [x.dtype, y.dtype]))


def _generator(count, shape=SHAPE):
    for i in range(count):
        yield np.full((2, *shape), i), np.zeros(2)


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (np.zeros((65, *SHAPE)), 3),
        (_dataset(), 3),
        (_dataset(labels=False), 3),
        (_unknown_length(_dataset()), None),
        (_unknown_shapes(_dataset()), 3),
        (_dataset().repeat(), None),
        (_Batches(7), 7),
        ((np.zeros((65, *SHAPE)), np.zeros(65)), 3),
    ],
)
def test_accepts_the_data_of_keras_and_counts_batches(data, steps):
    assert check_inputs(data, ONE) is data
    assert steps_per_epoch_of(data) == steps


def test_accepts_other_data_loaders_of_keras_unchecked():
    loader = type("DataLoader", (), {"__module__": "torch.utils.data.dataloader"})
    data = type("Subclass", (loader,), {})()
    assert check_inputs(data, ONE) is data
    with pytest.raises(ValueError, match=r"x must be arrays, .*Received: x of type Unknown"):
        check_inputs(type("Unknown", (), {})(), ONE)


def test_counts_batches_of_arrays_by_batch_size_and_split():
    assert steps_per_epoch_of(np.zeros((100, 1)), batch_size=10, validation_split=0.25) == 8


def test_a_generator_still_yields_everything():
    seen = [int(images[0, 0, 0, 0]) for images, _ in check_inputs(_generator(3), ONE)]
    assert seen == [0, 1, 2]


ANY_SIZE = Signature({"image": (None, None, 3)})


def test_accepts_images_of_any_size_if_the_network_does():
    check_inputs(np.zeros((1, 9, 5, 3)), ANY_SIZE)
    with pytest.raises(ValueError, match=r"\(batch, None, None, 3\).*Received: \(1, 9, 5, 1\)"):
        check_inputs(np.zeros((1, 9, 5, 1)), ANY_SIZE)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (np.zeros((0, *SHAPE)), r"arrays of shapes \[\(0, 4, 4, 3\)\]"),
        (_dataset(0), "a tf.data.Dataset without elements"),
        (_unknown_length(_dataset(0)), "a tf.data.Dataset without elements"),
        (_Batches(0), "a PyDataset without batches"),
        (_generator(0), "a generator that yields nothing"),
    ],
)
def test_raises_for_empty_data(data, received):
    with pytest.raises(
        ValueError, match=f"val must contain at least one batch.*Received: {received}"
    ):
        check_inputs(data, ONE, "val")


OTHER = (5, 4, 3)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, *OTHER)),
        (np.zeros((2, *OTHER)), np.zeros(2)),
        _dataset(2, OTHER),
        _dataset(2, OTHER, labels=False),
        _unknown_shapes(_dataset(2, OTHER)),
        _Batches(1, OTHER),
        _generator(1, OTHER),
    ],
)
def test_raises_for_images_of_another_shape(data):
    message = r"x must contain images of shape \(batch, 4, 4, 3\).*Received: \((2|None), 5, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        check_inputs(data, ONE)


class _Elements(keras.utils.PyDataset):
    def __init__(self, element):
        super().__init__()
        self.element = element

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.element


# Inputs, and optionally labels, in all forms in which they come.
FORMS = {
    "arrays": lambda *element: element if len(element) > 1 else element[0],
    "dataset": lambda *e: tf.data.Dataset.from_tensors(e if len(e) > 1 else e[0]),
    "generator": lambda *e: (one for one in [e if len(e) > 1 else e[0]]),
    "PyDataset": lambda *element: _Elements(element if len(element) > 1 else element[0]),
}
IMAGES, AGES, CLASSES = np.ones((2, *SHAPE), "float32"), np.ones((2, 1)), np.array([0, 4])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("inputs", "signature"),
    [
        ({"image": IMAGES}, ONE),
        ({"age": AGES, "image": IMAGES}, TWO),
        ({"image": IMAGES, "age": AGES}, TWO),
        ({"image": IMAGES, "age": AGES}, TWO_BY_KEY),
        ((IMAGES, AGES), TWO),
    ],
)
def test_accepts_inputs_by_name_in_any_order(form, inputs, signature):
    check_inputs(form(inputs, CLASSES), signature, label_shapes=signature.outputs)
    if isinstance(inputs, dict):  # an element of two arrays would be inputs and labels
        check_inputs(form(inputs), signature)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("inputs", "signature", "message"),
    [
        ({"picture": IMAGES}, ONE, r"inputs named \['image'\]. Received: .* \['picture'\]$"),
        (
            {"image": IMAGES, "label": CLASSES},
            ONE,
            r"named \['image'\]. Received: .* \['image', 'label'\] \(tfds.load .*supervised=True\)",
        ),
        ({"image": IMAGES}, TWO, r"inputs named \['age', 'image'\]. Received: .* \['image'\]$"),
        ({"image": AGES, "age": IMAGES}, TWO, r"Received: \(2, 1\), \(2, 4, 4, 3\)"),
        ({"image": IMAGES[0], "age": AGES}, TWO, r"Received: \(4, 4, 3\), \(2, 1\)"),
        ((IMAGES,), TWO, r"inputs for \['image', 'age'\]. Received: 1 arrays"),
        (
            [AGES, IMAGES],
            TWO_BY_KEY,
            r"a dict of inputs named \['age', 'image'\], .*type (list|tuple)",
        ),
    ],
)
def test_raises_for_inputs_of_other_names_or_ranks(form, inputs, signature, message):
    if isinstance(inputs, list) and form is FORMS["dataset"]:
        inputs = tuple(inputs)  # a list would be stacked
    with pytest.raises(ValueError, match=f"val must (have|be|contain) .*{message}"):
        check_inputs(form(inputs, CLASSES), signature, "val")


def test_pairs_are_told_from_several_inputs():
    assert is_pair((IMAGES, CLASSES), ONE)
    assert is_pair([{"image": IMAGES}, CLASSES], ONE)
    assert not is_pair((IMAGES, AGES), TWO)
    assert is_pair(([IMAGES, AGES], CLASSES), TWO)
    assert is_pair(({"image": IMAGES, "age": AGES}, CLASSES, CLASSES), TWO)
    assert not is_pair((IMAGES,), ONE)
    assert not is_pair(_dataset(labels=False), ONE)
    assert is_pair(_dataset(), ONE)
    assert unpack((IMAGES,), None, None, ONE) == (IMAGES, None, None)
    inputs = [IMAGES, AGES]
    assert unpack((inputs, CLASSES), None, None, TWO) == (inputs, CLASSES, None)
    assert unpack(inputs, CLASSES, None, TWO) == (inputs, CLASSES, None)


def test_validation_data_are_split_as_keras_splits_them():
    inputs = {"image": IMAGES}
    assert unpack_validation((inputs, CLASSES)) == (inputs, CLASSES, None)
    assert unpack_validation([IMAGES, AGES]) == (IMAGES, AGES, None)
    assert unpack_validation(IMAGES) == (IMAGES, None, None)
    with pytest.raises(ValueError, match=r"validation_data must be x, \(x, y\).*: 4 elements"):
        unpack_validation((IMAGES,) * 4)


@pytest.mark.parametrize("signature", [TWO, TWO_BY_KEY])
def test_batches_of_inputs_have_the_structure_that_the_network_takes(signature):
    images = np.arange(5, dtype="float32")[:, None, None, None] * np.ones(SHAPE, "float32")
    inputs = {"image": images, "age": np.arange(5.0)[:, None]}
    parts = {"arrays": (inputs, CLASSES), "dataset": tf.data.Dataset.from_tensor_slices(inputs)}
    parts["dataset"] = parts["dataset"].batch(2)
    for data in parts.values():
        batches = list(input_batches(data, count=3, batch_size=2, signature=signature))
        assert [type(batch) for batch in batches] == [dict if signature is TWO_BY_KEY else list] * 2
        by_name = [signature.ordered(batch) for batch in batches]
        seen = {name: [] for name in signature.inputs}
        for batch in by_name:
            for name, array in zip(signature.inputs, batch, strict=True):
                seen[name] += np.asarray(array).reshape(len(array), -1)[:, 0].tolist()
        assert seen == {"image": [0, 1, 2], "age": [0, 1, 2]}


NOT_NUMBERS = {
    "NaN": (
        np.where(np.arange(2)[:, None, None, None] == 1, np.nan, IMAGES),
        "infinity in image 1",
    ),
    "infinity": (np.full_like(IMAGES, np.inf), "NaN or infinity in image 0"),
    "too large": (np.full(IMAGES.shape, 1e300), "NaN or infinity in image 0"),
    "float16": (np.full(IMAGES.shape, np.inf, "float16"), "NaN or infinity in image 0"),
    "complex": (IMAGES.astype("complex64"), "real numbers in dense .* type complex64"),
    "ragged": (tf.RaggedTensor.from_row_lengths(IMAGES[0], [4]), "type float32 in a RaggedTensor"),
    "sparse": (tf.sparse.from_dense(IMAGES), "type float32 in a SparseTensor"),
    "objects": (np.full(IMAGES.shape, None), "type object in a ndarray"),
}


@pytest.mark.parametrize(("images", "message"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_raises_for_images_that_are_not_finite_numbers(images, message):
    is_object = isinstance(images, np.ndarray) and images.dtype.hasobject
    forms = [FORMS["arrays"]] if is_object else FORMS.values()
    for form in forms:
        with pytest.raises(ValueError, match=f"x must have images .*{message}"):
            check_inputs(form(images, CLASSES[: images.shape[0]]), ANY_SIZE)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16", "float64", "bfloat16"])
def test_accepts_images_of_every_numeric_type(dtype):
    check_inputs(tf.cast(IMAGES, dtype), ONE)


def test_later_chunks_of_an_array_are_checked(monkeypatch):
    monkeypatch.setattr("keras_nern.data.inputs.FINITE_CHUNK", 100)  # two images at once
    images = np.zeros((7, *SHAPE))
    images[6, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in image 6"):
        check_inputs(images, ONE)


def test_a_network_that_does_not_know_its_inputs_is_tried_out():
    seen = []

    def try_out(inputs):
        seen.append(inputs)
        if inputs.shape[-1] != 3:
            raise KeyError("channels")
        return {"class": (5,)}

    def check(form, images, labels):
        if form is FORMS["arrays"]:  # a pair might be two inputs
            check_inputs(images, Signature(), try_out=try_out, labels=labels)
        else:
            check_inputs(form(images, labels), Signature(), try_out=try_out)

    for form in FORMS.values():
        check(form, IMAGES, CLASSES)
        with pytest.raises(ValueError, match=r"(x|y) must have labels from 0 to 4.*: \[5.0\]"):
            check(form, IMAGES, CLASSES + 1)
        with pytest.raises(
            ValueError, match=r"x must have inputs that .* \(KeyError: 'channels'\)$"
        ):
            check(form, IMAGES[..., :2], CLASSES)
    assert all(one.shape[-1] in (2, 3) for one in seen)


def test_raises_for_a_missing_batch_axis():
    with pytest.raises(ValueError, match="The batch axis is missing"):
        check_inputs(_dataset(2, batch=None), ONE)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (np.zeros(3), None, r"as many labels as images. Received: 2 images, .* shape \(3,\)"),
        (np.zeros(2), np.zeros(1), r"as many sample weights as images.* shape \(1,\)"),
        (np.array(["a", "b"]), None, "labels that are real .* Received: labels of type str"),
        (np.zeros(2), np.full(2, np.nan), "sample weights of finite numbers"),
    ],
)
def test_raises_for_wrong_labels_and_weights(labels, weights, message):
    check_targets(np.zeros((2, *SHAPE)), np.zeros(2), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=f"val must have {message}"):
        check_targets(np.zeros((2, *SHAPE)), labels, weights, "val")


# Outputs by the shape of their logits, with labels that suit them and others that do not.
LABELS = {
    "classes": (
        (5,),
        [[0, 4], [[0], [4]], np.eye(5)[:2], [0.0, 4.0], np.array([0, 4], "uint8")],
        {
            "from 0 to 4.*: \\[5.0\\]": [0, 5],
            "from 0 to 4.*: \\[-1.0\\]": [-1, 0],
            "from 0 to 4.*: \\[0.5\\]": [0.5, 1],
            "of finite numbers": [np.nan, 0],
            "shapes .*: labels of shape \\(2, 1, 1\\)": [[[0]], [[4]]],
            "shapes .*: labels of shape \\(2, 4\\)": np.eye(5)[:2, :4],
        },
    ),
    "two classes": (
        (2,),
        [[0, 1], [[0], [1]], [True, False], [0.25, 0.75], np.eye(2)],
        {"from 0 to 1.*: \\[2.0\\]": [0, 2], "from 0 to 1.*: \\[-0.5\\]": [-0.5, 1]},
    ),
    "several independent classes": (
        (3, 2),
        [np.eye(3)[:2], np.eye(3, dtype=bool)[:2], 0.9 * np.eye(3)[:2]],
        {
            "shapes .*: labels of shape \\(2,\\)": [0, 2],
            "shapes .*: labels of shape \\(2, 1\\)": [[0], [1]],
            "from 0 to 1.*: \\[2.0\\]": 2 * np.eye(3)[:2],
        },
    ),
    "pixels": (
        (4, 4, 5),
        [np.ones((2, 4, 4)), np.ones((2, 4, 4, 1)), np.ones((2, 4, 4, 5))],
        {
            "shapes .*: labels of shape \\(2,\\)": [0, 4],
            "from 0 to 4.*: \\[255.0\\]": np.full((2, 4, 4), 255),
        },
    ),
}


@pytest.mark.parametrize(("shape", "good", "bad"), LABELS.values(), ids=LABELS)
def test_labels_are_classes_of_the_outputs(shape, good, bad):
    for form in FORMS.values():
        for labels in good:
            check_inputs(form(IMAGES, np.asarray(labels)), ONE, "val", {"out": shape})
        for message, labels in bad.items():
            if "finite" in message and form is not FORMS["arrays"]:
                message = "from 0 to 4"
            with pytest.raises(ValueError, match=f"val must have labels .*{message}"):
                check_inputs(form(IMAGES, np.asarray(labels)), ONE, "val", {"out": shape})


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_labels_are_matched_with_outputs_by_name(form):
    shapes = {"zebra": (3,), "ape": (5,)}
    zebra, ape = np.array([0, 2]), np.array([4, 3])
    for labels in ({"ape": ape, "zebra": zebra}, {"zebra": zebra, "ape": ape}, (zebra, ape)):
        check_inputs(form(IMAGES, labels), ONE, "x", shapes)
    for labels, message in (
        ({"ape": zebra, "zebra": ape}, r"labels from 0 to 2, the classes of the output 'zebra'"),
        ({"ape": ape}, r"labels named \['ape', 'zebra'\]. Received: labels named \['ape'\]"),
        ({"apes": ape, "zebra": zebra}, r"Received: labels named \['apes', 'zebra'\]"),
        (zebra, r"labels for \['zebra', 'ape'\]. Received: 1 arrays of labels"),
    ):
        with pytest.raises(ValueError, match=f"x must have .*{message}"):
            check_inputs(form(IMAGES, labels), ONE, "x", shapes)


def test_a_dataset_is_refused_by_its_shapes_before_it_is_read():
    def read(*element):
        raise AssertionError("the dataset was read")

    data = tf.data.Dataset.from_tensors((IMAGES, np.zeros((2, 1, 1))))
    data = data.map(lambda *e: tf.numpy_function(read, e, (tf.float32, tf.float64)))
    data = data.map(lambda x, y: (tf.ensure_shape(x, IMAGES.shape), tf.ensure_shape(y, (2, 1, 1))))
    with pytest.raises(ValueError, match=r"Received: labels of shape \(2, 1, 1\)"):
        check_inputs(data, ONE, "x", ONE.outputs)


def test_never_ends():
    assert never_ends(_dataset().repeat())
    assert never_ends(_Endless())
    finite = (_dataset(), _unknown_length(_dataset()), _Batches(3), np.ones(3))
    assert not any(map(never_ends, finite))
