"""A search space contains exactly the combinations that fit the budget."""

import itertools

import keras
import pytest

import keras_nern
from keras_nern.network.blocks import Blocks
from keras_nern.tuner.search_space import MIN_WIDTH, SearchSpace

keras_tuner = pytest.importorskip("keras_tuner", reason="install keras-nern[tuner]")


@pytest.fixture(scope="module")
def base():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Conv2D(6, 3),
            keras.layers.Conv2D(6, 1),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def _space(base, max_bytes, narrowest=10, arguments=None, **choices):
    defaults = {
        "hidden_size": [None],
        "permutation": [None],
        "bits": [None],
        "num_layers": [5],
        "num_frequencies": [40],
        "encoding_base": [0.76],
    }
    arguments = arguments or {}
    selection = {name: value for name, value in arguments.items() if name != "normalize"}
    blocks = Blocks(base, **selection)
    return SearchSpace(blocks, max_bytes, narrowest, {**defaults, **choices}, arguments)


def _drawn(space, count, tmp_path, oracle=keras_tuner.oracles.RandomSearchOracle, **arguments):
    """The values of an oracle's trials, all of which score 0.5."""
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


@pytest.mark.parametrize(
    "arguments", [{"normalize": "layer"}, {"view": "block", "block_size": 2, "include_dense": True}]
)
def test_bytes_match_the_summary_table(base, arguments):
    space = _space(base, 10**6, arguments=arguments, permutation=["in_filter", "cross_filter"])
    for permutation, bits in itertools.product((None, "in_filter", "cross_filter"), (None, 5)):
        values = {"hidden_size": 11, "num_layers": 3, "num_frequencies": 4, "encoding_base": 0.9}
        nern = keras_nern.NeRNModel(
            base,
            hidden_size=11,
            num_layers=3,
            permutation=permutation,
            encoding=keras_nern.PositionalEncoding(4, 0.9),
            **arguments,
        )
        nern = keras_nern.compress(nern, bits=bits) if bits else nern
        size = space.num_bytes({**values, "permutation": permutation, "bits": bits})
        assert size == nern.summary_table().representation_bytes


def test_width_is_a_percentage_of_the_largest_that_fits(base):
    # Dense(240, h), 3 x Dense(h, h), Dense(h, 9): 4 (3 h^2 + 253 h + 9) bytes,
    # which are 143,436 at h = 75 and 146,260 at 76
    space = _space(base, 146_259)
    hp = keras_tuner.HyperParameters()
    assert space.declare(hp)["hidden_size"] == 75
    assert [one.name for one in hp.space] == ["space", "width"]
    for width, hidden_size in ((50, 37), (10, 7), (1, MIN_WIDTH)):
        hp.values["width"] = width
        assert space.declare(hp)["hidden_size"] == hidden_size


def test_choices_are_independent_if_all_combinations_fit(base):
    space = _space(base, 60_000, permutation=[None, "in_filter"], num_layers=[3, 4, 6])
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    assert [one.name for one in hp.space] == ["space", "permutation", "num_layers", "width"]
    assert not any(one.conditions for one in hp.space)


def test_choices_are_conditional_if_only_some_combinations_fit(base):
    # 4 ((6 F + 10) h + 9) bytes with 2 layers: at h = 4, with 1, 8 and 30 frequencies, 292,
    # 964 and 3,076; and (log2(4!) + log2(24!) + log2(36!)) / 8 = 27.7 for the permutation
    frequencies = [1, 8, 30]
    space = _space(
        base, 975, permutation=[None, "cross_filter"], num_frequencies=frequencies, num_layers=[2]
    )
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    declared = {}
    for one in hp.space:
        declared.setdefault(one.name, []).append((one.conditions, getattr(one, "values", None)))
    assert [values for _, values in declared["permutation"]] == [["None", "cross_filter"]]
    ((conditions, values),) = declared["num_frequencies, permutation=None"]
    assert values == ["1", "8"]
    assert [(one.name, one.values) for one in conditions] == [("permutation", ["None"])]
    assert list(declared) == ["space", "permutation", "num_frequencies, permutation=None", "width"]
    hp.values["permutation"] = "cross_filter"  # leaves one value
    assert space.declare(hp)["num_frequencies"] == 1


