"""Searches within a budget of bytes: three tuners, killed searches, and several workers."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import ROOT, classifier, start

import keras_nern

keras_tuner = pytest.importorskip("keras_tuner", reason="install keras-nern[tuner]")

from keras_tuner.errors import FailedTrialError, FatalValueError  # noqa: E402

from keras_nern.tuner import NeRNHyperModel, pareto_front  # noqa: E402

AGREEMENT = keras_tuner.Objective("val_agreement", "max")
# Eager execution is fastest for few steps of a small predictor.
QUICK = {"optimizer": "sgd", "reconstruction_steps": 2, "run_eagerly": True}


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, use_bias=False, name="stem"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(6, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).normal(size=(12, 8, 8, 1)).astype("float32")


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(3).integers(0, 3, 12)


class _Recorded(NeRNHyperModel):
    """Records what each fit starts from and does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fits = []

    def fit(self, hp, model, *args, **kwargs):
        before = int(model.reconstruction_iterations)
        history = super().fit(hp, model, *args, **kwargs)
        self.fits.append(
            {
                "continues": "tuner/trial_id" in hp.values,
                "reconstruction": (before, int(model.reconstruction_iterations)),
                "epochs": history.epoch,
                "decay_steps": _decay_steps(model),
            }
        )
        return history


def _decay_steps(model):
    """The length of the default optimizer's schedule; `None` for another optimizer."""
    rate = model.optimizer.get_config()["learning_rate"]
    return rate["config"]["decay_steps"] if isinstance(rate, dict) else None


def _hypermodel(base, max_bytes=3000, cls=NeRNHyperModel, **arguments):
    arguments = {"num_layers": [2, 3], "num_frequencies": 4, **arguments}
    return cls(base, max_bytes, **{"compile_arguments": QUICK, **arguments})


def _tuner(kind, hypermodel, folder, objective=AGREEMENT, seed=1, **arguments):
    arguments = {"directory": folder, "project_name": "search", "seed": seed, **arguments}
    return getattr(keras_tuner, kind)(hypermodel, objective, **arguments)


def _data(images, labels):
    """Arguments of `search`: 8 images to train on, and 4 to validate on."""
    return {
        "x": images[:8],
        "batch_size": 4,
        "validation_data": (images[8:], labels[8:]),
        "verbose": 0,
    }


def _check_trials(tuner, images, labels):
    """Checks the bytes, hyperparameters and score of each trial against its saved model."""
    trials = pareto_front(tuner).trials
    for trial in trials:
        model = tuner.load_model(tuner.oracle.get_trial(trial.trial_id))
        for name in ("experts", "hidden_size", "num_layers", "permutation"):
            assert trial.hyperparameters[name] == getattr(model, name)
        bits = trial.hyperparameters["bits"]
        scored = model if bits is None else keras_nern.compress(model, bits=bits)
        assert trial.bytes == scored.summary_table().representation_bytes <= 3000
        results = scored.evaluate(images[8:], labels[8:], verbose=0, return_dict=True)
        assert trial.score == pytest.approx(results["agreement"])
        metrics = tuner.oracle.get_trial(trial.trial_id).metrics
        error = metrics.get_last_value("val_relative_error")
        assert error == pytest.approx(results["relative_error"], rel=1e-5)
    return trials


def test_random_search_keeps_to_the_budget_and_resumes_only_the_same_space(
    base, images, labels, tmp_path
):
    choices = {"permutation": [None, "cross_filter"], "bits": [None, 2]}
    hypermodel = _hypermodel(base, **choices)
    # the three trials of this seed have both permutations, and bits as well as floats
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, seed=11, max_trials=3)
    tuner.search(**_data(images, labels))
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 3
    trials = _check_trials(tuner, images, labels)
    assert {trial.hyperparameters["bits"] for trial in trials} == {None, 2}
    assert {trial.hyperparameters["permutation"] for trial in trials} == {None, "cross_filter"}

    other = _tuner("RandomSearch", _hypermodel(base, 4000, **choices), tmp_path, max_trials=4)
    for resume in (lambda: other.search(**_data(images, labels)), lambda: pareto_front(other)):
        with pytest.raises(FatalValueError, match=r"=3000, .*Received: max_bytes=4000"):
            resume()


