import math
import sys

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.analysis import plots
from keras_nern.analysis.pareto import ParetoFront, ParetoPoint

pytest.importorskip("matplotlib", reason="install keras-nern[plots]")

STRIDE = plots.MAGNIFY + 1  # pixels from a kernel of one weight to the next


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
    shown = [image.get_array()[::STRIDE, ::STRIDE].compressed() for image in (left, right)]
    np.testing.assert_array_equal(shown, [[-3, 2, 1], [-1.5, 1, 0.5]])
    assert left.get_clim() == right.get_clim() == (-3, 3)
    assert figure.get_suptitle() == "layer"
    assert [axes.get_title() for axes in figure.axes[:2]] == ["original", "predicted"]
    assert figure.axes[2].get_ylabel() == "weight"
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
    left, right, bar = figure.axes
    assert (left.get_title(), right.get_title()) == ("as trained", "permuted")
    assert (left.get_xlabel(), left.get_ylabel()) == ("channels", "filters")
    assert bar.get_ylabel() == "weight / norm of its kernel"
    shown = [axes.images[0].get_array()[::STRIDE, ::STRIDE] for axes in (left, right)]
    np.testing.assert_array_equal(shown[0], [[1, -1, 1], [1, 1, -1]])
    np.testing.assert_array_equal(shown[1], [[1, 1, 1], [1, -1, -1]])
    part = plots.plot_grids({"part": kernel}, limit=2).axes[0].images[0].get_array()
    np.testing.assert_array_equal(part[::STRIDE, ::STRIDE], [[1, -1], [1, 1]])


def test_plot_grids_has_one_scale_for_all_panels():
    even, uneven = np.ones((2, 2, 1, 1)), np.array([3.0, 4.0]).reshape(2, 1, 1, 1)
    left, right, _ = plots.plot_grids({"even": even, "uneven": uneven}).axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (-0.8, 0.8)


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
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    originals, predicted = nern.original_kernels(), nern.predict_kernels()
    for bar, name in zip(axes.patches, names, strict=True):
        error = np.sum((predicted[name] - originals[name]) ** 2) / np.sum(originals[name] ** 2)
        assert bar.get_width() == pytest.approx(error, rel=1e-5)
        plots.plot_kernels(originals[name], predicted[name], name)
    places = [bar.get_y() for bar in axes.patches]
    assert places == sorted(places)
    assert axes.yaxis_inverted()  # the first layer is on top
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(nern.relative_error())
    assert axes.texts[0].get_text() == f"all layers: {nern.relative_error():.2g}"
    nern.gather_curvature(np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype("float32"))
    (axes,) = plots.plot_layer_errors(nern, "curvature").axes
    assert axes.get_xlabel() == "share of the curvature loss, %"
    assert axes.xaxis.get_major_formatter()(0.125, 0) == "12.5"
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx(list(nern.layer_errors("curvature").values()))


def _history(history, places, steps, **phases):
    """A `FitHistory` with these curves."""
    made = keras.callbacks.History()
    made.history, made.places, made.steps = history, places, steps
    made.epoch = [place - 1 for place in places.get("loss", [])]
    made.reconstruction, made.curvature = phases["reconstruction"], phases["curvature"]
    return made


def test_plot_history_draws_all_phases_on_one_axis():
    history = _history(
        {
            "loss": [0.4, 0.2, 0.1],
            "logits_loss": [0.3, 0.1, 0.05],
            "relative_error": [0.2, 0.1, 0.05],
            "val_agreement": [0.96, 0.98],
        },
        {name: [2, 3, 4] for name in ("loss", "logits_loss", "relative_error")}
        | {"val_agreement": [2, 4]},
        {"reconstruction": [50, 100], "curvature": [10, 20], "distillation": [30, 60, 90]},
        reconstruction={"loss": [4.0, 2.0], "relative_error": [0.9, 0.4]},
        curvature={"loss": [1.0, 0.5], "relative_error": [0.3, 0.2]},
    )
    losses, errors, shares = plots.plot_history(history).axes
    drawn = [(line.get_label(), line.get_xydata().tolist()) for line in losses.lines[:4]]
    assert drawn == [
        ("loss", [[50, 4], [100, 2]]),
        ("loss", [[110, 1], [120, 0.5]]),
        ("logits_loss", [[150, 0.3], [180, 0.1], [210, 0.05]]),
        ("loss", [[150, 0.4], [180, 0.2], [210, 0.1]]),
    ]
    assert [line.get_xdata()[0] for line in errors.lines[3:]] == [100, 120]  # where phases begin
    assert (losses.get_yscale(), errors.get_yscale(), shares.get_yscale()) == (
        *("log", "log", "linear"),
    )
    assert losses.lines[0].get_color() == losses.lines[3].get_color()
    assert losses.lines[0].get_color() != losses.lines[2].get_color()
    # the loss is wide and lies below its terms, so that it hides none
    assert losses.lines[3].get_zorder() < losses.lines[2].get_zorder()
    assert _lines(shares)["val_agreement"] == ("--", [150, 210], [0.96, 0.98])
    assert shares.get_ylabel() == "share of images, %"
    assert shares.yaxis.get_major_formatter()(0.965, 0) == "96.5"
    assert shares.get_xlabel() == "step (dashed: validation data)"
    assert {text.get_text() for text in losses.texts} == {
        *("loss", "logits loss", "reconstruction", "curvature", "distillation"),
    }
    assert [text.get_text() for text in shares.texts] == ["validation agreement"]


