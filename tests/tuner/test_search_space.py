"""Which representations a search may choose: all that fit the budget, and no others."""

import itertools

import pytest

import keras_nern
from keras_nern.network.blocks import Blocks
from keras_nern.tuner.search_space import LEAST_WIDTH, SearchSpace

keras_tuner = pytest.importorskip("keras_tuner", reason="install keras-nern[tuner]")


def _space(base, max_bytes, narrowest=10, scales=0, **choices):
    defaults = {
        "hidden_size": None,
        "permutation": None,
        "bits": None,
        "num_layers": 5,
        "num_frequencies": 40,
        "encoding_base": 0.76,
    }
    return SearchSpace(Blocks(base), scales, max_bytes, narrowest, {**defaults, **choices})


def _drawn(space, count, tmp_path, oracle=keras_tuner.oracles.RandomSearchOracle, **arguments):
    """The values that trials of an oracle stand for, each of which is said to score 0.5."""
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    objective = keras_tuner.Objective("score", "max")
    oracle = oracle(objective, hyperparameters=hp, seed=1, **arguments)
    oracle.verbose = 0
    oracle._set_project_dir(tmp_path, "project")
    drawn = []
    while len(drawn) < count:
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            break
        drawn.append(space.declare(trial.hyperparameters.copy()))
        oracle.update_trial(trial.trial_id, {"score": 0.5})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    return drawn


def test_bytes_are_those_of_the_summary(base):
    space = _space(base, 10**6, scales=3, permutation=["in_filter", "cross_filter"])
    for permutation, bits in itertools.product((None, "in_filter", "cross_filter"), (None, 5)):
        values = {"hidden_size": 11, "num_layers": 3, "num_frequencies": 4, "encoding_base": 0.9}
        nern = keras_nern.NeRNModel(
            base,
            hidden_size=11,
            num_layers=3,
            permutation=permutation,
            encoding=keras_nern.PositionalEncoding(4, 0.9),
            normalize="layer",
        )
        nern = keras_nern.compress(nern, bits=bits) if bits else nern
        size = space.num_bytes({**values, "permutation": permutation, "bits": bits})
        assert size == nern.summary_table().representation_bytes


def test_a_single_width_is_a_share_of_the_widest_that_fits(base):
    # Dense(240, h), 3 x Dense(h, h), Dense(h, 9): 4 (3 h^2 + 253 h + 9) bytes,
    # which are 143,436 at h = 75 and 146,260 at 76
    space = _space(base, 146_259)
    hp = keras_tuner.HyperParameters()
    assert space.declare(hp)["hidden_size"] == 75
    assert [one.name for one in hp.space] == ["space", "width"]
    for width, hidden_size in ((50, 37), (10, 7), (1, LEAST_WIDTH)):
        hp.values["width"] = width
        assert space.declare(hp)["hidden_size"] == hidden_size


def test_where_all_fit_the_choices_are_flat(base):
    space = _space(base, 60_000, permutation=[None, "in_filter"], num_layers=[3, 4, 6])
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    assert [one.name for one in hp.space] == ["space", "permutation", "num_layers", "width"]
    assert not any(one.conditions for one in hp.space)


def test_what_fits_with_some_choices_only_is_asked_for_under_conditions(base):
    # 4 ((6 F + 10) h + 9) bytes at 2 blocks: at h = 4, with 1, 8 and 30 frequencies, 292,
    # 964 and 3,076; and log2(4! 24! 24!) / 8 = 20.3 for the cross-filter order
    frequencies = [1, 8, 30]
    space = _space(
        base, 975, permutation=[None, "cross_filter"], num_frequencies=frequencies, num_layers=2
    )
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    asked = {}
    for one in hp.space:
        asked.setdefault(one.name, []).append((one.conditions, getattr(one, "values", None)))
    assert [values for _, values in asked["permutation"]] == [["None", "cross_filter"]]
    ((conditions, values),) = asked["num_frequencies, permutation=None"]
    assert values == ["1", "8"]
    assert [(one.name, one.values) for one in conditions] == [("permutation", ["None"])]
    assert list(asked) == ["space", "permutation", "num_frequencies, permutation=None", "width"]
    hp.values["permutation"] = "cross_filter"  # which leaves no choice
    assert space.declare(hp)["num_frequencies"] == 1


