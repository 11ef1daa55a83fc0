import keras
import numpy as np
import pytest

from keras_nern import NeRNModel

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
