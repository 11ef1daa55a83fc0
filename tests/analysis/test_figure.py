import numpy as np
import pytest

from keras_nern.analysis import figure

matplotlib = pytest.importorskip("matplotlib", reason="install keras-nern[plots]")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]),
        ([0.5, 0.95, 0.9], [0.5, 1, 0.75]),
        ([0.5, 0.5, 0.1], [0.5, 0.75, 0.1]),
        ([1, 1, 1], [0.5, 0.75, 1]),
        ([], []),
    ],
)
def test_spread_keeps_a_distance_and_the_order(places, expected):
    np.testing.assert_allclose(figure.spread(np.array(places), 0.25), expected)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_stand_where_lines_end(scale):
    axes = figure.style(figure.new_figure(figsize=(4, 4)).subplots())
    (low,) = axes.plot([0, 1], [1, 10])
    (high,) = axes.plot([0, 1], [1, 100])
    axes.set_yscale(scale)
    axes.set_ylim(1, 100)
    figure.label_lines(axes, {"low": low, "high": high})
    names = {text.get_text(): text for text in axes.texts}
    assert names["high"].get_position() == (1.015, 1)
    height = 0.5 if scale == "log" else 9 / 99
    assert names["low"].get_position() == pytest.approx((1.015, height))
    assert names["low"].get_color() == low.get_color() == figure.COLORS[0]
    assert names["high"].get_color() == figure.COLORS[1]


@pytest.mark.parametrize(
    ("limits", "label", "ticks"),
    [
        ((20_000, 110_000), "size, kB", ["20", "40", "60", "80", "100"]),
        ((90_000, 1_100_000), "size, kB", ["100", "150", "200", "300", "500", "700", "1,000"]),
        ((1.5e6, 6e7), "size, MB", ["2", "5", "10", "20", "50"]),
        ((1e3, 1e6), "size, kB", ["1", "10", "100", "1,000"]),
    ],
)
def test_bytes_have_plain_numbers(limits, label, ticks):
    axes = figure.new_figure().subplots()
    axes.set_xlim(limits)
    figure.bytes_axis(axes)
    low, high = limits
    shown = [
        axes.xaxis.get_major_formatter()(tick, 0)
        for tick in axes.xaxis.get_majorticklocs()
        if low <= tick <= high
    ]
    assert (axes.get_xlabel(), axes.get_xscale(), shown) == (label, "log", ticks)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1", "conv1"),
        ("block2a_expand_conv/kernel", "block2a_\nexpand_\nconv/kernel"),
        ("a long name", "a long name"),
        ("a somewhat long name", "a somewhat\nlong name"),
    ],
)
def test_wrap_keeps_every_character_of_a_name(name, expected):
    assert figure.wrap(name, 12) == expected


def test_the_users_settings_stay():
    before = dict(matplotlib.rcParams)
    axes = figure.style(figure.new_figure().subplots(), "x")
    axes.figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    assert not axes.spines["top"].get_visible()
    assert [line.get_visible() for line in axes.get_xgridlines()[:1]] == [True]
    assert [line.get_visible() for line in axes.get_ygridlines()[:1]] == [False]
