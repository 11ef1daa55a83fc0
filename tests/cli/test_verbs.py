"""The verbs, compared with the API."""

import json
import os

import keras
import numpy as np
import pytest
from command_line import assert_same, kernels, results, run
from processes import ROOT

import keras_nern
from keras_nern.artifact import info
from keras_nern.cli import data, runners
from keras_nern.training import settings


def test_fit_matches_the_api(folder):
    nern = keras.models.load_model(folder / "nern.keras")
    assert (nern.hidden_size, nern.num_layers) == (8, 5)
    assert nern.permutation == "cross_filter"
    assert not (folder / "nern.keras.backup").exists()
    keras.utils.set_random_seed(0)
    base = keras.models.load_model(folder / "base.keras")
    same = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    same.compile(reconstruction_steps=10)
    images = np.load(folder / "images.npz")["images"]
    same.fit(images, epochs=2, batch_size=4, verbose=0)
    assert_same(nern.predict_kernels(), same.predict_kernels())


def test_compress_represents_a_classifier_by_integers(folder, tmp_path):
    output = tmp_path / "small.keras"
    command = ("compress", folder / "base.keras", output, "--quiet")
    data = ("--data", folder / "images.npz", "--epochs", 0)
    found = results(*command, *data, "--max-bytes", "4 kB")
    small = keras.models.load_model(output)
    assert (small.experts, small.residual) == (0, True)
    assert found["relative_error"] == pytest.approx(small.relative_error())
    small.export(tmp_path / "small.nern", kept_precision="float16")
    assert os.path.getsize(tmp_path / "small.nern") <= 4_000
    drop = ("--max-drop", 20, "--validation", folder / "images.npz", "--force")
    results(*command, *data, *drop)
    coarser = keras.models.load_model(output)
    with np.load(folder / "images.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    found = coarser.evaluate(images, labels, verbose=0, return_dict=True)
    assert found["base_accuracy"] - found["accuracy"] <= 0.2 + 1e-6
    assert coarser.relative_error() != small.relative_error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of --max-bytes and --max-drop. Received: none of them."),
        (("--max-bytes", "4 kB", "--bits", 8), "Received: several of them."),
        (("--max-drop", 1), "Expected --max-drop with --validation. Received: one of them."),
        (("--bits", 8), "--bits and --sparsity compress a predictor. Received: a classifier"),
    ],
)
def test_compress_refuses_options_that_do_not_go_together(folder, tmp_path, options, message):
    code, _, err = run("compress", folder / "base.keras", tmp_path / "small.keras", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_fit_passes_its_options_to_the_api_and_reports_the_result(folder, tmp_path):
    output = tmp_path / "chosen.keras"
    name = keras.models.load_model(folder / "base.keras").layers[0].name
    options = ("--hidden-size", 4, "--num-layers", 3, "--permutation", "none", "--view", "block")
    options += ("--exclude", name, "--include-dense", "--reconstruction-steps", 3)
    found = results("fit", folder / "base.keras", output, *options, "--epochs", 0, "--quiet")
    nern = keras.models.load_model(output)
    assert (nern.hidden_size, nern.num_layers) == (4, 3)
    assert (nern.permutation, nern.view) == (None, "block")
    assert int(nern.reconstruction_iterations) == 3
    assert list(nern.predict_kernels()) == [nern.base.layers[index].name for index in (3, 5)]
    assert found["relative_error"] == pytest.approx(nern.relative_error(), rel=1e-5)
    assert found["predictor_parameters"] == nern.predictor.count_params()
    assert (found["experts"], found["hidden_size"], found["num_layers"]) == (1, 4, 3)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (("--size", 2), {"size": 2.0}),
        (("--size", "5 kB", "--experts", 1), {"size": "5 kB", "experts": 1}),
        (("--size", 1.5, "--experts", 3), {"size": 1.5, "experts": 3}),
        (("--hidden-size", 4, "--experts", "auto"), {"hidden_size": 4}),
    ],
)
def test_fit_chooses_the_shape_as_the_api_does(folder, tmp_path, options, arguments):
    output = tmp_path / "chosen.keras"
    few = ("--reconstruction-steps", 1, "--epochs", 0, "--quiet")
    found = results("fit", folder / "base.keras", output, *options, *few)
    base = keras.models.load_model(folder / "base.keras")
    same = keras_nern.NeRNModel(base, permutation="cross_filter", **arguments)
    for name in ("experts", "hidden_size", "num_layers"):
        assert found[name] == getattr(same, name)
    assert found["predictor_parameters"] == same.predictor.num_parameters


