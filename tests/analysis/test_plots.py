import sys

import keras
import numpy as np
import pytest

import keras_nern
from keras_nern.analysis import plots


def _lines(axes):
    """What is drawn: {label: (style, x, y)}."""
    return {
        line.get_label(): (line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
    }


def test_shows_the_largest_kernels_of_both_on_one_scale(tmp_path):
    original = np.array([1.0, -3.0, 0.5, 2.0]).reshape(1, 1, 2, 2)
    figure = plots.plot_kernels(original, original / 2, "layer", limit=3)
    left, right = (axes.images[0] for axes in figure.axes[:2])
    # kernels in filter-major order are 1, 0.5, -3, 2; by size -3, 2, 1
    np.testing.assert_array_equal(left.get_array()[::2, ::2].compressed(), [-3, 2, 1])
    np.testing.assert_array_equal(right.get_array()[::2, ::2].compressed(), [-1.5, 1, 0.5])
    assert left.get_clim() == right.get_clim() == (-3, 3)
    figure.savefig(tmp_path / "layer.png")
    assert (tmp_path / "layer.png").stat().st_size > 1000


def test_refuses_kernels_of_two_shapes():
    with pytest.raises(ValueError, match=r"Received: \(3, 3, 1, 2\) and \(3, 3, 2, 1\)"):
        plots.plot_kernels(np.zeros((3, 3, 1, 2)), np.zeros((3, 3, 2, 1)))


def test_refuses_what_is_no_kernel():
    with pytest.raises(ValueError, match=r"shape \(\.\.\., cin, cout\). Received: .* \(3,\)"):
        plots.plot_kernels(np.zeros(3), np.zeros(3))


def test_grids_show_kernels_where_they_stand():
    # one weight per kernel, so that the direction is its sign; numbers 0 to 5 are
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
        ({"other": [0, 1]}, r"orders of the kernels \['layer'\]. Received: \['other'\]"),
        ({"layer": [0, 1, 2]}, r"an order of 2 kernels for 'layer'. Received: .* \(3,\)"),
    ],
)
def test_grids_refuse(orders, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_grids({"layer": np.ones((3, 3, 2, 1))}, orders)


def test_images_stand_in_a_row():
    images = np.array([0, 51, 255, 300, -9], "float32").reshape(5, 1, 1, 1)
    figure = plots.plot_images(images, ["a", "b", "c", "d", "e"], limit=4)
    values = [float(axes.images[0].get_array().squeeze()) for axes in figure.axes]
    np.testing.assert_allclose(values, [0, 0.2, 1, 1])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d"]


def test_a_bar_for_the_error_of_each_layer(nern):
    figure = plots.plot_layer_errors(nern)
    (axes,) = figure.axes
    kernels = nern.predict_kernels()
    assert [label.get_text() for label in axes.get_xticklabels()] == list(kernels)
    for bar, (name, predicted) in zip(axes.patches, kernels.items(), strict=True):
        original = nern.base.get_layer(name).kernel.numpy()
        expected = np.sum((predicted - original) ** 2) / np.sum(original**2)
        assert bar.get_height() == pytest.approx(expected, rel=1e-5)
    (line,) = axes.lines
    assert line.get_ydata()[0] == pytest.approx(nern.relative_error())


def test_the_course_of_both_phases_by_epochs(nern, images):
    history = nern.fit(images, epochs=3, verbose=0, validation_data=(images,))
    figure = plots.plot_history(history)
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in above] == ["reconstruction", "distillation"]
    assert [axes.get_xlabel() for axes in below] == ["epoch", "epoch"]
    assert all(axes.get_yscale() == "log" for axes in above)
    drawn = [{**_lines(one), **_lines(other)} for one, other in zip(above, below, strict=True)]
    for lines, logs in zip(drawn, (history.reconstruction, history.history), strict=True):
        assert {name: y for name, (_, _, y) in lines.items()} == logs
    assert drawn[1]["loss"][:2] == ("-", [1, 2, 3])
    assert drawn[1]["val_loss"][0] == "--"
    assert "val_agreement" in _lines(below[1])
    assert {"loss", "feature_map_loss"} <= set(_lines(above[1]))


def test_values_stand_at_their_epochs(nern, images):
    nern.compile(reconstruction_steps=2)
    arguments = {"verbose": 0, "validation_data": (images,), "validation_freq": 2}
    history = nern.fit(images, initial_epoch=2, epochs=6, **arguments)
    _, above, _, below = plots.plot_history(history).axes
    assert above.get_title() == "distillation"
    assert _lines(above)["loss"][1] == [3, 4, 5, 6]
    assert _lines(above)["val_loss"][1] == [4, 6]
    assert _lines(below)["val_agreement"][1] == [4, 6]


def test_the_course_of_a_reconstruction_alone(nern):
    history = nern.fit(steps_per_epoch=2, epochs=3, verbose=0)
    above, below = plots.plot_history(history).axes
    assert above.get_title() == "reconstruction"
    assert _lines(above)["loss"][2] == history.history["loss"]
    assert _lines(below)["relative_error"][2] == history.history["relative_error"]


def test_the_course_of_both_phases_by_steps():
    results = [
        {"phase": "reconstruction", "step": 2, "loss": 3.0, "accuracy": 0.1},
        {"phase": "reconstruction", "step": 4, "loss": 2.0, "accuracy": 0.3},
        {"phase": "distillation", "step": 2, "loss": 1.0, "accuracy": 0.5},
    ]
    figure = plots.plot_history(results)
    first, second, below, last = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["reconstruction", "distillation"]
    assert _lines(first) == {"loss": ("-", [2, 4], [3.0, 2.0])}
    assert _lines(below) == {"accuracy": ("-", [2, 4], [0.1, 0.3])}
    assert _lines(last) == {"accuracy": ("-", [2], [0.5])}
    assert below.get_xlabel() == "step"


def test_refuses_a_history_of_nothing():
    with pytest.raises(ValueError, match="Expected a history of at least one epoch or step"):
        plots.plot_history([])


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots need `pip install keras-nern\[plots\]`"):
        plots.plot_images(np.zeros((1, 2, 2, 3)))


def test_names_and_errors_of_all_kinds_of_kernels():
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
    names = ["separable/depthwise_kernel", "separable/pointwise_kernel", "transposed", "dense"]
    originals = nern.original_kernels()
    assert list(originals) == list(nern.layer_errors()) == names
    np.testing.assert_array_equal(originals["transposed"], base.get_layer("transposed").kernel)
    for name, predicted in nern.predict_kernels().items():
        figure = plots.plot_kernels(originals[name], predicted, name)
        assert figure.get_suptitle() == name