def test_searches_the_number_of_experts(base, images, labels, tmp_path):
    """A trial of one predictor with floats and one of three with bits."""
    choices = {"experts": [1, 3], "bits": [None, 2]}

    def tuner():
        hypermodel = _hypermodel(base, **choices)
        return _tuner("RandomSearch", hypermodel, tmp_path, seed=11, max_trials=2)

    first = tuner()
    first.search(**_data(images, labels))
    assert [trial.status for trial in first.oracle.trials.values()] == ["COMPLETED"] * 2
    trials = _check_trials(first, images, labels)
    # as the trials of this seed
    bits = {t.hyperparameters["experts"]: t.hyperparameters["bits"] for t in trials}
    assert bits == {1: None, 3: 2}
    frequencies = {
        t.hyperparameters["experts"]: t.hyperparameters["num_frequencies"] for t in trials
    }
    assert frequencies == {1: 4, 3: None}
    again = tuner()
    again.reload()
    assert pareto_front(again) == pareto_front(first)


def test_builds_the_experts_that_the_budget_determines(base):
    hypermodel = NeRNHyperModel(base, 80_000, compile_arguments=QUICK)
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    whole = keras_nern.NeRNModel(base, size="80 kB")
    values = hypermodel.configuration(hp)
    assert values["experts"] == model.experts == whole.experts > 1
    assert values["hidden_size"] == model.hidden_size == whole.hidden_size
    assert hypermodel.num_bytes(hp) == model.summary_table().representation_bytes
    hp.values["width"] = 25
    narrow = hypermodel.build(hp)
    assert narrow.experts == whole.experts
    assert narrow.hidden_size == whole.hidden_size * 25 // 100
    assert hypermodel.num_bytes(hp) == narrow.summary_table().representation_bytes


@pytest.mark.slow
# Two points are too few for the length scale of scikit-learn's Gaussian process.
@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_bayesian_optimization_keeps_to_the_budget(base, images, labels, tmp_path):
    hypermodel = _hypermodel(base, permutation=[None, "cross_filter"])
    arguments = {"max_trials": 3, "num_initial_points": 2}
    tuner = _tuner("BayesianOptimization", hypermodel, tmp_path, **arguments)
    tuner.search(**_data(images, labels))
    assert len(_check_trials(tuner, images, labels)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("experts", [1, 3])
def test_rounds_of_hyperband_continue_each_other(base, images, labels, tmp_path, experts):
    arguments = {"compile_arguments": {"reconstruction_steps": 2, "run_eagerly": True}}
    if experts > 1:
        arguments |= {"experts": experts, "num_frequencies": None}
    hypermodel = _hypermodel(base, cls=_Recorded, num_layers=2, **arguments)
    tuner = _tuner("Hyperband", hypermodel, tmp_path, "val_accuracy", max_epochs=3, factor=3)
    tuner.search(epochs=9, **_data(images, labels))
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 6
    # three trials of one epoch, the best of which continues to the third; two of three epochs
    first = {
        "continues": False,
        "reconstruction": (0, 2),
        "epochs": [0],
        "decay_steps": 2,  # two steps per epoch
    }
    later = {
        "continues": True,
        "reconstruction": (2, 2),
        "epochs": [1, 2],
        "decay_steps": 4,
    }
    whole = {**first, "epochs": [0, 1, 2], "decay_steps": 6}
    assert hypermodel.fits == [first, first, first, later, whole, whole]
    trials = pareto_front(tuner).trials
    assert len(trials) == 6
    assert all(trial.bytes <= 3000 for trial in trials)


def test_trials_share_the_curvature_of_their_images(base, images, labels, monkeypatch):
    gathered = []
    gather = keras_nern.NeRNModel.gather_curvature

    def recorded(model, x, *args, **kwargs):
        gathered.append(x)
        gather(model, x, *args, **kwargs)

    monkeypatch.setattr(keras_nern.NeRNModel, "gather_curvature", recorded)
    arguments = {"reconstruction_steps": 1, "curvature_steps": 2, "run_eagerly": True}
    choices = {"experts": 3, "num_frequencies": None, "compile_arguments": arguments}
    hypermodel = _hypermodel(base, **choices)
    data = _data(images, labels)

    def trial(width, **changed):
        hp = keras_tuner.HyperParameters()
        hp.values["width"] = width
        model = hypermodel.build(hp)
        model.logits_weight = changed.pop("logits_weight", model.logits_weight)
        hypermodel.fit(hp, model, **{**data, **changed})
        assert int(model.curvature_iterations) == 2
        return model

    first, second = trial(100), trial(50)
    assert first.hidden_size > second.hidden_size
    assert len(gathered) == 1
    alone = keras_nern.NeRNModel(base, experts=3, hidden_size=first.hidden_size, num_layers=2)
    alone.gather_curvature(data["x"], batch_size=4, verbose=0)
    for own, shared in zip(alone._objective.factors(), second._objective.factors(), strict=True):
        np.testing.assert_allclose(shared.inputs, own.inputs, rtol=1e-5)
        np.testing.assert_allclose(shared.outputs, own.outputs, rtol=1e-4)
    gathered.clear()
    other = images[:8] + 1
    for changed in ({}, {"logits_weight": 1.0}, {"logits_weight": 1.0}, {"x": other}):
        trial(100, **changed)
    assert [x is other for x in gathered] == [False, True]


def test_a_trial_without_epochs_is_scored_after_its_other_phases(base, images, labels, tmp_path):
    hypermodel = _hypermodel(base, num_layers=2)
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=1)
    tuner.search(**_data(images, labels), epochs=0)
    (trial,) = _check_trials(tuner, images, labels)
    model = tuner.load_model(tuner.oracle.get_trial(trial.trial_id))
    assert int(model.reconstruction_iterations) == 2