def test_fit_runs_curvature_steps_and_takes_a_teacher(folder, tmp_path):
    base, output = folder / "base.keras", tmp_path / "taught.keras"
    options = ("--data", folder / "images.npz", "--hidden-size", 4, "--reconstruction-steps", 1)
    results("fit", base, output, *options, "--epochs", 0, "--curvature-steps", 3, "--quiet")
    nern = keras.models.load_model(output)
    assert int(nern.curvature_iterations) == 3
    assert nern.teacher is None
    teacher = tmp_path / "teacher.keras"
    keras.models.load_model(base).save(teacher)
    results(
        "fit", base, output, *options, "--epochs", 1, "--teacher", teacher, "--force", "--quiet"
    )
    nern = keras.models.load_model(output)
    assert int(nern.curvature_iterations) == 0  # of a single predictor
    assert nern.teacher.path == str(teacher)


def test_fit_without_distillation_gathers_the_curvature_from_named_images(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(settings.AUTO["local"], "curvature_steps", 3)
    options = ("--experts", 3, "--hidden-size", 4, "--reconstruction-steps", 1, "--epochs", 0)
    command = ("fit", folder / "base.keras", tmp_path / "fitted.keras", *options, "--force")
    for source, steps in ((("--data", folder / "images.npz"), 3), ((), 0)):
        results(*command, *source, "--quiet")
        nern = keras.models.load_model(tmp_path / "fitted.keras")
        assert int(nern.curvature_iterations) == steps


def test_fit_runs_the_automatic_number_of_steps(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "EPOCHS", {False: 5, True: 7})
    command = ("fit", folder / "base.keras", tmp_path / "auto.keras", "--epochs", 0)
    local = ("--experts", 3, "--hidden-size", 4, "--num-layers", 3)
    for options, steps in ((("--hidden-size", 4), 5), (local, 7)):
        code, out, err = run(*command, *options, "--force")
        assert code == 0, err
        assert f"{steps}/{steps}" in err
        nern = keras.models.load_model(tmp_path / "auto.keras")
        assert int(nern.reconstruction_iterations) == nern.reconstruction_steps == steps
        assert f"(experts={nern.experts}, hidden_size=4)" in out


def test_compress_matches_the_api(folder, tmp_path):
    output = tmp_path / "five.keras"
    options = ("--bits", 5, "--sparsity", 0.25, "--data", folder / "images.npz", "--batch-size", 4)
    found = results("compress", folder / "nern.keras", output, *options, "--quiet")
    small = keras.models.load_model(output)
    assert (small.bits, small.pruned) == (5, True)
    assert list(tmp_path.iterdir()) == [output]
    keras.utils.set_random_seed(0)
    nern = keras.models.load_model(folder / "nern.keras")
    same = keras_nern.compress(nern, bits=5, sparsity=0.25)
    assert found["relative_error_before"] == pytest.approx(nern.relative_error(), rel=1e-5)
    assert found["relative_error_untrained"] == pytest.approx(same.relative_error(), rel=1e-4)
    same.fit(np.load(folder / "images.npz")["images"], batch_size=4, verbose=0)
    assert_same(small.predict_kernels(), same.predict_kernels())
    assert found["relative_error"] == pytest.approx(small.relative_error(), rel=1e-5)
    assert {"logits_loss", "feature_map_loss"} <= set(found["last_epoch"])


def test_compress_without_epochs_trains_nothing_and_needs_no_images(folder, tmp_path):
    output = tmp_path / "eight.keras"
    options = ("--bits", 8, "--epochs", 0, "--data", "no_such_dataset")
    found = results("compress", folder / "nern.keras", output, *options)
    assert list(tmp_path.iterdir()) == [output]
    assert found["relative_error"] == pytest.approx(found["relative_error_untrained"])
    assert found["last_epoch"] == {}
    assert results("export", output, tmp_path / "eight.nern")["precision"] == "int8"


def test_info_describes_nerns_and_compact_files(folder):
    table = keras.models.load_model(folder / "nern.keras").summary_table()
    assert run("info", folder / "nern.keras")[1] == f"{table}\n"
    found = results("info", folder / "nern.keras")
    assert found == {"kind": "nern", **json.loads(json.dumps(table.to_dict()))}
    held = info.inspect(folder / "small.nern")
    assert run("info", folder / "small.nern")[1] == f"{held}\n"
    found = results("info", folder / "small.nern")
    assert found == {"kind": "compact", **json.loads(json.dumps(held.to_dict()))}


@pytest.mark.parametrize("name", ["nern.keras", "small.nern"])
def test_reconstruct_writes_the_rebuilt_classifier_over_an_old_file(folder, name, tmp_path):
    output = tmp_path / "rebuilt.keras"
    output.write_text("something else")
    found = results("reconstruct", folder / name, output, "--force")
    rebuilt = keras.models.load_model(output)
    assert found == {"output": str(output), "parameters": rebuilt.count_params()}
    written = [rebuilt.layers[index].kernel.numpy() for index in (0, 3)]
    for value, kernel in zip(written, kernels(folder / "nern.keras").values(), strict=True):
        np.testing.assert_allclose(value, kernel, atol=1e-6)


def test_evaluate_measures_every_kind_of_file(folder):
    nern = keras.models.load_model(folder / "nern.keras")
    held = np.load(folder / "images.npz")
    predicted = nern.predict(held["images"], verbose=0).argmax(axis=1)
    original = nern.base.predict(held["images"], verbose=0).argmax(axis=1)
    accuracy = np.mean(predicted == held["labels"])
    agreement = np.mean(predicted == original)
    images = ("--data", folder / "images.npz")
    assert results("evaluate", folder / "nern.keras", *images) == {
        "images": 10,
        "accuracy": pytest.approx(accuracy),
        "original_accuracy": pytest.approx(0.8),  # two labels of ten are wrong
        "accuracy_drop": pytest.approx(0.8 - accuracy),
        "agreement": pytest.approx(agreement),
        "relative_error": pytest.approx(nern.relative_error(), rel=1e-5),
    }
    code, out, err = run("evaluate", folder / "small.nern", *images)
    assert (code, out.split()) == (0, ["images", "10", "accuracy", f"{accuracy:.4f}"])
    assert err.startswith("Classifier:\n1/1 ")
    base = ("--base", folder / "base.keras")
    found = results("evaluate", folder / "small.nern", "--data", folder / "images.npy", *base)
    assert found == {"images": 10, "agreement": pytest.approx(agreement)}
    found = results("evaluate", folder / "base.keras", *images)
    assert found == {"images": 10, "accuracy": pytest.approx(0.8)}


def test_evaluate_passes_the_same_noise_to_both_networks_in_batches(folder, monkeypatch):
    seen = []
    outputs = runners._outputs

    def spy(model, images, options):
        predict = model.predict_step

        def predict_step(data):
            batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            seen.append(keras.ops.convert_to_numpy(batch))
            return predict(data)

        model.predict_step, model.run_eagerly = predict_step, True
        return outputs(model, images, options)

    monkeypatch.setattr(runners, "_outputs", spy)
    base = ("--base", folder / "base.keras")
    noise = ("--data", "noise", "--batch-size", 4, "--noise-batches", 2, "--seed", 3)
    found = results("evaluate", folder / "base.keras", *base, *noise)
    assert found == {"images": 8, "agreement": 1.0}
    assert len(seen) == 4  # two networks, two batches
    expected = keras_nern.NoiseDataset(
        keras.models.load_model(folder / "base.keras"), batch_size=4, steps=2, seed=3
    )
    for index, batch in enumerate(seen):
        np.testing.assert_array_equal(batch, expected[index % 2])


def test_evaluate_a_classifier_with_one_output(tmp_path):
    keras.utils.set_random_seed(3)
    images = np.random.default_rng(3).normal(size=(40, 8, 8, 1)).astype("float32")
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), *head])
    probabilities = model.predict(images, verbose=0)[:, 0]
    labels = (probabilities > 0.5).astype(int)
    assert 5 < labels.sum() < 35  # both classes occur
    labels[:4] = 1 - labels[:4]
    model.save(tmp_path / "binary.keras")
    np.savez(tmp_path / "binary.npz", images=images, labels=labels)
    found = results("evaluate", tmp_path / "binary.keras", "--data", tmp_path / "binary.npz")
    assert found["accuracy"] == pytest.approx(0.9)


