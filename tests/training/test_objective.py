import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.network.moments import second_moments


@pytest.mark.traced
def test_the_layer_output_loss_matches_the_layers_outputs(base, images):
    nern = keras_nern.NeRNModel(base, hidden_size=24)
    nern.compile(reconstruction_weight=0.0, layer_output_weight=1.0, kernel_sampling="all")
    with pytest.raises(ValueError, match=r"call gather_second_moments\(images\) before fit"):
        nern.fit(steps_per_epoch=1)
    nern.gather_second_moments(images)
    history = nern.fit(steps_per_epoch=100, epochs=2, verbose=0).history
    assert set(history) == {"loss", "reconstruction_loss", "relative_error", "layer_output_loss"}
    np.testing.assert_allclose(history["loss"], history["layer_output_loss"], rtol=1e-6)
    expected = 0.0
    for name, kernel in nern.predict_kernels().items():  # run each layer with both kernels
        given = keras.Model(base.input, base.get_layer(name).input)(images)
        scale = 1.0
        if name != "shortcut":
            bn = base.get_layer(f"{name}_bn")
            scale = bn.gamma / tf.sqrt(bn.moving_variance + bn.epsilon)
        original = base.get_layer(name).kernel
        change, whole = (
            tf.nn.conv2d(given, weights, 1, "SAME") * scale
            for weights in (kernel - original, original)
        )
        expected += float(tf.reduce_sum(change**2) / tf.reduce_sum(whole**2))
    last = nern.fit(steps_per_epoch=1, verbose=0).history["layer_output_loss"][0]
    assert last == pytest.approx(expected, rel=1e-3)
    assert last < 0.1 * history["layer_output_loss"][0]


@pytest.mark.traced
def test_the_reconstruction_loss_trains_layers_without_moments(images):
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.Flatten(),
        ]
    )
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.gather_second_moments(images)
    nern.compile(layer_output_weight=1.0, kernel_sampling="all")
    history = nern.fit(steps_per_epoch=60, epochs=2, verbose=0).history
    assert history["layer_output_loss"][1] < history["layer_output_loss"][0] < 2
    assert all(error < 1 for error in nern.layer_errors().values())


@pytest.mark.parametrize("experts", [1, 3])
def test_sampled_kernels_have_the_gradients_of_all_kernels(base, images, experts):
    class Every(keras_nern.AllKernels):
        """A batch in which every kernel is drawn once."""

        def sample(self, count, seed, cumulative=None):
            assert count == (52 if experts == 1 else 54)
            return keras.ops.arange(count, dtype="int32")

    def change(sampling):
        keras.utils.set_random_seed(2)
        nern = keras_nern.NeRNModel(base, hidden_size=8, experts=experts)
        nern.gather_second_moments(images)
        nern.compile(
            optimizer=keras.optimizers.SGD(1.0), layer_output_weight=1.0, kernel_sampling=sampling
        )
        before = [weight.numpy() for weight in nern.trainable_variables]
        nern.fit(steps_per_epoch=1, verbose=0)
        return [a - b.numpy() for a, b in zip(before, nern.trainable_variables, strict=True)]

    for a, b in zip(change(Every()), change("all"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("permutation", [None, "cross_filter"])
def test_kernels_are_drawn_by_their_own_norms(base, permutation):
    """With local predictors as well, which number kernels by slots."""
    for experts in (1, 3):
        nern = keras_nern.NeRNModel(base, 4, 3, permutation=permutation, experts=experts)
        nern.kernel_sampling = keras_nern.MagnitudeSampling(20)
        nern._objective.refresh_targets(nern._settings)
        representation, blocks = nern._representation, nern._original.blocks
        values, _ = blocks.take(blocks.weights(), representation.block_of_slots())
        norms = np.linalg.norm(values, axis=1)
        drawn = np.diff(nern._objective._cumulative.numpy(), prepend=0)
        np.testing.assert_allclose(drawn, norms / norms.sum(), atol=1e-6)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("pair", "dataset", "generator")]


@pytest.mark.parametrize("kind", ["array", "noise", *SLOW])
def test_moments_are_gathered_from_all_data_that_fit_accepts(base, images, labels, kind):
    data = {
        "array": images,
        "pair": (images, labels),
        "dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(5).repeat(),
        "noise": keras_nern.NoiseDataset(base, steps=2, batch_size=6),
        "generator": (images[start : start + 4] for start in (0, 4, 8)),
    }[kind]
    nern = keras_nern.NeRNModel(base, hidden_size=8)
    nern.gather_second_moments(data, images=11, batch_size=5)
    used = images if kind != "noise" else np.concatenate([data[0], data[1]])
    expected = second_moments(base, nern._original.blocks.kernels, [used[:11]])
    for gathered, wanted in zip(nern._objective._moments, expected, strict=True):
        np.testing.assert_allclose(gathered, wanted.moments, rtol=1e-4, atol=1e-5)


def test_raises_for_images_of_another_shape(nern):
    with pytest.raises(ValueError, match=r"x must contain images of shape \(batch, 8, 8, 1\)"):
        nern.gather_second_moments(np.zeros((3, 9, 8, 1)))
