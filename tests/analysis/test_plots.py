import math
import sys

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.analysis import plots
from keras_nern.analysis.pareto import ParetoFront, ParetoPoint

pytest.importorskip("matplotlib", reason="install keras-nern[plots]")


def _lines(axes):
    """The curves of a panel: {label: (style, x, y)}."""
    return {
        line.get_label(): (line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
    }


def test_plot_kernels_shows_the_largest_on_one_scale(tmp_path):
    original = np.array([1.0, -3.0, 0.5, 2.0]).reshape(1, 1, 2, 2)
    figure = plots.plot_kernels(original, original / 2, "layer", limit=3)
    left, right = (axes.images[0] for axes in figure.axes[:2])
    # filter by filter, the kernels are 1, 0.5, -3, 2; by size -3, 2, 1
    np.testing.assert_array_equal(left.get_array()[::2, ::2].compressed(), [-3, 2, 1])
    np.testing.assert_array_equal(right.get_array()[::2, ::2].compressed(), [-1.5, 1, 0.5])
    assert left.get_clim() == right.get_clim() == (-3, 3)
    assert figure.get_suptitle() == "layer"
    figure.savefig(tmp_path / "layer.png")
    assert (tmp_path / "layer.png").stat().st_size > 1000


def test_plot_kernels_raises_for_wrong_shapes():
    with pytest.raises(ValueError, match=r"Received: \(3, 3, 1, 2\) and \(3, 3, 2, 1\)"):
        plots.plot_kernels(np.zeros((3, 3, 1, 2)), np.zeros((3, 3, 2, 1)))
    with pytest.raises(ValueError, match=r"original must be a kernel .*Received: .* shape \(3,\)"):
        plots.plot_kernels(np.zeros(3), np.zeros(3))


def test_plot_grids_shows_kernels_at_their_positions():
    # one weight per kernel, so the direction is its sign; kernels 0 to 5 are
    # (filter, channel) = (0, 0), (0, 1), (0, 2), (1, 0), ...
    kernel = np.array([[1, 1], [-1, 2], [1, -5]]).reshape(1, 1, 3, 2)
    figure = plots.plot_grids(
        {"as trained": kernel, "permuted": kernel}, {"permuted": [0, 2, 3, 4, 1, 5]}
    )
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["as trained", "permuted"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("channels", "filters")
    shown = [axes.images[0].get_array()[::2, ::2] for axes in (left, right)]
    np.testing.assert_array_equal(shown[0], [[1, -1, 1], [1, 1, -1]])
    np.testing.assert_array_equal(shown[1], [[1, 1, 1], [1, -1, -1]])
    part = plots.plot_grids({"part": kernel}, limit=2).axes[0].images[0].get_array()
    np.testing.assert_array_equal(part[::2, ::2], [[1, -1], [1, 1]])


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"other": [0, 1]}, r"titles of kernels, among \['layer'\]. Received: \['other'\]"),
        (
            {"layer": [0, 1, 2]},
            r"a permutation of range\(2\), .* for 'layer'. Received: \[0, 1, 2\]",
        ),
    ],
)
def test_plot_grids_raises_for_wrong_orders(orders, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_grids({"layer": np.ones((3, 3, 2, 1))}, orders)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 51, 255, 300, -9], "float32", [0, 0.2, 1, 1]),
        ([0, 51, 255, 204, 9], "uint8", [0, 0.2, 1, 0.8]),
        ([0, 1, 0, 1, 1], "uint8", [0, 1 / 255, 0, 1 / 255]),
        ([0, 0.2, 1, 1.02, -0.1], "float64", [0, 0.2, 1, 1]),
    ],
)
def test_plot_images_reads_0_to_255_and_0_to_1(values, dtype, expected):
    images = np.array(values, dtype).reshape(5, 1, 1, 1)
    figure = plots.plot_images(images, ["a", "b", "c", "d", "e"], limit=4)
    shown = [axes.images[0] for axes in figure.axes]
    np.testing.assert_allclose([image.get_array().item() for image in shown], expected, atol=1e-7)
    assert {image.get_clim() for image in shown} == {(0, 1)}
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d"]


def test_plot_layer_errors_draws_a_bar_for_each_kernel():
    base = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.SeparableConv2D(3, 3, name="separable"),
            keras.layers.Conv2DTranspose(4, 3, name="transposed"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="dense"),
        ]
    )
    nern = keras_nern.NeRNModel(base, hidden_size=8, include_dense=True)
    (axes,) = plots.plot_layer_errors(nern).axes
    names = ["separable/depthwise_kernel", "separable/pointwise_kernel", "transposed", "dense"]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    originals, predicted = nern.original_kernels(), nern.predict_kernels()
    for bar, name in zip(axes.patches, names, strict=True):
        error = np.sum((predicted[name] - originals[name]) ** 2) / np.sum(originals[name] ** 2)
        assert bar.get_height() == pytest.approx(error, rel=1e-5)
        plots.plot_kernels(originals[name], predicted[name], name)
    (line,) = axes.lines
    assert line.get_ydata()[0] == pytest.approx(nern.relative_error())
    nern.gather_curvature(np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype("float32"))
    (axes,) = plots.plot_layer_errors(nern, "curvature").axes
    assert axes.get_ylabel() == "share of the curvature loss"
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx(list(nern.layer_errors("curvature").values()))


