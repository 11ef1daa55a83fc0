"""Compares scores with values derived by hand, and pruning with loops over kernels."""

import math

import keras
import numpy as np
import pytest

import keras_nern
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


# (1, 2) is exact; (3, 4) is off by (2, 2), (0, 0) by (-1, -2), (4, -2) by (3, -4).
BY_HAND = {
    "relative": [[0, -math.sqrt(8) / 5], [-math.inf, -5 / math.sqrt(20)]],
    "absolute": [[0, -2], [-math.inf, -5 / math.sqrt(2)]],
    "weightwise": [[0, -(2 / 3 + 2 / 4) / 2], [-math.inf, -(3 / 4 + 4 / 2) / 2]],
    "magnitude": [[math.sqrt(5 / 2), 5 / math.sqrt(2)], [-math.inf, math.sqrt(20 / 2)]],
}


def test_scores_by_hand(constant):
    for measure, expected in BY_HAND.items():
        scores = keras_nern.kernel_importance(constant, measure)
        assert list(scores) == ["conv"]
        np.testing.assert_allclose(scores["conv"], expected, rtol=1e-6)
    assert set(BY_HAND) | {"random", "curvature"} == set(MEASURES)


@pytest.mark.parametrize("kind", ["grouped", "depthwise", "dense", "separable", "large"])
def test_the_curvature_scores_a_kernel_by_the_loss_without_it(kind, monkeypatch):
    keras.utils.set_random_seed(1)
    if kind == "large":
        monkeypatch.setattr("keras_nern.network.curvature.MAX_FACTOR", 4)
    layer = {
        "grouped": layers.Conv2D(4, (2, 1), groups=2, name="one"),
        "depthwise": layers.DepthwiseConv2D(2, depth_multiplier=2, name="one"),
        "dense": layers.Dense(3, name="one"),
        "separable": layers.SeparableConv2D(3, 2, name="one"),  # has a diagonal only
        "large": layers.Conv2D(3, 2, name="one"),  # has factors of channels and of positions
    }[kind]
    base = keras.Sequential(
        [keras.Input((4, 4, 4)), layer, layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    nern = keras_nern.NeRNModel(base, 4, include="one", include_dense=True, view="block")
    with pytest.raises(ValueError, match="call gather_curvature"):
        keras_nern.kernel_importance(nern, "curvature")
    nern.gather_curvature(np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype("float32"))
    scores = keras_nern.kernel_importance(nern, "curvature")
    kernels = nern._original.blocks.kernels
    for index, kernel in enumerate(kernels):
        values = [keras.ops.convert_to_tensor(one.variable) for one in kernels]
        rows = kernel.rows(kernel.values()).reshape(kernel.filters, kernel.channels, -1)
        for place in np.ndindex(*rows.shape[:2]):
            without = rows.copy()
            without[place] = 0
            values[index] = kernel.from_rows(without.reshape(kernel.filters, -1))
            cost = float(nern._objective.curvature_terms(values)[index])
            found = scores[kernel.name][place] * kernel.spatial_size
            assert found == pytest.approx(cost, rel=1e-4, abs=1e-9)
        assert scores[kernel.name].max() > 0
    shares = nern.layer_errors("curvature")
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == [kernel.name for kernel in kernels]
    coarse = set(nern.summary_table().coarse.values())
    kinds = {"separable": {"the diagonal"}, "large": {"factors of channels and of positions"}}
    assert coarse == kinds.get(kind, set())


def test_random_scores_depend_on_the_seed(constant):
    one, same, other = (
        keras_nern.kernel_importance(constant, "random", seed)["conv"] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    nonzero = [0, 0, 1], [0, 1, 1]
    assert np.all(one[nonzero] != other[nonzero])
    assert np.all((one[nonzero] >= 0) & (one[nonzero] < 1))
    assert one[1, 0] == -math.inf


def test_errors_of_weights_that_are_zero_or_nan(constant):
    kernel = np.ones((2, 2, 2), "float32")
    kernel[:, 0, 0] = 0, 2  # predicted as (1, 2)
    constant.base.get_layer("conv").kernel.assign(kernel)
    scores = keras_nern.kernel_importance(constant, "weightwise")["conv"]
    np.testing.assert_allclose(scores, [[-math.inf, -0.5], [-0.5, -0.5]])
    bias = constant.predictor.layers[-1].bias
    bias.assign([0.0, 2.0])
    scores = keras_nern.kernel_importance(constant, "weightwise")["conv"]
    np.testing.assert_allclose(scores, [[0, -1], [-1, -1]])
    bias.assign([np.nan, 2.0])
    scores = keras_nern.kernel_importance(constant, "relative")
    assert np.isnan(scores["conv"]).all()
    with pytest.raises(ValueError, match=r"'conv' must be numbers. Received: 4 NaN"):
        keras_nern.prune(constant.base, scores, 0.1)


def test_scores_are_the_same_in_both_views(base):
    """The block view predicts several channels at once, but scores are per channel."""
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


def test_a_kernel_changed_after_the_fit_has_the_lowest_score(base):
    nern = keras_nern.NeRNModel(base, hidden_size=16)
    nern.fit(steps_per_epoch=60, verbose=0)
    kernel = base.get_layer("conv").kernel.numpy()
    kernel[:, :, 1, 2] *= -1
    base.get_layer("conv").kernel.assign(kernel)
    scores = keras_nern.kernel_importance(nern)["conv"]
    assert np.unravel_index(scores.argmin(), scores.shape) == (2, 1)


def _scored(**of):
    return {name: np.array(score, float) for name, score in of.items()}


def _zeros(layer, attribute="kernel"):
    """Whether each kernel of a variable `(..., channels, filters)` is zero."""
    kernel = getattr(layer, attribute).numpy()
    return ~kernel.any(axis=tuple(range(kernel.ndim - 2)))


def test_prunes_the_lowest_scores_and_copies_other_weights(base):
    before = [np.copy(weight) for weight in base.get_weights()]
    scores = _scored(stem=[[4], [2], [1], [3]])
    gone = {0: [], 0.24: [], 0.25: [2], 0.75: [1, 2, 3], 1: [0, 1, 2, 3]}
    for sparsity, filters in gone.items():
        pruned = keras_nern.prune(base, scores, sparsity)
        expected = before[0].copy()
        expected[..., filters] = 0
        for weight, value in zip(pruned.get_weights(), [expected, *before[1:]], strict=True):
            np.testing.assert_array_equal(weight, value)
    for weight, value in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_pruning_keeps_the_exact_weights_of_other_types(dtype):
    base = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(2, 3, dtype=keras.DTypePolicy(dtype), name="conv"),
            layers.Flatten(),
        ]
    )
    layer = base.get_layer("conv")
    layer.kernel.assign(keras.ops.cast(np.random.default_rng(0).normal(size=(3, 3, 2, 2)), dtype))
    kernel = np.array(keras.ops.convert_to_numpy(layer.kernel))
    scores = _scored(conv=[[1, 2], [3, 4]])
    for sparsity in (0, 0.25):
        pruned = keras_nern.prune(base, scores, sparsity).get_layer("conv").kernel
        assert pruned.dtype == dtype
        if sparsity:
            kernel[..., 0, 0] = 0
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(pruned), kernel)


