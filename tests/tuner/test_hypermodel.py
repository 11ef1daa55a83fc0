"""Searches under a byte budget: the three tuners, killed ones, and several workers."""

import json
import os
import pathlib
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
# Eager, as that is fastest for so few steps of so small a predictor.
QUICK = {"optimizer": "sgd", "reconstruction_steps": 2, "run_eagerly": True}


class _Recorded(NeRNHyperModel):
    """Notes what each fit starts with and is asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fits = []

    def fit(self, hp, model, *args, **kwargs):
        before = int(model.reconstruction_iterations)
        history = super().fit(hp, model, *args, **kwargs)
        steps = model._runtime.schedule and int(model._runtime.schedule.decay_steps)
        self.fits.append(
            {
                "trial": hp.values.get("tuner/trial_id"),
                "reconstruction": (before, int(model.reconstruction_iterations)),
                "epochs": history.epoch,
                "schedule": steps,
            }
        )
        return history


def _hypermodel(base, max_bytes=3000, cls=NeRNHyperModel, **arguments):
    arguments = {"num_layers": [2, 3], "num_frequencies": 4, **arguments}
    return cls(base, max_bytes, **{"compile_arguments": QUICK, **arguments})


def _tuner(kind, hypermodel, folder, objective=AGREEMENT, **arguments):
    return getattr(keras_tuner, kind)(
        hypermodel, objective, directory=folder, project_name="search", seed=1, **arguments
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "trials"),
    [
        ("RandomSearch", {"max_trials": 3}, 3),
        ("BayesianOptimization", {"max_trials": 3, "num_initial_points": 2}, 3),
    ],
)
# Two points are too few for the length scale of scikit-learn's Gaussian process.
@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_searches_run_and_keep_to_the_budget(
    base, images, labels, tmp_path, kind, arguments, trials
):
    hypermodel = _hypermodel(base, permutation=[None, "cross_filter"])
    tuner = _tuner(kind, hypermodel, tmp_path, **arguments)
    tuner.search(images[:8], epochs=1, validation_data=(images[8:], labels[8:]), verbose=0)
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * trials
    front = pareto_front(tuner)
    assert len(front.trials) == trials
    for row in front.trials:
        model = tuner.load_model(tuner.oracle.get_trial(row.trial_id))
        assert row.bytes == model.summary_table().representation_bytes <= 3000
        assert row.hyperparameters["hidden_size"] == model.hidden_size
        assert row.hyperparameters["num_layers"] == model.num_layers
        assert row.hyperparameters["permutation"] == model.permutation
        # judged by the images for validation, and by no others
        results = model.evaluate(images[8:], labels[8:], verbose=0, return_dict=True)
        assert row.score == pytest.approx(results["agreement"])


def test_rounds_of_hyperband_go_on_from_one_another(base, images, labels, tmp_path):
    arguments = {"compile_arguments": {"reconstruction_steps": 2, "run_eagerly": True}}
    hypermodel = _hypermodel(base, cls=_Recorded, num_layers=2, **arguments)
    tuner = _tuner("Hyperband", hypermodel, tmp_path, max_epochs=3, factor=3)
    tuner.search(
        images[:8], batch_size=4, validation_data=(images[8:], labels[8:]), verbose=0, epochs=9
    )
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 6
    # three of one epoch, the best of which goes on to the third; two of three epochs at once
    assert [fit["epochs"] for fit in hypermodel.fits] == [[0], [0], [0], [1, 2], *[[0, 1, 2]] * 2]
    # the kernels are learnt once, before the first epoch
    steps = [fit["reconstruction"] for fit in hypermodel.fits]
    assert steps == [(0, 2)] * 3 + [(2, 2)] + [(0, 2)] * 2
    # two steps an epoch, over which the rate falls in each round anew
    assert [fit["schedule"] for fit in hypermodel.fits] == [2, 2, 2, 4, 6, 6]
    assert [fit["trial"] is not None for fit in hypermodel.fits] == [False] * 3 + [True] + [
        False
    ] * 2
    rows = pareto_front(tuner).trials
    assert len(rows) == 6
    assert all(row.bytes <= 3000 for row in rows)


def test_a_round_has_its_rate_whichever_epoch_it_goes_on_from(base, images, labels):
    """Also from one in the midst of a plan, which a fit that was stopped would go on with."""
    arguments = {"reconstruction_steps": 0, "run_eagerly": True}
    hypermodel = NeRNHyperModel(
        base, 3000, num_layers=2, num_frequencies=4, compile_arguments=arguments
    )
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    data = {"validation_data": (images, labels), "batch_size": 6, "verbose": 0}
    hypermodel.fit(hp, model, images, epochs=2, **data)
    model.optimizer.iterations.assign(2)  # the first of its two epochs was the better one
    hypermodel.fit(hp, model, images, epochs=3, initial_epoch=2, **data)
    assert int(model.optimizer.iterations) == 2
    assert int(model._runtime.schedule.decay_steps) == 2


def test_a_trial_is_made_counted_and_judged_as_was_asked(base, images, labels):
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
    small = keras_nern.compress(model, bits=5)
    size = hypermodel.num_bytes(hp)
    assert size == small.summary_table().representation_bytes
    assert 2500 < size <= 3000  # as wide as fits
    endless = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5).repeat()
    arguments = {"validation_data": endless, "validation_steps": 2, "verbose": 0}
    history = hypermodel.fit(hp, model, images, epochs=1, **arguments).history
    judged = keras_nern.compress(model, bits=5).evaluate(
        images[:10], labels[:10], verbose=0, return_dict=True
    )
    assert history["val_accuracy"] == pytest.approx([judged["accuracy"]])


def test_bits_are_judged_as_compress_leaves_them(base, images, labels, tmp_path):
    hypermodel = _hypermodel(base, num_layers=3, bits=[2])
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=2)
    tuner.search(images[:8], epochs=2, validation_data=(images[8:], labels[8:]), verbose=0)
    for row in pareto_front(tuner).trials:
        trial = tuner.oracle.get_trial(row.trial_id)
        small = keras_nern.compress(tuner.load_model(trial), bits=2)
        assert row.bytes == small.summary_table().representation_bytes <= 3000
        results = small.evaluate(images[8:], labels[8:], verbose=0, return_dict=True)
        assert row.score == pytest.approx(results["agreement"])
        error = trial.metrics.get_last_value("val_relative_error")
        assert error == pytest.approx(results["relative_error"], rel=1e-5)


def test_a_trial_that_diverged_is_judged_as_it_is(base, images, labels):
    nern = keras_nern.NeRNModel(base, 8)
    nern.predictor.output_layer.kernel.assign(np.full((8, 9), np.nan))
    judged = []
    callback = keras_nern.tuner.hypermodel._JudgeCompressed(
        lambda model: judged.append(model) or {}, bits=4
    )
    callback.set_model(nern)
    callback.on_epoch_end(0, {})
    assert judged == [nern]


def test_over_the_budget_a_trial_fails_before_it_is_built(base, images, labels, tmp_path):
    """As it can be where hyperparameters are overridden, one of these with too much."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("width", [100, 150])
    hypermodel = _hypermodel(base, num_layers=2)
    tuner = _tuner("RandomSearch", hypermodel, tmp_path, max_trials=2, hyperparameters=hp)
    built = []
    hypermodel._order = built.append
    tuner.search(images, validation_data=(images, labels), verbose=0)
    statuses = {t.hyperparameters.get("width"): t.status for t in tuner.oracle.trials.values()}
    assert statuses == {100: "COMPLETED", 150: "FAILED"}
    (message,) = [t.message for t in tuner.oracle.trials.values() if t.status == "FAILED"]
    assert "FailedTrialError: Expected at most 3,000 bytes. Received: " in message
    assert len(built) == 1
    # where the default is too much, before the search
    hp = keras_tuner.HyperParameters()
    hp.Fixed("width", 150)
    with pytest.raises(FailedTrialError, match="Expected at most 3,000 bytes"):
        _tuner("RandomSearch", hypermodel, tmp_path / "fixed", hyperparameters=hp)


