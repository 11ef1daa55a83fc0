"""Scores against hand-derived ones, and pruning against loops over filters and channels."""

import math

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.analysis import plots
from keras_nern.analysis.importance import MEASURES

layers = keras.layers


@pytest.fixture
def constant():
    """A representation that predicts (1, 2) for every kernel of a Conv1D."""
    base = keras.Sequential(
        [
            keras.Input((6, 2)),
            layers.Conv1D(2, 2, name="conv"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, name="fc"),
        ]
    )
    kernel = np.zeros((2, 2, 2), "float32")  # (places, channels, filters)
    kernel[:, 0, 0] = 1, 2
    kernel[:, 1, 0] = 3, 4
    kernel[:, 1, 1] = 4, -2
    base.get_layer("conv").kernel.assign(kernel)
    nern = keras_nern.NeRNModel(base, hidden_size=4)
    last = nern.predictor.layers[-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    last.bias.assign([1.0, 2.0])
    return nern


# (1, 2) is right; (3, 4) is off by (2, 2), (0, 0) by (-1, -2), (4, -2) by (3, -4).
BY_HAND = {
    "relative": [[0, -math.sqrt(8) / 5], [-math.inf, -5 / math.sqrt(20)]],
    "absolute": [[0, -2], [-math.inf, -5 / math.sqrt(2)]],
    "weightwise": [[0, -(2 / 3 + 2 / 4) / 2], [-math.inf, -(3 / 4 + 4 / 2) / 2]],
    "magnitude": [[math.sqrt(5 / 2), 5 / math.sqrt(2)], [-math.inf, math.sqrt(20 / 2)]],
}


@pytest.mark.parametrize("measure", BY_HAND)
def test_scores_by_hand(constant, measure):
    scores = keras_nern.kernel_importance(constant, measure)
    assert list(scores) == ["conv"]
    np.testing.assert_allclose(scores["conv"], BY_HAND[measure], rtol=1e-6)


def test_errors_that_are_no_numbers_are_no_scores(constant):
    constant.predictor.layers[-1].bias.assign([np.nan, 2.0])
    scores = keras_nern.kernel_importance(constant, "relative")
    assert np.isnan(scores["conv"][0]).all()
    with pytest.raises(ValueError, match=r"'conv' must be numbers. Received: 3 NaN"):
        keras_nern.prune(constant.base, scores, 0.1)


def test_random_scores_are_of_their_seed(constant):
    one, same, other = (
        keras_nern.kernel_importance(constant, "random", seed)["conv"] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    alive = [0, 0, 1], [0, 1, 1]  # of zeros is the other
    assert np.all(one[alive] != other[alive])
    assert np.all((one[alive] >= 0) & (one[alive] < 1))
    assert one[1, 0] == -math.inf


def test_a_weight_of_nothing_is_an_infinite_error_unless_it_is_right(constant):
    kernel = np.ones((2, 2, 2), "float32")
    kernel[:, 0, 0] = 0, 2  # predicted as (1, 2)
    constant.base.get_layer("conv").kernel.assign(kernel)
    scores = keras_nern.kernel_importance(constant, "weightwise")["conv"]
    np.testing.assert_allclose(scores, [[-math.inf, -0.5], [-0.5, -0.5]])
    constant.predictor.layers[-1].bias.assign([0.0, 2.0])
    scores = keras_nern.kernel_importance(constant, "weightwise")["conv"]
    np.testing.assert_allclose(scores, [[0, -1], [-1, -1]])


def test_the_scores_are_the_same_in_either_view(base):
    """The block view's predictor answers with runs of channels; a kernel is a kernel still."""
    scores = [
        keras_nern.kernel_importance(
            keras_nern.NeRNModel(base, 4, view=view, include_dense=True), "magnitude"
        )
        for view in ("crop", "block")
    ]
    assert list(scores[0]) == list(scores[1]) == ["stem", "conv", "shortcut", "fc"]
    shapes = {"stem": (4, 1), "conv": (6, 4), "shortcut": (6, 4), "fc": (3, 6)}
    for name, shape in shapes.items():
        assert scores[0][name].shape == shape
        np.testing.assert_array_equal(scores[0][name], scores[1][name])
    np.testing.assert_allclose(
        scores[0]["fc"], np.abs(base.get_layer("fc").kernel.numpy().T), rtol=1e-6
    )


def _scored(**of):
    return {name: np.array(score, float) for name, score in of.items()}


def _zeros(layer, attribute="kernel"):
    """Which kernels `(channels, filters)` are zero, of the last two axes of a variable."""
    kernel = getattr(layer, attribute).numpy()
    return ~kernel.any(axis=tuple(range(kernel.ndim - 2)))


def test_prunes_the_lowest_first_and_copies_the_rest(constant):
    before = [np.copy(weight) for weight in constant.base.get_weights()]
    scores = _scored(conv=[[0.5, 0.1], [0.9, 0.3]])
    pruned = keras_nern.prune(constant.base, scores, 0.5)
    # (filters, channels): filter 0, channel 1, then filter 1, channel 1
    expected = before[0].copy()
    expected[:, 1, :] = 0
    np.testing.assert_array_equal(pruned.get_weights()[0], expected)
    for weight, old, same in zip(
        constant.base.get_weights(), before, [None, *pruned.get_weights()[1:]], strict=True
    ):
        np.testing.assert_array_equal(weight, old)
        if same is not None:
            np.testing.assert_array_equal(same, old)


@pytest.mark.parametrize(("sparsity", "count"), [(0, 0), (0.24, 0), (0.25, 1), (0.75, 3), (1, 4)])
def test_as_many_as_fit(base, sparsity, count):
    scores = _scored(stem=[[4], [2], [1], [3]])
    pruned = keras_nern.prune(base, scores, sparsity)
    gone = [[], [2], [2, 1], [2, 1, 3], [2, 1, 3, 0]][count]
    assert np.flatnonzero(_zeros(pruned.get_layer("stem"))[0]).tolist() == sorted(gone)
    assert not _zeros(pruned.get_layer("conv")).any()


def test_a_share_is_of_weights_and_29_of_100_are_29():
    base = keras.Sequential([keras.Input((10,)), layers.Dense(10, name="fc")])
    pruned = keras_nern.prune(base, _scored(fc=np.arange(100).reshape(10, 10)), 0.29)
    kernel = pruned.get_layer("fc").kernel.numpy()
    assert not kernel.T.ravel()[:29].any()
    assert kernel.T.ravel()[29:].all()


def test_kernels_of_several_sizes(base):
    # stem: 4 kernels of 9 weights, shortcut: 24 of 1; together 60
    scores = _scored(stem=[[1], [10], [10], [10]], shortcut=np.full((6, 4), 5.0))
    scores["shortcut"][2, 3] = 0
    pruned = keras_nern.prune(base, scores, 12 / 60)  # 1 + 9 + the first 2 of equal ones
    assert _zeros(pruned.get_layer("stem")).tolist() == [[True, False, False, False]]
    gone = {(c, f) for c, f in np.argwhere(_zeros(pruned.get_layer("shortcut")))}
    assert gone == {(3, 2), (0, 0), (1, 0)}
    pruned = keras_nern.prune(base, scores, 0.5, per_layer=True)  # 2 of 4 and 12 of 24
    assert _zeros(pruned.get_layer("stem")).sum() == 2
    assert _zeros(pruned.get_layer("shortcut")).sum() == 12


ORIENTATIONS = {
    "transposed": ((8, 8, 3), lambda: layers.Conv2DTranspose(4, 2, name="x"), (4, 3)),
    "grouped": ((8, 8, 4), lambda: layers.Conv2D(6, 3, groups=2, name="x"), (6, 2)),
    "depthwise": ((8, 8, 3), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="x"), None),
    "Conv3D": ((4, 4, 4, 2), lambda: layers.Conv3D(3, (1, 2, 2), name="x"), (3, 2)),
}


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_one_kernel_of_every_kind_of_layer(kind):
    shape, make, grid = ORIENTATIONS[kind]
    base = keras.Sequential([keras.Input(shape), make(), layers.Flatten(), layers.Dense(2)])
    nern = keras_nern.NeRNModel(base, hidden_size=4)
    scores = keras_nern.kernel_importance(nern, "magnitude")
    if grid is None:
        grid = (2, 3)  # multiplier, channels
    assert scores["x"].shape == grid
    kernel = base.layers[0].kernel.numpy()
    for f, c in np.ndindex(grid):
        inner = kernel[..., f, c] if kind == "transposed" else kernel[..., c, f]
        assert scores["x"][f, c] == pytest.approx(math.sqrt(np.mean(inner**2)), rel=1e-5)
    scores["x"][:] = 1
    scores["x"][1, 0] = 0
    pruned = keras_nern.prune(base, scores, 1 / scores["x"].size)
    expected = kernel.copy()
    expected[(..., 1, 0) if kind == "transposed" else (..., 0, 1)] = 0
    np.testing.assert_array_equal(pruned.layers[0].kernel, expected)


def test_both_kernels_of_a_separable_convolution():
    base = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.SeparableConv2D(4, 3, name="x"), layers.Flatten()]
    )
    nern = keras_nern.NeRNModel(base, hidden_size=4)
    scores = keras_nern.kernel_importance(nern, "relative")
    assert {name: score.shape for name, score in scores.items()} == {
        "x/depthwise_kernel": (1, 3),
        "x/pointwise_kernel": (4, 3),
    }
    layer = keras_nern.prune(base, scores, 1.0).layers[0]
    assert not layer.depthwise_kernel.numpy().any()
    assert not layer.pointwise_kernel.numpy().any()


