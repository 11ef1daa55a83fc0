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


# Runs, which have as many slots as the longest of them has kernels.


def _draw(sampler, norms, runs, steps=1):
    """The places of each run that were drawn: an array `(steps, runs, draws)`.

    Asserts that no place is past the end of its run.
    """
    seed = keras.random.SeedGenerator(0)
    cumulative = sampling.cumulative_magnitude(norms)
    count = len(norms)
    drawn = [np.asarray(sampler.sample(count, seed, cumulative, runs)) for _ in range(steps)]
    assert drawn[0].dtype == "int32"
    drawn = np.stack(drawn).reshape(steps, len(runs), -1)
    length = count // len(runs)
    # sorted by run, equally many of each
    np.testing.assert_array_equal(drawn // length, np.arange(len(runs))[:, None] + 0 * drawn)
    places = drawn % length
    assert (places < np.reshape(runs, (-1, 1))).all()
    return places


def _norms(runs):
    """Norms of the slots of runs, 0 past the end of a run."""
    norms = np.random.default_rng(0).uniform(0.1, 1, (len(runs), max(runs)))
    return np.where(np.arange(max(runs)) < np.reshape(runs, (-1, 1)), norms, 0).ravel()


@pytest.mark.parametrize(
    "sampler", [UniformSampling(10), MagnitudeSampling(10, 1.0), MagnitudeSampling(10, 0.0)]
)
@pytest.mark.parametrize("runs", [[20, 20, 20], [20, 1, 7]])
def test_runs_get_equally_many_draws(sampler, runs):
    # 10 rounded up to 12
    assert _draw(sampler, _norms(runs), runs, steps=20).shape == (20, 3, 4)


@pytest.mark.parametrize("sampler", [UniformSampling(40), MagnitudeSampling(40, share=0.0)])
@pytest.mark.parametrize("runs", [[1000] * 4, [1000, 400, 700, 200]])
def test_uniform_draws_are_spread_evenly_over_each_run(sampler, runs):
    lengths = np.reshape(runs, (-1, 1))
    places = np.sort(_draw(sampler, _norms(runs), runs, steps=50), axis=-1)
    # 10 draws of a run, one in each of 10 pieces: neighbors are less than two pieces apart
    gaps = np.diff(np.concatenate([places, places[..., :1] + lengths], axis=-1))
    assert (gaps <= lengths / 5).all()
    # at random within the pieces, and the pieces are shifted
    assert (gaps.std(axis=(0, 2)) > lengths[:, 0] / 50).all()
    assert all(len(np.unique(places[:, run, 0])) > 10 for run in range(4))


@pytest.mark.parametrize("sampler", [UniformSampling(10), MagnitudeSampling(10, share=0.0)])
@pytest.mark.parametrize("runs", [[7, 7], [7, 3], [1, 7]])
def test_uniform_draws_all_places_of_a_run_equally_often(sampler, runs):
    places = _draw(sampler, _norms(runs), runs, steps=200)  # (200, 2, 5)
    for run, length in enumerate(runs):
        shares = np.bincount(places[:, run].ravel(), minlength=length) / 1000
        assert np.abs(shares - 1 / length).max() <= 5 * np.sqrt((length - 1) / length**2 / 1000)
    # the runs are drawn independently
    assert np.mean(places[:, 0, 0] == places[:, 1, 0]) < 0.3


def test_uniform_takes_all_kernels_of_runs_if_they_fit_the_batch():
    seed = keras.random.SeedGenerator(0)
    assert UniformSampling(6).sample(6, seed, None, runs=[2, 1, 2]) is None
    assert UniformSampling(5).sample(6, seed, None, runs=[2, 1, 2]).shape == (6,)
    assert AllKernels().sample(6, seed, None, runs=[2, 1, 2]) is None


@pytest.mark.parametrize("runs", [[4, 4], [4, 2]])
def test_magnitude_draws_by_norm_within_each_run(runs):
    norms = np.array([5.0, 0.0, 1.0, 4.0, 0.3, 0.1, 0.0, 0.0])
    places = _draw(MagnitudeSampling(128, share=1.0), norms, runs, steps=50)
    for run, expected in enumerate([[0.5, 0, 0.1, 0.4], [0.75, 0.25, 0, 0]]):
        drawn = places[:, run].ravel()
        shares = np.bincount(drawn, minlength=4) / drawn.size
        bound = 5 * np.sqrt(np.multiply(expected, np.subtract(1, expected)) / drawn.size)
        assert (np.abs(shares - expected) <= bound).all(), shares


@pytest.mark.parametrize("runs", [[2, 2, 2], [2, 1, 2]])
def test_a_run_of_zero_kernels_is_drawn_from_as_well(runs):
    norms = np.array([1.0, 2, 0, 0, 3, 4])
    assert _draw(MagnitudeSampling(6, share=1.0), norms, runs, steps=20).shape == (20, 3, 2)


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