@pytest.mark.parametrize(
    "oracle", ["RandomSearchOracle", pytest.param("HyperbandOracle", marks=pytest.mark.slow)]
)
def test_draws_all_combinations_that_fit_and_no_others(base, tmp_path, oracle):
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
        values = dict(zip(choices, one, strict=True), hidden_size=MIN_WIDTH)
        if space.num_bytes(values) <= 975:
            fitting.add(one)
    assert 0 < len(fitting) < 24
    # later rounds of Hyperband repeat combinations
    assert seen == fitting if oracle == "RandomSearchOracle" else seen <= fitting


def test_draws_the_given_widths_that_fit(base, tmp_path):
    # with 3 layers 4 (h^2 + 251 h + 9) bytes, 40,076 at 35 and 46,596 at 40;
    # with 5 layers 4 (3 h^2 + 253 h + 9), 11,356 at 10 and 50,156 at 35
    space = _space(base, 44_000, hidden_size=[10, 35, 40, 50], num_layers=[3, 5])
    drawn = _drawn(space, 30, tmp_path, max_trials=30)
    assert {(values["hidden_size"], values["num_layers"]) for values in drawn} == {
        (10, 3),
        (10, 5),
        (35, 3),
    }


def test_raises_for_a_budget_that_nothing_fits(base):
    # the smallest: width 4, 2 layers, 1 frequency: 4 (16 * 4 + 9) = 292
    choices = {"num_layers": [2, 3], "num_frequencies": [1, 8]}
    with pytest.raises(ValueError, match=r"must be at least 292, the size.*max_bytes=291"):
        _space(base, 291, **choices)
    _space(base, 292, **choices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_bytes": 0}, "max_bytes must be a finite number of at least 1.*max_bytes=0"),
        ({"max_bytes": float("inf")}, "max_bytes must be a finite number.*=inf"),
        ({"max_bytes": float("nan")}, "max_bytes must be a finite number.*=nan"),
        ({"max_bytes": "much"}, "max_bytes must be a finite number.*='much'"),
        ({"narrowest": 0}, "narrowest must be an integer of at least 1.*narrowest=0"),
        ({"narrowest": 0.5}, "narrowest must be an integer of at least 1.*narrowest=0.5"),
        ({"narrowest": 101}, "narrowest must be a percentage of at most 100.*narrowest=101"),
        ({"num_layers": []}, r"num_layers must be a value or a list.*num_layers=\[\]"),
        ({"bits": [5, 4, 5]}, r"bits must be .* different values.*bits=\[5, 4, 5\]"),
    ],
)
def test_raises_for_invalid_arguments(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        _space(base, **{"max_bytes": 10**5, **arguments})


def test_raises_for_hyperparameters_of_another_space(base):
    hp = keras_tuner.HyperParameters()
    _space(base, 50_000).declare(hp)
    with pytest.raises(ValueError, match=r"Expected: max_bytes=50000, .*Received: max_bytes=60000"):
        _space(base, 60_000).declare(hp)
    with pytest.raises(ValueError, match=r"num_layers=\['5'\].*num_layers=\['4', '5'\]"):
        _space(base, 50_000, num_layers=[4, 5]).declare(hp)
    hp = keras_tuner.HyperParameters()
    hp.Fixed("num_layers", "7")
    with pytest.raises(ValueError, match=r"one of \['4', '5'\]. Received: '7'"):
        _space(base, 50_000, num_layers=[4, 5]).declare(hp)


def test_distinguishes_permutations_of_one_kind(base):
    one = keras_nern.Permutation.from_model(base, "cross_filter", "greedy")
    reverse = [order[::-1] for order in one.orders]
    other = keras_nern.Permutation(one.grids, reverse, "cross_filter")
    space = _space(base, 10**6, permutation=[one, other, "in_filter"])
    assert list(space.choices["permutation"].values()) == [one, other, "in_filter"]
    hp = keras_tuner.HyperParameters()
    _space(base, 10**6, permutation=[one]).declare(hp)
    with pytest.raises(ValueError, match="The directory contains trials of another search space"):
        _space(base, 10**6, permutation=[other]).declare(hp)
    again = keras_nern.Permutation(one.grids, one.orders, "cross_filter")
    assert _space(base, 10**6, permutation=[again]).declare(hp)["permutation"] == one