def test_a_sparsity_of_29_percent_prunes_29_of_100_weights():
    base = keras.Sequential([keras.Input((10,)), layers.Dense(10, name="fc")])
    pruned = keras_nern.prune(base, _scored(fc=np.arange(100).reshape(10, 10)), 0.29)
    kernel = pruned.get_layer("fc").kernel.numpy()
    assert not kernel.T.ravel()[:29].any()
    assert kernel.T.ravel()[29:].all()


def test_prunes_kernels_of_several_sizes(base):
    # stem: 4 kernels of 9 weights, shortcut: 24 of 1; together 60
    scores = _scored(stem=[[1], [10], [10], [10]], shortcut=np.full((6, 4), 5.0))
    scores["shortcut"][2, 3] = 0
    pruned = keras_nern.prune(base, scores, 12 / 60)  # 1 + 9 + the first 2 of equal scores
    assert _zeros(pruned.get_layer("stem")).tolist() == [[True, False, False, False]]
    gone = {(c, f) for c, f in np.argwhere(_zeros(pruned.get_layer("shortcut")))}
    assert gone == {(3, 2), (0, 0), (1, 0)}
    assert not _zeros(pruned.get_layer("conv")).any()
    pruned = keras_nern.prune(base, scores, 0.5, per_layer=True)  # 2 of 4 and 12 of 24
    assert _zeros(pruned.get_layer("stem")).sum() == 2
    assert _zeros(pruned.get_layer("shortcut")).sum() == 12