@pytest.mark.parametrize("form", ["one-hot", "column", "x and y"])
def test_reads_labels_and_names_of_other_forms(folder, form, tmp_path):
    held = np.load(folder / "images.npz")
    images, labels = held["images"], held["labels"]
    arrays = {
        "one-hot": {"images": images, "labels": np.eye(3)[labels]},
        "column": {"images": images, "labels": labels[:, None]},
        "x and y": {"x": images / 2, "y": labels},
    }
    np.savez(tmp_path / "other.npz", **arrays[form])
    scale = ("--scale", 2 if form == "x and y" else 1)
    images = ("--data", tmp_path / "other.npz")
    found = results("evaluate", folder / "base.keras", *images, *scale)
    assert found["accuracy"] == pytest.approx(0.8)


def test_reads_a_tfds_dataset(cifar10):
    base = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    options = {"data": "cifar10", "scale": 1 / 255, "batch_size": 8, "seed": 3}
    default = ROOT.parent / "shared" / "data" / "tfds"
    options["data_dir"] = os.environ.get("KERAS_NERN_TFDS", default)
    options["split"] = "test[:20]"
    batches, labels = data.load(options, base, "train")
    images = np.concatenate([np.asarray(batch) for batch in batches])
    np.testing.assert_allclose(images, cifar10[0][:20] / 255, rtol=1e-5)
    np.testing.assert_array_equal(labels, cifar10[1][:20])
    runs = [data.load(options, base, "train", for_training=True)[0] for _ in range(2)]
    # epochs have different orders of the same images, and two runs have the same epochs
    (first, second), again = ([_sums(run), _sums(run)] for run in runs)
    assert again == [first, second]
    assert first != second
    assert sorted(first) == sorted(second) == sorted(_sums([images]))


