import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nern.data.inputs import examine, never_ends, steps_in

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


def _unknown(dataset):
    return dataset.filter(lambda *_: True)


def _untold(dataset):
    """The same elements, their shapes unknown before they are read."""
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
        (_unknown(_dataset()), None),
        (_untold(_dataset()), 3),
        (_dataset().repeat(), None),
        (_Batches(7), 7),
        ((np.zeros((65, *SHAPE)), np.zeros(65)), 3),
    ],
)
def test_takes_what_keras_takes_and_counts_its_batches(data, steps):
    assert examine(data, [SHAPE]) is data
    assert steps_in(data) == steps


def test_leaves_what_else_keras_reads_batches_from_to_keras():
    loader = type("DataLoader", (), {"__module__": "torch.utils.data.dataloader"})
    data = type("OfMine", (loader,), {})()
    assert examine(data, [SHAPE]) is data
    with pytest.raises(ValueError, match=r"x must be arrays, .*Received: x of type OfNobody"):
        examine(type("OfNobody", (), {})(), [SHAPE])


def test_counts_arrays_by_batch_size_and_split():
    assert steps_in(np.zeros((100, 1)), batch_size=10, validation_split=0.25) == 8


def test_a_generator_still_yields_everything():
    seen = [int(images[0, 0, 0, 0]) for images, _ in examine(_generator(3), [SHAPE])]
    assert seen == [0, 1, 2]


def test_any_size_will_do_where_the_network_takes_any():
    examine(np.zeros((1, 9, 5, 3)), [(None, None, 3)])
    with pytest.raises(ValueError, match=r"\(batch, None, None, 3\).*Received: \(1, 9, 5, 1\)"):
        examine(np.zeros((1, 9, 5, 1)), [(None, None, 3)])


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (np.zeros((0, *SHAPE)), r"arrays of shapes \[\(0, 4, 4, 3\)\]"),
        (_dataset(0), "a tf.data.Dataset without elements"),
        (_unknown(_dataset(0)), "a tf.data.Dataset without elements"),
        (_Batches(0), "a PyDataset without batches"),
        (_generator(0), "a generator that yields nothing"),
    ],
)
def test_refuses_nothing(data, received):
    with pytest.raises(ValueError, match=f"val must give at least one batch.*Received: {received}"):
        examine(data, [SHAPE], "val")


OTHER = (5, 4, 3)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, *OTHER)),
        (np.zeros((2, *OTHER)), np.zeros(2)),
        _dataset(2, OTHER),
        _dataset(2, OTHER, labels=False),
        _untold(_dataset(2, OTHER)),
        _Batches(1, OTHER),
        _generator(1, OTHER),
    ],
)
def test_refuses_other_images(data):
    message = r"x must give images of shape \(batch, 4, 4, 3\).*Received: \((2|None), 5, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        examine(data, [SHAPE])


def test_refuses_a_dict():
    dataset = tf.data.Dataset.from_tensors({"label": 1, "image": np.zeros((2, *SHAPE))})
    with pytest.raises(ValueError, match=r"a dict with the keys \['image', 'label'\].*supervised"):
        examine(dataset, [SHAPE])


def test_tells_what_never_ends():
    assert never_ends(_dataset().repeat())
    assert never_ends(_Endless())
    assert not any(map(never_ends, (_dataset(), _unknown(_dataset()), _Batches(3), np.ones(3))))


def test_names_a_missing_batch_dimension():
    with pytest.raises(ValueError, match="batch dimension is missing"):
        examine(_dataset(2, batch=None), [SHAPE])