ORIENTATIONS = {
    "transposed": ((8, 8, 3), lambda: layers.Conv2DTranspose(4, 2, name="x"), (4, 3)),
    "grouped": ((8, 8, 4), lambda: layers.Conv2D(6, 3, groups=2, name="x"), (6, 2)),
    # (multiplier, channels)
    "depthwise": (
        (8, 8, 3),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="x"),
        (2, 3),
    ),
    "3-D": ((4, 4, 4, 2), lambda: layers.Conv3D(3, (1, 2, 2), name="x"), (3, 2)),
}


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_prunes_one_kernel_of_every_kind_of_layer(kind):
    shape, make, grid = ORIENTATIONS[kind]
    base = keras.Sequential([keras.Input(shape), make(), layers.Flatten(), layers.Dense(2)])
    nern = keras_nern.NeRNModel(base, hidden_size=4)
    scores = keras_nern.kernel_importance(nern, "magnitude")
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


def test_prunes_both_kernels_of_a_separable_convolution():
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


def test_scores_a_kernel_that_two_layers_share():
    first = layers.Conv2D(2, 3, padding="same", name="first")

    class Tied(layers.Conv2D):
        def build(self, input_shape):
            self._kernel, self.bias, self.built = first._kernel, None, True

    inputs = keras.Input((8, 8, 2))
    tied = Tied(2, 3, padding="same", use_bias=False, name="second")
    base = keras.Model(inputs, layers.Flatten()(tied(first(inputs))))
    for name in ("first", "second"):
        scores = keras_nern.kernel_importance(keras_nern.NeRNModel(base, 4, include=[name]))
        assert {name: score.shape for name, score in scores.items()} == {name: (2, 2)}


@pytest.mark.parametrize(
    ("scores", "sparsity", "message"),
    [
        ([1.0], 0.5, r"scores must be a dict from kernel names .* Received: list \[1.0\]"),
        ({}, 0.5, "scores must name kernels of the base.*Received: an empty dict"),
        ({"x": [[1]]}, 0.5, r"among \['conv', 'fc', 'shortcut', 'stem'\]\. Received: \['x'\]"),
        (
            {"stem": [[1, 2, 3, 4]]},
            0.5,
            r"'stem' must have the shape \(filters, channels\) = \(4, 1\)\. Received: \(1, 4\)",
        ),
        ({"stem": [[1], [np.nan], [1], [1]]}, 0.5, "'stem' must be numbers. Received: 1 NaN"),
        ({"stem": np.ones((4, 1))}, 1.5, r"sparsity must be .* in \[0, 1\]. Received: .*=1.5"),
        ({"stem": np.ones((4, 1))}, -1, r"sparsity must be .* in \[0, 1\]. Received: .*=-1"),
    ],
)
def test_prune_raises_for_invalid_arguments(base, scores, sparsity, message):
    with pytest.raises(ValueError, match=message):
        keras_nern.prune(base, scores, sparsity)


def test_kernel_importance_raises_for_invalid_arguments(nern):
    with pytest.raises(ValueError, match=r"measure must be one of .* Received: measure='size'"):
        keras_nern.kernel_importance(nern, "size")
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        keras_nern.kernel_importance(nern, "random", seed=-1)
    with pytest.raises(ValueError, match=r"nern must be a NeRNModel\. Received"):
        keras_nern.kernel_importance(nern.base)


@pytest.mark.parametrize("per_layer", [False, True])
def test_pruning_nothing_changes_nothing(base, nern, per_layer):
    kernel = base.get_layer("conv").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 1, -0.0, kernel))  # scores -inf
    scores = keras_nern.kernel_importance(nern)
    pruned = keras_nern.prune(base, scores, 0.0, per_layer=per_layer)
    for weight, other in zip(base.weights, pruned.weights, strict=True):
        assert np.array(weight).tobytes() == np.array(other).tobytes()
