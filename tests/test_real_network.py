"""A short fit of a trained ResNet20 on real images."""

import keras
import numpy as np
import pytest

import keras_nern


def test_a_short_fit_represents_resnet20(cifar10, resnet_weights):
    images, labels = (part[:300] for part in cifar10)
    base = keras_nern.models.resnet_cifar(20)
    keras_nern.models.load_torch_weights(base, resnet_weights(20))
    before = base.get_weights()
    nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
    assert nern.summary_table().blocks == 32_304
    nern.compile(reconstruction_steps=300)
    history = nern.fit(
        images, labels, batch_size=50, epochs=2, validation_data=(images, labels), verbose=0
    ).history
    # An untrained predictor has an error of 1 and the accuracy of chance, 0.1.
    assert history["val_relative_error"][-1] < 0.3
    assert history["val_agreement"][-1] > 0.5
    assert history["val_accuracy"][-1] > 0.5
    rebuilt = nern.reconstruct()
    assert isinstance(rebuilt, keras.Model)
    classes = rebuilt.predict(images, batch_size=300, verbose=0).argmax(axis=1)
    # The two graphs round differently, which may change one of the 300 classes.
    assert np.mean(classes == labels) == pytest.approx(history["val_accuracy"][-1], abs=0.0034)
    for a, b in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
