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
        "num_layers": [None],
        "experts": [1],
        "num_frequencies": [None],
        "encoding_base": [None],
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


def _only(space):
    """The values of a space of one combination."""
    hp = keras_tuner.HyperParameters()
    values = space.declare(hp)
    assert [one.name for one in hp.space] == ["space"]
    return values


@pytest.mark.parametrize("bits", [None, 7])
@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"normalize": "auto"},
        {"normalize": "layer"},
        {"normalize": None},
        {"view": "block", "block_size": 2, "include_dense": True},
    ],
)
def test_bytes_match_the_summary_table(base, arguments, experts, bits):
    permutation = "in_filter" if bits else "cross_filter"
    of_one = {"num_frequencies": 4, "encoding_base": 0.9} if experts == 1 else {}
    common = {"hidden_size": 11, "num_layers": 3, "permutation": permutation, "bits": bits}
    choices = {**common, "experts": experts, **of_one}
    space = _space(
        base, 10**6, arguments=arguments, **{name: [value] for name, value in choices.items()}
    )
    encoding = keras_nern.PositionalEncoding(4, 0.9) if experts == 1 else None
    nern = keras_nern.NeRNModel(base, experts=experts, encoding=encoding, **common, **arguments)
    assert space.num_bytes(_only(space)) == nern.summary_table().representation_bytes


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


def test_the_budget_determines_the_number_of_experts(base):
    # With 9 layers, 4 h (16 + 7 h + 9) bytes per expert, and 12 for the scales. Of the widths
    # 28 to 36, four experts of 28 use most of the budget: 99,008; three of 32 use 95,616.
    space = _space(base, 100_000, experts=["auto"])
    assert space.experts == [4]
    hp = keras_tuner.HyperParameters()
    values = space.declare(hp)
    nern = keras_nern.NeRNModel(base, size="100000 B")
    for name, expected in (("experts", 4), ("hidden_size", 28), ("num_layers", 9)):
        assert values[name] == getattr(nern, name) == expected
    assert values["num_frequencies"] is values["encoding_base"] is None
    hp.values["width"] = 50
    assert space.declare(hp) == {**values, "hidden_size": 14}
    # with 4 bits, h (16 + 7 h + 9) / 2 + 18: 30 of width 29 use 99,720
    assert _space(base, 100_000, experts=["auto"], bits=[4]).experts == [30]
    # a permutation counts in the budget
    assert _space(base, 99_008 + 12, experts=["auto"]).experts == [4]
    assert _space(base, 99_008 + 12, experts=["auto"], permutation=["in_filter"]).experts == [3]


@pytest.mark.parametrize(
    "choice", [{"hidden_size": [8]}, {"num_frequencies": [4]}, {"encoding_base": [0.9]}]
)
def test_auto_experts_are_one_with_arguments_of_one_predictor(base, choice):
    assert _space(base, 100_000, experts=["auto"], **choice).experts == [1]
    assert _space(base, 49_000, experts=["auto"]).experts == [1]  # less than two experts


def test_defaults_of_a_single_predictor(base):
    values = _only(_space(base, 10**6, hidden_size=[8]))
    assert (values["experts"], values["num_layers"]) == (1, 5)
    assert (values["num_frequencies"], values["encoding_base"]) == (40, 0.76)


def test_equal_combinations_are_drawn_once(base, tmp_path):
    # one predictor has 5 layers by default, several have 9; "auto" is 4
    choices = {"experts": ["auto", 1, 4], "num_layers": [None, 5, 9]}
    space = _space(base, 100_000, hidden_size=[4], **choices)
    drawn = _drawn(space, 20, tmp_path, max_trials=20)
    assert len(drawn) == 4
    assert {(values["experts"], values["num_layers"]) for values in drawn} == {
        *itertools.product((1, 4), (5, 9))
    }


def test_searches_the_encoding_of_single_predictors_only(base, tmp_path):
    choices = {"experts": [1, 3], "num_frequencies": [4, 8], "encoding_base": [0.7, 0.9]}
    space = _space(base, 20_000, **choices)
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    conditions = {one.name: [(c.name, c.values) for c in one.conditions] for one in hp.space}
    of_one = [("experts", ["1"])]
    assert conditions == {
        "space": [],
        "experts": [],
        "num_frequencies, experts=1": of_one,
        "encoding_base, experts=1": of_one,
        "width": [],
    }
    drawn = _drawn(space, 60, tmp_path, max_trials=60)
    assert {tuple(values[name] for name in choices) for values in drawn} == {
        (3, None, None),
        *itertools.product((1,), (4, 8), (0.7, 0.9)),
    }
    assert len({values["hidden_size"] for values in drawn if values["experts"] == 3}) > 3
    assert all(space.num_bytes(values) <= 20_000 for values in drawn)


def test_leaves_out_numbers_of_experts_that_exceed_the_budget(base, tmp_path):
    # At width 4, an expert of 9 layers takes 4 x 4 (16 + 7 x 4 + 9) = 848 bytes, and the layers'
    # scales take 12; one predictor of 9 layers 4 (7 x 16 + (240 + 8 + 9) 4 + 9) = 4,596.
    choices = {"experts": [3, 1, 5, 6], "num_layers": [9]}
    space = _space(base, 5 * 848 + 12, **choices)
    assert space.experts == [3, 5]
    drawn = _drawn(space, 20, tmp_path, max_trials=20)
    assert {values["experts"] for values in drawn} == {3, 5}
    assert _space(base, 4596, **choices).experts == [1, 3, 5]
    _space(base, 3 * 848 + 12, **choices)
    with pytest.raises(ValueError, match=r"must be at least 2,556, the size.*max_bytes=2,555"):
        _space(base, 3 * 848 + 11, **choices)


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
        values = dict(zip(choices, one, strict=True), hidden_size=MIN_WIDTH, experts=1)
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
        ({"max_bytes": 0}, "max_bytes must be a finite number above 0.*max_bytes=0"),
        ({"max_bytes": float("inf")}, "max_bytes must be a finite number.*=inf"),
        ({"max_bytes": float("nan")}, "max_bytes must be a finite number.*=nan"),
        ({"max_bytes": "much"}, "max_bytes must be a number of bytes or .*='much'"),
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
    with pytest.raises(ValueError, match=r"num_layers=\['None'\].*num_layers=\['4', '5'\]"):
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