def test_tells_the_time_that_a_search_still_takes(base, images, labels, tmp_path, capsys):
    hypermodel = _hypermodel(base, num_layers=2)
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=2)
    tuner.search(**{**_data(images, labels), "verbose": 2})
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if "more trials" in line]
    assert len(told) == 2
    assert re.fullmatch(r"1 more trials: 0:0\d:\d\d left", told[0])
    assert told[1] == "0 more trials: 0:00:00 left"


def test_a_later_round_restarts_the_schedule_from_any_epoch(base, images, labels):
    arguments = {"reconstruction_steps": 0, "run_eagerly": True}
    hypermodel = _hypermodel(base, num_layers=2, compile_arguments=arguments)
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    data = _data(images, labels)
    hypermodel.fit(hp, model, epochs=2, **data)
    model.optimizer.iterations.assign(2)  # the first of two epochs was the best
    hypermodel.fit(hp, model, epochs=3, initial_epoch=2, **data)
    assert int(model.optimizer.iterations) == 2
    assert _decay_steps(model) == 2


def test_builds_counts_and_scores_a_trial_with_all_arguments(base, images, labels):
    hypermodel = NeRNHyperModel(
        base,
        3000,
        num_layers=2,
        num_frequencies=4,
        encoding_base=0.9,
        bits=5,
        normalize="layer",
        include=["stem", "conv"],
        compile_arguments={"reconstruction_steps": 0, "run_eagerly": True},
    )
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    assert (model.encoding.num_frequencies, model.encoding.base) == (4, 0.9)
    assert model.normalize == "layer"
    assert list(model.predict_kernels()) == ["stem", "conv"]
    size = hypermodel.num_bytes(hp)
    assert size == keras_nern.compress(model, bits=5).summary_table().representation_bytes
    assert 2500 < size <= 3000  # the largest width that fits
    endless = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5).repeat()
    arguments = {"validation_data": endless, "validation_steps": 2, "verbose": 0}
    history = hypermodel.fit(hp, model, images, epochs=1, **arguments).history
    results = keras_nern.compress(model, bits=5).evaluate(
        images[:10], labels[:10], verbose=0, return_dict=True
    )
    assert history["val_accuracy"] == pytest.approx([results["accuracy"]])