def test_plot_history_draws_both_phases_at_their_epochs(nern, images):
    nern.compile(reconstruction_steps=2, run_eagerly=True)
    arguments = {"verbose": 0, "validation_data": (images,), "validation_freq": 2}
    history = nern.fit(images, initial_epoch=2, epochs=6, **arguments)
    figure = plots.plot_history(history)
    upper, lower = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in upper] == ["reconstruction", "distillation"]
    assert [axes.get_xlabel() for axes in lower] == ["epoch", "epoch"]
    assert all(axes.get_yscale() == "log" for axes in upper)
    curves = [{**_lines(a), **_lines(b)} for a, b in zip(upper, lower, strict=True)]
    for lines, logs in zip(curves, (history.reconstruction, history.history), strict=True):
        assert {name: y for name, (_, _, y) in lines.items()} == logs
    assert {"loss", "val_loss", "feature_map_loss"} <= set(_lines(upper[1]))
    assert {"relative_error", "val_agreement"} <= set(_lines(lower[1]))
    assert curves[1]["loss"][:2] == ("-", [3, 4, 5, 6])
    assert curves[1]["val_loss"][:2] == ("--", [4, 6])
    assert curves[1]["val_agreement"][1] == [4, 6]


def test_plot_history_draws_a_reconstruction_alone(nern):
    nern.compile(run_eagerly=True)
    history = nern.fit(steps_per_epoch=2, epochs=3, verbose=0)
    upper, lower = plots.plot_history(history).axes
    assert upper.get_title() == "reconstruction"
    assert _lines(upper)["loss"][1:] == ([1, 2, 3], history.history["loss"])
    assert _lines(lower)["relative_error"][2] == history.history["relative_error"]


def test_plot_history_draws_both_phases_by_steps():
    results = [
        {"phase": "reconstruction", "step": 2, "loss": 3.0, "accuracy": 0.1},
        {"phase": "reconstruction", "step": 4, "loss": 2.0, "accuracy": 0.3},
        {"phase": "distillation", "step": 2, "loss": 1.0, "accuracy": 0.5},
    ]
    first, second, below_first, below_second = plots.plot_history(results).axes
    assert [axes.get_title() for axes in (first, second)] == ["reconstruction", "distillation"]
    assert _lines(first) == {"loss": ("-", [2, 4], [3.0, 2.0])}
    assert _lines(below_first) == {"accuracy": ("-", [2, 4], [0.1, 0.3])}
    assert _lines(below_second) == {"accuracy": ("-", [2], [0.5])}
    assert below_first.get_xlabel() == "step"


def test_plot_importance_shows_ranks(tmp_path):
    scores = {"a": np.array([[-math.inf, 3.0]]), "b": np.array([[1.0], [2.0]])}
    figure = plots.plot_importance(scores, "two layers")
    maps = [axes.images[0] for axes in figure.axes[:2]]
    np.testing.assert_array_equal(maps[0].get_array(), [[0, 3 / 4]])
    np.testing.assert_array_equal(maps[1].get_array(), [[1 / 4], [2 / 4]])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert all(image.get_clim() == (0, 1) for image in maps)
    figure.savefig(tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 1000


def test_plot_pareto_front_shows_all_trials(tmp_path):
    sizes, scores = [4000, 1000, 1000, 2000], [0.9, 0.5, 0.6, 0.6]
    pairs = zip(sizes, scores, strict=True)
    trials = [ParetoPoint(*pair, {}, str(index)) for index, pair in enumerate(pairs)]
    figure = plots.plot_pareto_front(ParetoFront.from_trials(trials, "val_accuracy"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bytes", "val_accuracy")
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[1000, 0.6], [4000, 0.9]]
    dots = axes.collections[0].get_offsets().tolist()
    assert dots == [[1000, 0.5], [2000, 0.6]]
    figure.savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_history([]), "history must have at least one epoch or step"),
        (lambda: plots.plot_importance({}), r"at least one\. Received: shapes \{\}"),
        (lambda: plots.plot_importance({"a": np.zeros(3)}), r"shapes \{'a': \(3,\)\}"),
        (
            lambda: plots.plot_pareto_front(ParetoFront.from_trials([], "val_accuracy")),
            "front must have at least one point. Received: none",
        ),
    ],
)
def test_raises_for_nothing_to_draw(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras-nern\[plots\]"'):
        plots.plot_images(np.zeros((1, 2, 2, 3)))