def test_a_trained_representation_tells_a_kernel_that_it_cannot_know(base):
    """One kernel of many is changed after the fit: its score is now the lowest."""
    nern = keras_nern.NeRNModel(base, hidden_size=16)
    nern.fit(steps_per_epoch=60, verbose=0)
    kernel = base.get_layer("conv").kernel.numpy()
    kernel[:, :, 1, 2] *= -1
    base.get_layer("conv").kernel.assign(kernel)
    scores = keras_nern.kernel_importance(nern)["conv"]
    assert np.unravel_index(scores.argmin(), scores.shape) == (2, 1)


@pytest.mark.parametrize(
    ("scores", "sparsity", "message"),
    [
        ({}, 0.5, "scores must be a dict that names kernels of the base.*Received: an empty one"),
        ({"x": [[1]]}, 0.5, r"of \['conv', 'fc', 'shortcut', 'stem'\]\. Received: \['x'\]"),
        (
            {"stem": [[1, 2, 3, 4]]},
            0.5,
            r"'stem' must have the shape \(filters, channels\) = \(4, 1\)\. Received: \(1, 4\)",
        ),
        ({"stem": [[1], [np.nan], [1], [1]]}, 0.5, "'stem' must be numbers. Received: 1 NaN"),
        ({"stem": np.ones((4, 1))}, 1.5, r"sparsity must be in \[0, 1\]. Received: sparsity=1.5"),
        ({"stem": np.ones((4, 1))}, -1, r"sparsity must be in \[0, 1\]. Received: sparsity=-1"),
    ],
)
def test_prune_refuses(base, scores, sparsity, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.prune(base, scores, sparsity)


def test_scoring_refuses(nern):
    with pytest.raises(ValueError, match=r"measure must be one of .* Received: measure='size'"):
        keras_nern.kernel_importance(nern, "size")
    with pytest.raises(ValueError, match=r"nern must be a NeRNModel\. Received"):
        keras_nern.kernel_importance(nern.base)
    assert len(MEASURES) == len(BY_HAND) + 1  # each of them is tested above


def test_plot_shows_ranks(tmp_path):
    scores = {"a": np.array([[-math.inf, 3.0]]), "b": np.array([[1.0], [2.0]])}
    figure = plots.plot_importance(scores, "two layers")
    maps = [axes.images[0] for axes in figure.axes[:2]]
    np.testing.assert_array_equal(maps[0].get_array(), [[0, 3 / 4]])
    np.testing.assert_array_equal(maps[1].get_array(), [[1 / 4], [2 / 4]])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert all(image.get_clim() == (0, 1) for image in maps)
    figure.savefig(tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 1000


def test_plot_refuses_what_are_no_scores():
    with pytest.raises(ValueError, match=r"at least one\. Received: \{\}"):
        plots.plot_importance({})
    with pytest.raises(ValueError, match=r"Received: \{'a': \(3,\)\}"):
        plots.plot_importance({"a": np.zeros(3)})