class _Epochs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = {}

    def on_epoch_end(self, epoch, logs=None):
        self.logs[epoch] = dict(logs)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_trial_that_diverges_is_scored_as_it_was_before(base, images, labels, bits):
    arguments = {"optimizer": keras.optimizers.SGD(1e20), "reconstruction_steps": 50}
    arguments["run_eagerly"] = True
    hypermodel = _hypermodel(base, num_layers=2, bits=bits, compile_arguments=arguments)
    hp, epochs = keras_tuner.HyperParameters(), _Epochs()
    model = hypermodel.build(hp)
    scored = model if bits is None else keras_nern.compress(model, bits)
    expected = scored.evaluate(images[8:], labels[8:], verbose=0, return_dict=True)
    history = hypermodel.fit(hp, model, **_data(images, labels), callbacks=[epochs])
    assert history.history == {f"val_{name}": [value] for name, value in expected.items()}
    assert epochs.logs == {0: {name: values[0] for name, values in history.history.items()}}


def test_a_trial_that_diverges_later_keeps_its_scores(base, images, labels):
    batches = np.repeat(images[None, :4], 4, axis=0)
    batches[3] = np.nan  # in the second epoch of two batches
    hypermodel = _hypermodel(base, num_layers=2)
    hp = keras_tuner.HyperParameters()
    history = hypermodel.fit(
        hp,
        hypermodel.build(hp),
        tf.data.Dataset.from_tensor_slices(batches),
        epochs=2,
        steps_per_epoch=2,
        validation_data=(images, labels),
        verbose=0,
    )
    assert history.epoch == [0]
    assert np.isfinite(history.history["val_loss"]).all()


@pytest.mark.slow
def test_trials_that_diverge_do_not_end_a_search(base, images, labels, tmp_path):
    arguments = {"optimizer": keras.optimizers.SGD(1e20), "reconstruction_steps": 3}
    arguments["run_eagerly"] = True
    hypermodel = _hypermodel(base, num_layers=2, compile_arguments=arguments)
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=4)  # three failures end it
    tuner.search(**_data(images, labels))
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 4
    _check_trials(tuner, images, labels)


