import keras
import numpy as np
import pytest

from keras_nern.training import sampling
from keras_nern.training.sampling import AllKernels, MagnitudeSampling, UniformSampling

NORMS = np.array([5.0, 0.0, 1.0, 4.0])


def _frequencies(sampler, draws):
    seed = keras.random.SeedGenerator(0)
    cumulative = sampling.cumulative_magnitude(NORMS)
    indices = np.concatenate([sampler.sample(4, seed, cumulative) for _ in range(draws)])
    return np.bincount(indices, minlength=4) / indices.size, indices.size


def _assert_frequencies(sampler, expected, draws=200):
    got, n = _frequencies(sampler, draws)
    # five standard deviations of a binomial share
    bound = 5 * np.sqrt(np.multiply(expected, np.subtract(1, expected)) / n)
    assert (np.abs(got - expected) <= bound).all(), got


def test_cumulative_magnitude_by_hand():
    np.testing.assert_allclose(sampling.cumulative_magnitude(NORMS), [0.5, 0.5, 0.6, 1.0])


def test_all_zero_kernels_are_equally_likely():
    np.testing.assert_allclose(sampling.cumulative_magnitude(np.zeros(2)), [0.5, 1.0])


def test_all_kernels_returns_none():
    assert AllKernels().sample(3, keras.random.SeedGenerator(0)) is None


def test_uniform_draws_all_kernels_equally_often():
    _assert_frequencies(UniformSampling(3), [0.25] * 4, draws=1000)


def test_uniform_takes_all_kernels_if_they_fit_the_batch():
    seed = keras.random.SeedGenerator(0)
    assert UniformSampling(4).sample(4, seed) is None
    assert UniformSampling(3).sample(4, seed).shape == (3,)


def test_magnitude_draws_by_norm_and_never_a_zero_kernel():
    _assert_frequencies(MagnitudeSampling(64, share=1.0), [0.5, 0.0, 0.1, 0.4])


def test_share_is_a_share_of_steps():
    sampler = MagnitudeSampling(512, share=0.5)
    seed = keras.random.SeedGenerator(0)
    cumulative = sampling.cumulative_magnitude(NORMS)
    zero_drawn = [1 in np.asarray(sampler.sample(4, seed, cumulative)) for _ in range(200)]
    # a uniform step of 512 draws misses kernel 1 with a probability of 0.75^512 = 1e-64
    assert abs(np.mean(zero_drawn) - 0.5) < 5 * np.sqrt(0.25 / 200)


def test_draws_differ_between_steps_and_depend_on_the_seed():
    def draw():
        seed = keras.random.SeedGenerator(7)
        return [np.asarray(UniformSampling(32).sample(1000, seed)) for _ in range(2)]

    (first, second), (again, _) = draw(), draw()
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("sampler", [UniformSampling(7), MagnitudeSampling(7, 0.3), AllKernels()])
def test_serialization(sampler):
    config = keras.saving.serialize_keras_object(sampler)
    again = sampling.get(config)
    assert type(again) is type(sampler)
    assert again.get_config() == sampler.get_config()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("all", AllKernels), ("uniform", UniformSampling), ("magnitude", MagnitudeSampling)],
)
def test_get_by_name(name, kind):
    assert type(sampling.get(name)) is kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformSampling(0), "batch_size must be an integer of at least 1. Received.*=0"),
        (lambda: UniformSampling(10.0), "batch_size must be an integer of .* batch_size=10.0"),
        (lambda: MagnitudeSampling(4, 1.5), "share must be a number in .*: share=1.5"),
        (
            lambda: MagnitudeSampling(2).sample(9, keras.random.SeedGenerator(0)),
            "MagnitudeSampling needs cumulative.* Received: cumulative=None",
        ),
        (lambda: sampling.get("best"), r"sampling must be one of \['all', .*sampling='best'"),
    ],
)
def test_raises_for_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
