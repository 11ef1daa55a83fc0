import keras
import numpy as np
import pytest

from keras_nern.evaluation import ClassReader


def classifier(*head):
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), *head])


HEADS = {
    # outputs, and the classes they stand for
    "logits": (keras.layers.Dense(3), [[0.0, 2.0, 1.0], [0.5, -1.0, 0.0]], [1, 0]),
    "softmax": (keras.layers.Dense(2, "softmax"), [[0.4, 0.6], [0.9, 0.1]], [1, 0]),
    "a sigmoid": (keras.layers.Dense(1, "sigmoid"), [[0.6], [0.4]], [1, 0]),
    "a logit": (keras.layers.Dense(1), [[0.4], [-0.1]], [1, 0]),
}


@pytest.mark.parametrize("head", HEADS)
def test_outputs_become_classes(head):
    layer, outputs, classes = HEADS[head]
    model = classifier(keras.layers.Flatten(), layer)
    reader = ClassReader(model, np.zeros((1, 4, 4, 1)))
    assert reader(np.array(outputs)).tolist() == classes
    assert reader.num_classes == max(2, len(outputs[0]))


def test_refuses_what_is_no_classifier():
    with pytest.raises(ValueError, match=r"one output \(batch, classes\).*\[\(1, 2, 2, 2\)\]"):
        ClassReader(classifier(), np.zeros((1, 4, 4, 1)))