def test_a_trial_over_budget_fails_before_it_is_built(base, images, labels, tmp_path):
    """Hyperparameters that override those of the search can exceed the budget."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("width", [100, 150])
    hypermodel = _hypermodel(base, num_layers=2)
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=2, hyperparameters=hp)
    tuner.search(**_data(images, labels))
    statuses = {t.hyperparameters.get("width"): t.status for t in tuner.oracle.trials.values()}
    assert statuses == {100: "COMPLETED", 150: "FAILED"}
    (message,) = [t.message for t in tuner.oracle.trials.values() if t.status == "FAILED"]
    assert "FailedTrialError: Expected at most 3,000 bytes. Received: " in message
    # a default over budget fails before the search
    hp = keras_tuner.HyperParameters()
    hp.Fixed("width", 150)
    with pytest.raises(FailedTrialError, match="Expected at most 3,000 bytes"):
        _tuner("RandomSearch", hypermodel, tmp_path / "fixed", hyperparameters=hp)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # the smallest: width 4, 2 layers: 4 ((24 + 10) * 4 + 9) = 580 bytes
        ({"max_bytes": 579}, r"must be at least 580, .*max_bytes=579"),
        ({"max_bytes": "0.579 kB"}, r"must be at least 580, .*max_bytes=579"),
        ({"max_bytes": "3 bits"}, r"max_bytes must be a number of bytes or .*max_bytes='3 bits'"),
        ({"max_bytes": None}, r"max_bytes must be a number of bytes or .*max_bytes=None"),
        ({"max_bytes": -1}, r"max_bytes must be a finite number above 0.*max_bytes=-1"),
        ({"num_layers": [3, 1]}, "num_layers must be an integer of at least 2.*=1"),
        ({"num_layers": [None, 2.5]}, "num_layers must be an integer of at least 2.*=2.5"),
        ({"experts": "many"}, "experts must be an integer of at least 1.*='many'"),
        ({"experts": [1, 0]}, "experts must be an integer of at least 1.*=0"),
        ({"experts": [1, 29]}, "experts must be at most 28, the number of blocks.*=29"),
        ({"experts": [3, 5]}, r"must include 1 or .*local predictors.*\[3, 5\].*_frequencies'"),
        ({"size": "3 kB"}, r"max_bytes is the size.*\['size'\]"),
        (
            {"experts": [1, 3], "compile_arguments": {"gradient_centering": True}},
            "compile_arguments: gradient_centering must be False.*local predictors",
        ),
        ({"hidden_size": [16, None]}, "hidden_size must be an integer.*=None"),
        ({"bits": [None, 9]}, "bits must be an integer from 2 to 8.*=9"),
        ({"permutation": [None, "random"]}, "permutation must be one of.*'random'"),
        ({"num_frequencies": [8, 0]}, "num_frequencies must be an integer of at least 1.*=0"),
        ({"encoding_base": [0.7, 3]}, "base must be .*=3"),
        ({"encoding": keras.layers.Identity()}, r"must not contain encoding,.*\['encoding'\]"),
        ({"view": "slice"}, "view must be one of.*'slice'"),
    ],
)
def test_raises_for_invalid_arguments(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        _hypermodel(base, **{"max_bytes": 10**6, **arguments})


def test_raises_for_invalid_data_before_any_training(base, images, labels, tmp_path):
    hypermodel = _hypermodel(base, cls=_Recorded)
    good = {"validation_data": (images, labels)}
    wrong = images[:, 1:]

    def check(message, objective, *args, **kwargs):
        tuner = _tuner(
            "RandomSearch", hypermodel, tmp_path, objective, overwrite=True, max_trials=1
        )
        with pytest.raises(FatalValueError, match=message):
            tuner.search(*args, verbose=0, **kwargs)

    check("search needs validation_data to score trials", AGREEMENT, images)
    check("x must be data that every trial can read", AGREEMENT, (x for x in images), **good)
    check(r"x must contain images of shape \(batch, 8, 8, 1\)", AGREEMENT, wrong, **good)
    message = "validation_data must contain images of shape"
    check(message, AGREEMENT, images, validation_data=(wrong, labels))
    message = r"labels in validation_data.*\['val_accuracy'\]"
    check(message, "val_accuracy", images, validation_data=images)
    assert hypermodel.fits == []


def test_searches_for_a_permutation_once(base, monkeypatch):
    hypermodel = _hypermodel(base, permutation="cross_filter")
    searched = []
    from_model = keras_nern.Permutation.from_model

    def recorded(*args):
        searched.append(args[1])
        return from_model(*args)

    monkeypatch.setattr(keras_nern.Permutation, "from_model", recorded)
    models = [hypermodel.build(keras_tuner.HyperParameters()) for _ in range(2)]
    assert searched == ["cross_filter"]
    assert models[0].kernel_permutation() == from_model(base, "cross_filter")
    assert models[0].optimizer is not models[1].optimizer
    given = from_model(base, "in_filter", "two_opt")
    hypermodel = _hypermodel(base, permutation=[given])
    assert hypermodel.build(keras_tuner.HyperParameters()).kernel_permutation() == given


def test_pareto_front_raises_for_another_hypermodel(tmp_path):
    with pytest.raises(ValueError, match="tuner must have a NeRNHyperModel"):
        pareto_front(_tuner("RandomSearch", lambda hp: keras.Sequential(), tmp_path))


def test_only_the_tuner_needs_keras_tuner():
    script = (
        "import sys; sys.modules['keras_tuner'] = None\n"
        "import keras_nern\n"
        "try:\n"
        "    import keras_nern.tuner\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert 'keras_tuner is not installed: run `pip install "keras-nern[tuner]"`' in done.stdout


# Searches in separate processes, as a user starts them.

SEARCH = """
import json, pathlib, sys
import keras, keras_tuner
import numpy as np
from processes import classifier
from keras_nern.tuner import NeRNHyperModel, pareto_front

folder, name, max_trials = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def note(*words):
    with open(folder / "log.txt", "a") as file:
        print(*words, file=file)

class Logged(NeRNHyperModel):
    def fit(self, hp, model, *args, **kwargs):
        note(name, "begins", hp.get("width"))
        history = super().fit(hp, model, *args, **kwargs)
        note(name, "ends", hp.get("width"))
        return history