def test_plot_history_draws_epochs_without_images_as_reconstruction():
    history = _history(
        {"loss": [2.0, 1.0], "learning_rate": [0.1, 0.05]},
        {"loss": [1, 2], "learning_rate": [1, 2]},
        {"reconstruction": [5, 10], "curvature": [], "distillation": []},
        reconstruction={},
        curvature={},
    )
    losses, rates = plots.plot_history(history).axes
    assert _lines(losses)["loss"][1:] == ([5, 10], [2.0, 1.0])
    assert losses.texts[-1].get_text() == "reconstruction"
    assert rates.get_ylabel() == "learning rate"
    assert rates.get_xlabel() == "step"


def test_plot_history_draws_a_fit(nern, images):
    nern.compile(reconstruction_steps=4, run_eagerly=True)
    arguments = {"verbose": 0, "validation_data": (images,), "validation_freq": 2}
    history = nern.fit(images, initial_epoch=2, epochs=4, **arguments)
    losses, _, shares = plots.plot_history(history).axes
    curve = losses.lines[0]
    assert curve.get_label() == "loss"
    assert curve.get_xydata().tolist() == [
        [step, value] for step, value in enumerate(history.reconstruction["loss"], start=1)
    ]
    per_epoch = history.steps["distillation"][0]
    ends = [4 + per_epoch * epoch for epoch in (1, 2)]
    assert _lines(losses)["logits_loss"][1:] == (ends, history.history["logits_loss"])
    assert _lines(shares)["val_agreement"][1:] == (ends[1::2], history.history["val_agreement"])


def test_plot_history_draws_what_evaluate_rebuilt_records():
    results = [
        {"phase": "reconstruction", "step": 2, "loss": 3.0, "accuracy": 0.1},
        {"phase": "reconstruction", "step": 4, "loss": 2.0, "accuracy": 0.3},
        {"phase": "distillation", "step": 2, "loss": 1.0, "accuracy": 0.5},
    ]
    losses, shares = plots.plot_history(results).axes
    drawn = [line.get_xydata().tolist() for line in losses.lines[:2]]
    assert drawn == [[[2, 3.0], [4, 2.0]], [[6, 1.0]]]
    assert shares.lines[1].get_xydata().tolist() == [[6, 0.5]]
    assert [text.get_text() for text in losses.texts[1:]] == ["reconstruction", "distillation"]
    assert shares.get_xlabel() == "step"


def test_plot_importance_shows_ranks(tmp_path):
    scores = {"a": np.array([[-math.inf, 3.0]]), "b": np.array([[1.0], [2.0]])}
    figure = plots.plot_importance(scores, "two layers")
    maps = [axes.images[0] for axes in figure.axes[:2]]
    np.testing.assert_array_equal(maps[0].get_array(), [[0, 3 / 4]])
    np.testing.assert_array_equal(maps[1].get_array(), [[1 / 4], [2 / 4]])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert all(image.get_clim() == (0, 1) for image in maps)
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "kernels that score lower, %"
    assert bar.yaxis.get_major_formatter()(0.2, 0) == "20"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("channels", "filters")
    figure.savefig(tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 1000


@pytest.mark.parametrize(("layers", "columns"), [(1, 1), (3, 3), (6, 6), (13, 7), (21, 7), (20, 4)])
def test_plot_importance_leaves_few_places_empty(layers, columns):
    scores = {str(index): np.ones((2, 2)) for index in range(layers)}
    figure = plots.plot_importance(scores)
    assert figure.axes[0].get_gridspec().ncols == columns


def test_plot_pareto_front_shows_all_trials(tmp_path):
    sizes, scores = [4000, 1000, 1000, 2000], [0.9, 0.5, 0.6, 0.6]
    pairs = zip(sizes, scores, strict=True)
    trials = [ParetoPoint(*pair, {}, str(index)) for index, pair in enumerate(pairs)]
    figure = plots.plot_pareto_front(ParetoFront.from_trials(trials, "val_accuracy"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("size, kB", "val_accuracy, %")
    assert axes.yaxis.get_major_formatter()(0.6, 0) == "60"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Pareto front", "other trials"]
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
        (lambda: plots.plot_history([{"phase": "a", "step": 1}]), "at least one epoch or step"),
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