def _sums(batches):
    return [float(image.sum()) for batch in batches for image in np.asarray(batch)]


def test_export_writes_the_compact_file(folder, tmp_path):
    output = tmp_path / "int4.nern"
    found = results("export", folder / "nern.keras", output, "--precision", "int4")
    held = json.loads(json.dumps(info.inspect(output).to_dict()))
    assert found == {"output": str(output), **held}
    assert found["precision"] == "int4"
    assert found["file_bytes"] == output.stat().st_size < (folder / "small.nern").stat().st_size


def test_importance_writes_scores_a_plot_and_a_pruned_classifier(folder, tmp_path):
    nern = keras.models.load_model(folder / "nern.keras")
    expected = keras_nern.kernel_importance(nern, "magnitude")
    outputs = {name: tmp_path / f"importance.{name}" for name in ("npz", "png", "keras")}
    options = ("--scores", outputs["npz"], "--plot", outputs["png"], "--pruned", outputs["keras"])
    options += ("--sparsity", 0.5, "--measure", "magnitude")
    found = results("importance", folder / "nern.keras", *options)
    assert [one["name"] for one in found["layers"]] == list(expected)
    assert [one["kernels"] for one in found["layers"]] == [6, 30]
    first = found["layers"][0]
    assert first["median"] == pytest.approx(np.median(expected[first["name"]]), rel=1e-5)
    saved = np.load(outputs["npz"])
    for name, score in expected.items():
        np.testing.assert_allclose(saved[name], score, rtol=1e-6)
    assert outputs["png"].read_bytes().startswith(b"\x89PNG")
    pruned = keras.models.load_model(outputs["keras"])
    values = [pruned.layers[index].kernel.numpy() for index in (0, 3)]
    assert sum(np.count_nonzero(value) for value in values) == 18 * 9
    code, out, _ = run("importance", folder / "nern.keras")
    assert code == 0
    table = [line.split() for line in out.splitlines()]
    assert [row[0] for row in table if len(row) == 3] == list(expected)


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {}

    def run_demo(**options):
        given.update(options)
        print("the table")
        return {"original": {"accuracy": 0.5}, "rebuilt": {"accuracy": float("nan")}}

    monkeypatch.setattr(runners, "run_demo", run_demo)
    found = results("demo", "--hidden-size", 7, "--output", "here")
    assert found == {"original": {"accuracy": 0.5}, "rebuilt": {"accuracy": None}}
    assert (given["hidden_size"], str(given["output"]), given["epochs"]) == (7, "here", 20)
    code, out, err = run("demo")
    assert (code, out) == (0, "accuracy: 0.500 original, nan rebuilt\n")
    assert "the table" in err