def test_a_budget_that_nothing_fits_is_refused_up_front(base):
    # the smallest: width 4, 2 blocks: 4 ((24 + 10) * 4 + 9) = 580
    with pytest.raises(ValueError, match=r"smallest of which takes 580 bytes.*max_bytes=579"):
        _hypermodel(base, 579)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": [3, 1]}, "num_layers must be an integer of at least 2.*=1"),
        ({"hidden_size": [16, None]}, "hidden_size must be an integer.*=None"),
        ({"bits": [None, 9]}, "bits must be an integer from 2 to 8.*=9"),
        ({"permutation": [None, "random"]}, "permutation must be one of.*'random'"),
        ({"num_frequencies": [8, 0]}, "num_frequencies must be an integer of at least 1.*=0"),
        ({"encoding_base": [0.7, 3]}, "base must be between 0 and 2.*=3"),
        ({"encoding": keras.layers.Identity()}, r"leave its bytes.*\['encoding'\]"),
        ({"view": "slice"}, "view must be one of.*'slice'"),
    ],
)
def test_refuses_what_a_model_would_not_take(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        _hypermodel(base, 10**6, **arguments)


def test_refuses_data_before_any_training(base, images, labels, tmp_path):
    good = {"validation_data": (images, labels)}

    def search(objective, *args, **kwargs):
        tuner = _tuner(
            "RandomSearch", hypermodel, tmp_path, objective, overwrite=True, max_trials=1
        )
        tuner.search(*args, verbose=0, **kwargs)

    hypermodel = _hypermodel(base, cls=_Recorded)
    with pytest.raises(FatalValueError, match="search needs validation_data to choose by"):
        search(AGREEMENT, images)
    with pytest.raises(FatalValueError, match="x must give its images to every trial anew"):
        search(AGREEMENT, (image for image in images), **good)
    with pytest.raises(FatalValueError, match=r"x must contain images of shape \(batch, 8, 8, 1\)"):
        search(AGREEMENT, images[:, 1:], **good)
    with pytest.raises(FatalValueError, match=r"validation_data must contain images of shape"):
        search(AGREEMENT, images, validation_data=(images[:, 1:], labels))
    with pytest.raises(FatalValueError, match=r"labels in validation_data.*\['val_accuracy'\]"):
        search("val_accuracy", images, validation_data=images)
    assert hypermodel.fits == []
    search("val_accuracy", images, **good)
    assert len(hypermodel.fits) == 1


def test_refuses_to_go_on_with_another_search(base, images, labels, tmp_path):
    data = {"validation_data": (images, labels), "verbose": 0}
    _tuner("RandomSearch", _hypermodel(base), tmp_path, max_trials=1).search(images, **data)
    tuner = _tuner("RandomSearch", _hypermodel(base, 4000), tmp_path, max_trials=2)
    with pytest.raises(FatalValueError, match=r"=3000, .*Received: max_bytes=4000"):
        tuner.search(images, **data)
    with pytest.raises(FatalValueError, match=r"=3000, .*Received: max_bytes=4000"):
        pareto_front(tuner)


def test_an_order_is_searched_for_once(base, monkeypatch):
    hypermodel = _hypermodel(base, permutation="cross_filter")
    found = []
    of = keras_nern.Permutation.from_model

    def counted(*args):
        found.append(args[1])
        return of(*args)

    monkeypatch.setattr(keras_nern.Permutation, "of", counted)
    models = [hypermodel.build(keras_tuner.HyperParameters()) for _ in range(2)]
    assert found == ["cross_filter"]
    assert models[0].kernel_permutation() == of(base, "cross_filter")
    assert models[0].optimizer is not models[1].optimizer
    mine = of(base, "in_filter", "two_opt")
    hypermodel = _hypermodel(base, permutation=[mine])
    assert hypermodel.build(keras_tuner.HyperParameters()).kernel_permutation() == mine


def test_the_front_needs_a_tuner_that_knows_all_trials(base, tmp_path):
    with pytest.raises(ValueError, match="Expected the tuner of a NeRNHyperModel"):
        pareto_front(_tuner("RandomSearch", lambda hp: keras.Sequential(), tmp_path))


def test_the_package_needs_no_keras_tuner():
    """It is not there in this process, so that the package would not be imported with it."""
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
    assert done.stdout == "keras_nern.tuner needs `pip install keras-nern[tuner]`\n"


# Searches in processes of their own, as a user would start them.

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

class Noted(NeRNHyperModel):
    def fit(self, hp, model, *args, **kwargs):
        note(name, "begins", hp.get("width"))
        history = super().fit(hp, model, *args, **kwargs)
        note(name, "ends", hp.get("width"))
        return history

keras.utils.set_random_seed(1)
base = classifier()
images = np.random.default_rng(2).normal(size=(24, 8, 8, 1)).astype("float32")
hypermodel = Noted(
    base, 30_000, num_frequencies=4, permutation="cross_filter",
    compile_arguments={"optimizer": "sgd", "reconstruction_steps": 2, "run_eagerly": True},
)
tuner = keras_tuner.RandomSearch(
    hypermodel, keras_tuner.Objective("val_agreement", "max"), max_trials=max_trials, seed=1,
    directory=folder, project_name="search",
)
tuner.search(images[:16], epochs=1, validation_data=images[16:], verbose=0)
try:
    rows = [[row.bytes, row.score, row.trial_id] for row in pareto_front(tuner).trials]
except ValueError as error:
    rows = str(error)
(folder / f"{name}.json").write_text(json.dumps(rows))
"""


def _log(folder):
    path = pathlib.Path(folder) / "log.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _widths(log, what):
    return [int(width) for _, happened, width in log if happened == what]


def test_a_killed_search_goes_on(tmp_path):
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
    # one whose end was not yet written down is done again, and those before are not
    assert not set(finished[:2]) & set(_widths(again, "begins"))
    assert len(_widths(again, "begins")) == len(_widths(again, "ends")) == 2
    assert _widths(again, "begins")[0] == _widths(first, "begins")[2]
    rows = json.loads((tmp_path / "again.json").read_text())
    assert sorted(row[2] for row in rows) == ["0", "1", "2", "3"]


def test_a_chief_and_two_workers_share_a_search(tmp_path, monkeypatch):
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
    assert {name for name, happened, _ in log if happened == "ends"} == {"worker0", "worker1"}
    first, again = [width for name, what, width in log if (name, what) == ("worker1", "begins")][:2]
    assert first == again  # the trial that it had when it was killed
    widths = _widths(log, "ends")
    assert len(widths) == len(set(widths)) == 4
    rows = json.loads((tmp_path / "chief.json").read_text())
    assert sorted(row[2] for row in rows) == list("0123")
    # Dense(24, h), 3 x Dense(h, h), Dense(h, 9), and the order of 6 and 30 kernels
    order = (np.log2(720.0) + sum(np.log2(np.arange(1, 31)))) / 8
    sizes = {h: 4 * (3 * h * h + 37 * h + 9) + order for h in range(4, 60)}
    widest = max(h for h, size in sizes.items() if size <= 30_000)
    expected = sorted(sizes[max(4, widest * width // 100)] for width in widths)
    assert [row[0] for row in rows] == pytest.approx(expected)
    told = json.loads((tmp_path / "worker0.json").read_text())
    assert told.endswith("Received: the worker 'worker0'")
    # one that is made later reads what the chief wrote
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    hypermodel = NeRNHyperModel(classifier(), 30_000, num_frequencies=4, permutation="cross_filter")
    tuner = _tuner("RandomSearch", hypermodel, tmp_path)
    assert [[row.bytes, row.score, row.trial_id] for row in pareto_front(tuner).trials] == rows
