import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.data.inputs import check_inputs, check_targets, never_ends, steps_per_epoch_of

SHAPE = (4, 4, 3)


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
    assert check_inputs(data, [SHAPE]) is data
    assert steps_per_epoch_of(data) == steps


def test_accepts_other_data_loaders_of_keras_unchecked():
    loader = type("DataLoader", (), {"__module__": "torch.utils.data.dataloader"})
    data = type("Subclass", (loader,), {})()
    assert check_inputs(data, [SHAPE]) is data
    with pytest.raises(ValueError, match=r"x must be arrays, .*Received: x of type Unknown"):
        check_inputs(type("Unknown", (), {})(), [SHAPE])


def test_counts_batches_of_arrays_by_batch_size_and_split():
    assert steps_per_epoch_of(np.zeros((100, 1)), batch_size=10, validation_split=0.25) == 8


def test_a_generator_still_yields_everything():
    seen = [int(images[0, 0, 0, 0]) for images, _ in check_inputs(_generator(3), [SHAPE])]
    assert seen == [0, 1, 2]


def test_accepts_images_of_any_size_if_the_network_does():
    check_inputs(np.zeros((1, 9, 5, 3)), [(None, None, 3)])
    with pytest.raises(ValueError, match=r"\(batch, None, None, 3\).*Received: \(1, 9, 5, 1\)"):
        check_inputs(np.zeros((1, 9, 5, 1)), [(None, None, 3)])


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
        check_inputs(data, [SHAPE], "val")


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
        check_inputs(data, [SHAPE])


def test_raises_for_a_dict():
    dataset = tf.data.Dataset.from_tensors({"label": 1, "image": np.zeros((2, *SHAPE))})
    with pytest.raises(ValueError, match=r"a dict with the keys \['image', 'label'\].*supervised"):
        check_inputs(dataset, [SHAPE])


def test_raises_for_a_missing_batch_axis():
    with pytest.raises(ValueError, match="The batch axis is missing"):
        check_inputs(_dataset(2, batch=None), [SHAPE])


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (np.zeros(3), None, r"as many labels as images. Received: 2 images, .* shape \(3,\)"),
        (np.zeros(2), np.zeros(1), r"as many sample weights as images.* shape \(1,\)"),
        (np.array(["a", "b"]), None, "labels that are real .* Received: labels of type str"),
    ],
)
def test_raises_for_wrong_labels_and_weights(labels, weights, message):
    check_targets(np.zeros((2, *SHAPE)), np.zeros(2), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=f"val must have {message}"):
        check_targets(np.zeros((2, *SHAPE)), labels, weights, "val")


def test_never_ends():
    assert never_ends(_dataset().repeat())
    assert never_ends(_Endless())
    finite = (_dataset(), _unknown_length(_dataset()), _Batches(3), np.ones(3))
    assert not any(map(never_ends, finite))