keras.utils.set_random_seed(1)
base = classifier()
images = np.random.default_rng(2).normal(size=(24, 8, 8, 1)).astype("float32")
hypermodel = Logged(
    base, 30_000, num_frequencies=4, permutation="cross_filter",
    compile_arguments={"optimizer": "sgd", "reconstruction_steps": 2, "run_eagerly": True},
)
tuner = keras_tuner.RandomSearch(
    hypermodel, keras_tuner.Objective("val_agreement", "max"), max_trials=max_trials, seed=1,
    directory=folder, project_name="search",
)
tuner.search(images[:16], epochs=1, validation_data=images[16:], verbose=0)
try:
    rows = [[one.bytes, one.score, one.trial_id] for one in pareto_front(tuner).trials]
except ValueError as error:
    rows = str(error)
(folder / f"{name}.json").write_text(json.dumps(rows))
"""


def _log(folder):
    path = pathlib.Path(folder) / "log.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _widths(log, event):
    return [int(width) for _, logged, width in log if logged == event]


def test_a_killed_search_resumes(tmp_path):
    process = start(SEARCH, tmp_path, "first", 4)
    while len(_widths(_log(tmp_path), "begins")) < 3:
        assert process.poll() is None, "the search ended before it was killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = _log(tmp_path)
    finished = _widths(first, "ends")
    assert 2 <= len(finished) <= 3
    assert start(SEARCH, tmp_path, "again", 4).wait() == 0
    again = _log(tmp_path)[len(first) :]
    # a trial whose end was not yet stored is repeated, the trials before it are not
    assert not set(finished[:2]) & set(_widths(again, "begins"))
    assert len(_widths(again, "begins")) == len(_widths(again, "ends")) == 2
    assert _widths(again, "begins")[0] == _widths(first, "begins")[2]
    rows = json.loads((tmp_path / "again.json").read_text())
    assert sorted(row[2] for row in rows) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_chief_and_two_workers_run_one_search(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}

    def run(name):
        return start(SEARCH, tmp_path, name, 4, KERASTUNER_TUNER_ID=name, **address)

    processes = {name: run(name) for name in ("chief", "worker0", "worker1")}
    try:
        while not any(name == "worker1" for name, _, _ in _log(tmp_path)):
            assert processes["worker1"].poll() is None, "the worker ended without a trial"
            time.sleep(0.01)
        os.kill(processes["worker1"].pid, signal.SIGKILL)
        processes["worker1"].wait()
        processes["worker1"] = run("worker1")
        assert [process.wait(timeout=900) for process in processes.values()] == [0, 0, 0]
    finally:
        for process in processes.values():
            process.kill()
    log = _log(tmp_path)
    assert {name for name, event, _ in log if event == "ends"} == {"worker0", "worker1"}
    begun = [width for name, event, width in log if (name, event) == ("worker1", "begins")]
    assert begun[0] == begun[1]  # the killed worker repeats its trial
    widths = _widths(log, "ends")
    assert len(widths) == len(set(widths)) == 4
    rows = json.loads((tmp_path / "chief.json").read_text())
    assert sorted(row[2] for row in rows) == list("0123")
    # Dense(24, h), 3 x Dense(h, h), Dense(h, 9), and the permutation of 6 and 30 kernels
    permutation = (np.log2(720.0) + sum(np.log2(np.arange(1, 31)))) / 8
    sizes = {h: 4 * (3 * h * h + 37 * h + 9) + permutation for h in range(4, 60)}
    largest = max(h for h, size in sizes.items() if size <= 30_000)
    expected = sorted(sizes[max(4, largest * width // 100)] for width in widths)
    assert [row[0] for row in rows] == pytest.approx(expected)
    error = json.loads((tmp_path / "worker0.json").read_text())
    assert error.endswith("Received: the worker 'worker0'")
    # a tuner created later reads what the chief wrote
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    hypermodel = NeRNHyperModel(classifier(), 30_000, num_frequencies=4, permutation="cross_filter")
    tuner = _tuner("RandomSearch", hypermodel, tmp_path)
    assert [[one.bytes, one.score, one.trial_id] for one in pareto_front(tuner).trials] == rows