@pytest.mark.parametrize("oracle", ["RandomSearchOracle", "HyperbandOracle"])
def test_all_that_is_drawn_fits_and_all_that_fits_is_drawn(base, tmp_path, oracle):
    choices = {
        "permutation": [None, "cross_filter"],
        "bits": [None, 4],
        "num_layers": [2, 3],
        "num_frequencies": [1, 8, 30],
    }
    space = _space(base, 975, **choices)
    limit = {"max_trials": 80} if oracle == "RandomSearchOracle" else {"max_epochs": 30}
    drawn = _drawn(space, 80, tmp_path, getattr(keras_tuner.oracles, oracle), **limit)
    assert len(drawn) == 80
    assert all(space.num_bytes(values) <= 975 for values in drawn)
    seen = {tuple(values[name] for name in choices) for values in drawn}
    fitting = set()
    for one in itertools.product(*choices.values()):
        values = dict(zip(choices, one, strict=True), hidden_size=LEAST_WIDTH)
        if space.num_bytes(values) <= 975:
            fitting.add(one)
    assert 0 < len(fitting) < 24
    # later rounds of Hyperband draw nothing new
    assert seen == fitting if oracle == "RandomSearchOracle" else seen <= fitting


def test_widths_to_choose_among_are_those_that_fit(base, tmp_path):
    # with 3 blocks 4 (h^2 + 251 h + 9) bytes, 40,076 at 35 and 46,596 at 40;
    # with 5 blocks 4 (3 h^2 + 253 h + 9), 11,356 at 10 and 50,156 at 35
    space = _space(base, 44_000, hidden_size=[10, 35, 40, 50], num_layers=[3, 5])
    drawn = _drawn(space, 30, tmp_path, max_trials=30)
    assert {(values["hidden_size"], values["num_layers"]) for values in drawn} == {
        (10, 3),
        (10, 5),
        (35, 3),
    }


def test_a_budget_that_nothing_fits_is_refused(base):
    # the smallest: width 4, 2 blocks, 1 frequency: 4 (16 * 4 + 9) = 292
    with pytest.raises(ValueError, match=r"smallest of which takes 292 bytes.*max_bytes=291"):
        _space(base, 291, num_layers=[2, 3], num_frequencies=[1, 8])
    _space(base, 292, num_layers=[2, 3], num_frequencies=[1, 8])


@pytest.mark.parametrize("max_bytes", [0, float("inf"), float("nan"), "much"])
def test_refuses_a_budget_that_is_none(base, max_bytes):
    with pytest.raises(ValueError, match=f"max_bytes must be a number.*{max_bytes!r}"):
        _space(base, max_bytes)


def test_refuses_percentages_and_choices_that_are_none(base):
    for narrowest in (0, 101, 0.5):
        with pytest.raises(ValueError, match=f"a percentage, 1 to 100.*{narrowest!r}"):
            _space(base, 10**5, narrowest=narrowest)
    with pytest.raises(ValueError, match=r"num_layers must be a value, or a list.*\[\]"):
        _space(base, 10**5, num_layers=[])
    with pytest.raises(ValueError, match=r"bits must be values that differ.*\[5, 4, 5\]"):
        _space(base, 10**5, bits=[5, 4, 5])


def test_refuses_hyperparameters_of_another_search(base):
    hp = keras_tuner.HyperParameters()
    _space(base, 50_000).declare(hp)
    with pytest.raises(ValueError, match=r"Expected: max_bytes=50000, .*Received: max_bytes=60000"):
        _space(base, 60_000).declare(hp)
    with pytest.raises(ValueError, match=r"num_layers=\['5'\].*num_layers=\['4', '5'\]"):
        _space(base, 50_000, num_layers=[4, 5]).declare(hp)


def test_refuses_a_value_that_is_not_among_the_choices(base):
    hp = keras_tuner.HyperParameters()
    hp.Fixed("num_layers", "7")
    with pytest.raises(ValueError, match=r"one of \['4', '5'\]. Received: '7'"):
        _space(base, 50_000, num_layers=[4, 5]).declare(hp)


def test_orders_of_one_kind_differ(base):
    """And a search with one is not gone on with by the other."""
    one = keras_nern.Permutation.from_model(base, "cross_filter", "greedy")
    orders = [order[::-1].copy() for order in one.orders]
    other = keras_nern.Permutation(one.grids, orders, "cross_filter")
    space = _space(base, 10**6, permutation=[one, other, "in_filter"])
    assert list(space.choices["permutation"].values()) == [one, other, "in_filter"]
    hp = keras_tuner.HyperParameters()
    _space(base, 10**6, permutation=one).declare(hp)
    with pytest.raises(ValueError, match="The trials in this directory are of another search"):
        _space(base, 10**6, permutation=other).declare(hp)
    again = keras_nern.Permutation(one.grids, one.orders, "cross_filter")
    assert _space(base, 10**6, permutation=again).declare(hp)["permutation"] == one
