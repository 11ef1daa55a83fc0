"""The verbs as a user runs them: in this process, or in one of its own where signals matter."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from processes import ROOT, classifier

import keras_nern

pytest.importorskip("click", reason="install keras-nern[cli]")

from keras_nern import demo
from keras_nern.artifact import info
from keras_nern.cli import commands, data
from keras_nern.cli.__main__ import main
from keras_nern.cli.runners import _StopBetweenSteps

VERBS = ("fit", "compress", "info", "reconstruct", "evaluate", "export", "importance", "demo")


def run(*arguments):
    """The exit code, and what is printed on stdout and on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in arguments])
    return code, out.getvalue(), err.getvalue()


def results(*arguments):
    """The JSON document of a run that succeeds."""
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)  # fails on anything beside it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier, images with its classes but for two of ten, a NeRN and its compact file."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    base = classifier()
    base.save(folder / "base.keras")
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype("float32")
    labels = base.predict(images, verbose=0).argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.save(folder / "images.npy", images)
    code, _, err = run(*fit(folder, "nern.keras"))
    assert code == 0, err
    code, _, err = run("export", folder / "nern.keras", folder / "small.nern")
    assert code == 0, err
    few = ("--bits", 6, "--epochs", 0)
    code, _, err = run("compress", folder / "nern.keras", folder / "few_bits.keras", *few)
    assert code == 0, err
    return folder


def fit(folder, output, *more):
    small = ("--hidden-size", 8, "--steps", 40, "--quiet")
    given = ("--data", folder / "images.npz", "--epochs", 2, "--batch-size", 4)
    return ("fit", folder / "base.keras", folder / output, *small, *given, *more)


def kernels(path):
    return keras.models.load_model(path).predict_kernels()


def assert_same(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], atol=1e-6)


def test_help_has_examples_of_options_that_there_are_and_needs_no_tensorflow():
    script = (
        "import sys; from keras_nern.cli.__main__ import main\n"
        f"assert not any(main([verb, '--help']) for verb in {VERBS})\n"
        "assert not main(['--help'])\n"
        "assert 'tensorflow' not in sys.modules and 'keras_nern' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert set(commands.commands.commands) == set(VERBS)
    for verb in VERBS:
        assert f"Usage: keras-nern {verb}" in done.stdout
        known = {name for one in commands.commands.commands[verb].params for name in one.opts}
        examples = [line for line in done.stdout.splitlines() if f"  keras-nern {verb}" in line]
        assert len(examples) >= 2 or verb == "demo"
        for example in examples:
            options = {word for word in shlex.split(example, comments=True) if word[:2] == "--"}
            assert options <= known, example


def test_choices_are_those_of_the_library():
    assert commands.MEASURES == keras_nern.analysis.importance.MEASURES
    assert set(commands.PRECISIONS) == {"auto", "float32", "float16"} | {
        f"int{bits}" for bits in range(2, 9)
    }
    options = {one.name: one.default for one in commands.demo.params}
    given = [f"--{n.replace('_', '-')}={options[n]}" for n in options if n != "as_json"]
    assert vars(demo._options(given)) == vars(demo._options([]))


def test_fit_is_the_fit_of_the_library(folder):
    nern = keras.models.load_model(folder / "nern.keras")
    assert nern.hidden_size == 8
    assert nern.permutation == "cross_filter"
    assert not (folder / "nern.keras.backup").exists()
    keras.utils.set_random_seed(0)
    base = keras.models.load_model(folder / "base.keras")
    same = keras_nern.NeRNModel(base, hidden_size=8, permutation="cross_filter")
    same.compile(reconstruction_steps=40)
    images = np.load(folder / "images.npz")["images"]
    same.fit(images, epochs=2, batch_size=4, verbose=0)
    assert_same(nern.predict_kernels(), same.predict_kernels())


def test_fit_without_images_reports_itself(folder):
    output = folder / "chosen.keras"
    given = ("--epochs", 0, "--steps", 3, "--hidden-size", 4, "--permutation", "none")
    name = keras.models.load_model(folder / "base.keras").layers[0].name
    given += ("--exclude", name, "--view", "block", "--quiet")
    found = results("fit", folder / "base.keras", output, *given)
    nern = keras.models.load_model(output)
    assert found["relative_error"] == pytest.approx(nern.relative_error(), rel=1e-5)
    assert found["predictor_parameters"] == nern.predictor.count_params()
    assert list(nern.predict_kernels()) == [nern.base.layers[3].name]
    assert (nern.permutation, nern.view) == (None, "block")
    assert int(nern.reconstruction_iterations) == 3


def test_compress_is_that_of_the_library(folder):
    output = folder / "five.keras"
    given = ("--bits", 5, "--sparsity", 0.25, "--data", folder / "images.npz", "--batch-size", 4)
    found = results("compress", folder / "nern.keras", output, *given, "--quiet")
    small = keras.models.load_model(output)
    assert (small.bits, small.pruned) == (5, True)
    assert not (folder / "five.keras.backup").exists()
    keras.utils.set_random_seed(0)
    nern = keras.models.load_model(folder / "nern.keras")
    same = keras_nern.compress(nern, bits=5, sparsity=0.25)
    assert found["relative_error_before"] == pytest.approx(nern.relative_error(), rel=1e-5)
    assert found["relative_error_untrained"] == pytest.approx(same.relative_error(), rel=1e-4)
    same.fit(np.load(folder / "images.npz")["images"], batch_size=4, verbose=0)
    assert_same(small.predict_kernels(), same.predict_kernels())
    assert found["relative_error"] == pytest.approx(small.relative_error(), rel=1e-5)
    assert {"logits_loss", "feature_map_loss"} <= set(found["last_epoch"])


def test_compress_alone_trains_nothing_and_needs_no_images(folder):
    output = folder / "eight.keras"
    given = ("--bits", 8, "--epochs", 0, "--data", "no_such_data_set")
    found = results("compress", folder / "nern.keras", output, *given)
    assert not (folder / "eight.keras.backup").exists()
    assert found["relative_error"] == pytest.approx(found["relative_error_untrained"])
    assert found["last_epoch"] == {}
    held = results("export", output, folder / "eight.nern")
    assert held["precision"] == "int8"


OPTIONS = {"data_dir": None, "split": None, "scale": 1.0, "seed": 3}


def test_noise_is_the_same_for_all_that_are_compared(folder):
    base = keras.models.load_model(folder / "base.keras")
    options = {**OPTIONS, "data": "noise", "batch_size": 4, "noise_batches": 2}
    noise, _ = data.load(options, base, "train", for_training=True)
    assert isinstance(noise, keras_nern.NoiseDataset)
    images, labels = data.load(options, base, "test")
    assert labels is None
    np.testing.assert_array_equal(images, np.concatenate([noise[0], noise[1]]))


def test_a_dataset_of_tfds(cifar10):
    base = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    default = ROOT.parent / "shared" / "data" / "tfds"
    options = {**OPTIONS, "data": "cifar10", "scale": 1 / 255, "batch_size": 8}
    options["data_dir"] = os.environ.get("KERAS_NERN_TFDS", default)
    options["split"] = "test[:20]"
    batches, labels = data.load(options, base, "train")
    images = np.concatenate([np.asarray(batch) for batch in batches])
    np.testing.assert_allclose(images, cifar10[0][:20] / 255, rtol=1e-5)
    np.testing.assert_array_equal(labels, cifar10[1][:20])
    runs = [data.load(options, base, "train", for_training=True)[0] for _ in range(2)]
    # two epochs of either run: other orders of the same images, the same in both
    (first, second), again = ([_sums(run), _sums(run)] for run in runs)
    assert again == [first, second]
    assert first != second
    assert sorted(first) == sorted(second) == sorted(_sums([images]))


def _sums(batches):
    return [float(image.sum()) for batch in batches for image in np.asarray(batch)]


def test_info(folder):
    table = keras.models.load_model(folder / "nern.keras").summary_table()
    assert run("info", folder / "nern.keras")[1] == f"{table}\n"
    found = results("info", folder / "nern.keras")
    first, second = found["layers"]
    assert (first["shape"], first["weights"]) == ([3, 3, 1, 6], 54)
    assert (second["shape"], second["weights"]) == ([3, 3, 6, 5], 270)
    assert found["weights"] == 324
    # BN of 6, the second convolution's bias, Dense(5, 3)
    assert [one["weights"] for one in found["kept"]] == [24, 18]
    assert found["kept_weights"] == 24 + 5 + 18
    assert found["predictor_parameters"] == 240 * 8 + 8 + 3 * 72 + 8 * 9 + 9
    held = info.inspect(folder / "small.nern")
    assert run("info", folder / "small.nern")[1] == f"{held}\n"
    found = results("info", folder / "small.nern")
    assert found == {"kind": "a compact file", **json.loads(json.dumps(held.to_dict()))}


def test_reconstruct_from_both_kinds_of_files(folder):
    wanted = kernels(folder / "nern.keras")
    for name in ("nern.keras", "small.nern"):
        output = folder / f"rebuilt_from_{name}.keras"
        found = results("reconstruct", folder / name, output)
        rebuilt = keras.models.load_model(output)
        assert found == {"output": str(output), "parameters": rebuilt.count_params()}
        got = [rebuilt.layers[0].kernel.numpy(), rebuilt.layers[3].kernel.numpy()]
        for value, kernel in zip(got, wanted.values(), strict=True):
            np.testing.assert_allclose(value, kernel, atol=1e-6)


def test_evaluate(folder):
    nern = keras.models.load_model(folder / "nern.keras")
    held = np.load(folder / "images.npz")
    predicted = nern.predict(held["images"], verbose=0).argmax(axis=1)
    original = nern.base.predict(held["images"], verbose=0).argmax(axis=1)
    accuracy = np.mean(predicted == held["labels"])
    agreement = np.mean(predicted == original)
    given = ("--data", folder / "images.npz")
    assert results("evaluate", folder / "nern.keras", *given) == {
        "images": 10,
        "accuracy": pytest.approx(accuracy),
        "original_accuracy": pytest.approx(0.8),  # two labels of ten are wrong
        "drop": pytest.approx(0.8 - accuracy),
        "agreement": pytest.approx(agreement),
        "relative_error": pytest.approx(nern.relative_error(), rel=1e-5),
    }
    code, out, err = run("evaluate", folder / "small.nern", *given)
    assert (code, out.split()) == (0, ["images", "10", "accuracy", f"{accuracy:.4f}"])
    assert "1/1" in err  # Keras's progress
    base = ("--base", folder / "base.keras")
    found = results("evaluate", folder / "small.nern", "--data", folder / "images.npy", *base)
    assert found == {"images": 10, "agreement": pytest.approx(agreement)}
    found = results("evaluate", folder / "base.keras", *given)
    assert found == {"images": 10, "accuracy": pytest.approx(0.8)}
    noise = ("--data", "noise", "--batch-size", 4, "--noise-batches", 2)
    found = results("evaluate", folder / "base.keras", *base, *noise)
    assert found == {"images": 8, "agreement": 1.0}  # both have seen the same


def test_evaluate_a_network_of_one_output(folder, tmp_path):
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    images = rng.normal(size=(40, 8, 8, 1)).astype("float32")
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), *head])
    probabilities = model.predict(images, verbose=0)[:, 0]
    labels = (probabilities > 0.5).astype(int)
    assert 5 < labels.sum() < 35  # both classes are there
    labels[:4] = 1 - labels[:4]
    model.save(tmp_path / "binary.keras")
    np.savez(tmp_path / "binary.npz", images=images, labels=labels)
    found = results("evaluate", tmp_path / "binary.keras", "--data", tmp_path / "binary.npz")
    assert found["accuracy"] == pytest.approx(0.9)


@pytest.mark.parametrize("form", ["one-hot", "column", "x and y"])
def test_labels_and_names_of_other_forms(folder, form, tmp_path):
    held = np.load(folder / "images.npz")
    images, labels = held["images"], held["labels"]
    arrays = {
        "one-hot": {"images": images, "labels": np.eye(3)[labels]},
        "column": {"images": images, "labels": labels[:, None]},
        "x and y": {"x": images / 2, "y": labels},
    }
    np.savez(tmp_path / "other.npz", **arrays[form])
    scale = ("--scale", 2 if form == "x and y" else 1)
    given = ("--data", tmp_path / "other.npz")
    found = results("evaluate", folder / "base.keras", *given, *scale)
    assert found["accuracy"] == pytest.approx(0.8)


def test_export(folder):
    output = folder / "int4.nern"
    found = results("export", folder / "nern.keras", output, "--precision", "int4")
    assert found == {
        "output": str(output),
        **json.loads(json.dumps(info.inspect(output).to_dict())),
    }
    assert found["precision"] == "int4"
    assert found["file_bytes"] == output.stat().st_size < (folder / "small.nern").stat().st_size


def test_importance(folder):
    nern = keras.models.load_model(folder / "nern.keras")
    wanted = keras_nern.kernel_importance(nern, "magnitude")
    outputs = {name: folder / f"importance.{name}" for name in ("npz", "png", "keras")}
    given = ("--scores", outputs["npz"], "--plot", outputs["png"], "--pruned", outputs["keras"])
    given += ("--sparsity", 0.5, "--measure", "magnitude")
    found = results("importance", folder / "nern.keras", *given)
    assert [one["name"] for one in found["layers"]] == list(wanted)
    assert [one["kernels"] for one in found["layers"]] == [6, 30]
    first = found["layers"][0]
    assert first["median"] == pytest.approx(np.median(wanted[first["name"]]), rel=1e-5)
    saved = np.load(outputs["npz"])
    for name, score in wanted.items():
        np.testing.assert_allclose(saved[name], score, rtol=1e-6)
    assert outputs["png"].read_bytes().startswith(b"\x89PNG")
    pruned = keras.models.load_model(outputs["keras"])
    values = [pruned.layers[index].kernel.numpy() for index in (0, 3)]
    assert sum(np.count_nonzero(value) for value in values) == 18 * 9
    code, out, _ = run("importance", folder / "nern.keras")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["layer", *wanted]


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def main(arguments):
        seen.extend(arguments)
        print("the table")
        return {"original": {"accuracy": 0.5}, "rebuilt": {"accuracy": float("nan")}}

    monkeypatch.setattr(demo, "main", main)
    found = results("demo", "--hidden-size", 7, "--output", "here")
    assert found == {"original": {"accuracy": 0.5}, "rebuilt": {"accuracy": None}}
    options = demo._options(seen)
    assert (options.hidden_size, str(options.output), options.epochs) == (7, "here", 20)
    code, out, err = run("demo")
    assert (code, out) == (0, "accuracy: 0.500 original, nan rebuilt\n")
    assert "the table" in err


REFUSED = {
    "no such file": ("info nothing.keras", "'nothing.keras' does not exist"),
    "a folder": ("info .", "'.' is no file"),
    "another kind": (
        "info base.keras",
        "Expected a NeRN or a compact file. Received: 'base.keras', which is a Keras model",
    ),
    "no kind": ("info images.npz", "'images.npz', which is neither"),
    "a NeRN of a NeRN": ("fit nern.keras other.keras", "which is a NeRN"),
    "damaged": ("info damaged.nern", "it is damaged: its SHA-256 is not the one"),
    "cut": ("info cut.keras", "Received: 'cut.keras', which is neither"),
    "of Keras, but empty": ("fit hollow.keras other.keras", "Expected a model that Keras can load"),
    "another suffix": (
        "export nern.keras small.zip",
        "Expected a name that ends in .nern. Received: 'small.zip'",
    ),
    "no folder": ("export nern.keras there/small.nern", "there' does not exist"),
    "there already": ("export nern.keras small.nern", "'small.nern' exists: give --force"),
    "its own input": ("reconstruct nern.keras nern.keras --force", "'nern.keras' is the input"),
    "two outputs of a name": (
        "importance nern.keras --pruned a.keras --scores ./b.npz --plot a.png",
        "--pruned and --sparsity go together",
    ),
    "nothing to resume": (
        "fit base.keras other.keras --resume",
        "nothing to resume: 'other.keras.backup' does not exist",
    ),
    "no such layer": (
        "fit base.keras other.keras --epochs 0 --include stem",
        "include must name layers that can be represented",
    ),
    "no such dataset": (
        "fit base.keras other.keras --data no_such_data_set",
        "or a dataset of TFDS. Received: 'no_such_data_set'",
    ),
    "no such images": ("evaluate nern.keras --data nothing.npz", "'nothing.npz' does not exist"),
    "images of another shape": (
        "fit base.keras other.keras --data wide.npy",
        "--data must give images of shape (batch, 8, 8, 1), as the base takes them. "
        "Received: (2, 9, 9, 1)",
    ),
    "labels of other images": (
        "evaluate nern.keras --data few.npz",
        "must have a label for each of 2 images. Received: labels of shape (1,)",
    ),
    "arrays of other names": (
        "evaluate nern.keras --data names.npz",
        "Received: 'names.npz' with ['pixels']",
    ),
    "a damaged archive": (
        "evaluate nern.keras --data damaged.npz",
        "--data must be a file of arrays. Received: 'damaged.npz' (Bad CRC-32",
    ),
    "a cut archive": (
        "evaluate nern.keras --data cut.npz",
        "--data must be a file of arrays. Received: 'cut.npz' (File is not a zip file)",
    ),
    "an encrypted archive": (
        "evaluate nern.keras --data encrypted.npz",
        "--data must be a file of arrays. Received: 'encrypted.npz' (",
    ),
    "labels of another classifier": (
        "evaluate nern.keras --data labels.npz",
        "--data must have labels from 0 to 2, as the classifier has 3 classes. Received: [3], ...",
    ),
    "labels in words": (
        "evaluate nern.keras --data words.npz",
        "--data must have labels from 0 to 2, as the classifier has 3 classes. Received: ['cat'],",
    ),
    "an original of other classes": (
        "evaluate nern.keras --data images.npz --base five.keras",
        "Expected an original of 3 classes, as the rebuilt one. Received: one of 5",
    ),
    "bits that the predictor has not": (
        "export few_bits.keras a.nern --precision int8",
        "precision must be 'int6' for a predictor of 6 bits",
    ),
    "objects": ("evaluate nern.keras --data objects.npy", "--data must be a file of arrays"),
    "nothing to compare with": (
        "evaluate small.nern --data images.npy",
        "Expected labels in --data, for the accuracy, or --base",
    ),
    "no images": ("evaluate nern.keras", "Missing option '--data'"),
    "nothing to compress by": (
        "compress nern.keras a.keras",
        "Expected --bits, --sparsity, or both",
    ),
    "too many bits": ("compress nern.keras a.keras --bits 9", "9 is not in the range 2<=x<=8"),
    "compressed already": (
        "compress few_bits.keras a.keras --bits 4 --epochs 0",
        "The predictor must not be compressed already",
    ),
    "a scale of no number": (
        "fit base.keras other.keras --data images.npy --scale nan",
        "Expected a finite number. Received: nan",
    ),
    "images of no numbers": (
        "evaluate nern.keras --data nan.npy",
        "--data must have images of finite real numbers. Received: an array of float32, 64 of",
    ),
    "complex images": (
        "evaluate nern.keras --data complex.npy",
        "finite real numbers. Received: an array of complex64",
    ),
    "a negative seed": ("fit base.keras other.keras --seed -1", "-1 is not in the range 0<=x<="),
    "a folder of one's own": (
        "fit base.keras mine.keras --force",
        "Expected a backup of keras-nern, or nothing. Received: 'mine.keras.backup', which has no "
        "settings.json",
    ),
    "a file of one's own": (
        "fit base.keras file.keras --force",
        "Received: 'file.keras.backup', which has no settings.json",
    ),
    "a backup of other settings": (
        "fit base.keras listed.keras --resume",
        "'listed.keras.backup' holds no fit: its settings.json is no object",
    ),
    "a NeRN of NaN": (
        "importance nan.keras --scores scores.npz",
        "Expected a NeRN with finite weights. Received: one whose errors are NaN",
    ),
    "a NeRN of NaN to export": (
        "export nan.keras nan.nern",
        "Expected a predictor with finite weights. Received: some NaN or infinite",
    ),
    "a folder that cannot be made": (
        "demo --output images.npy/demo",
        "'images.npy/demo'",
    ),
    "packed in no known way": ("info method.keras", "'method.keras', which is neither"),
    "encrypted": ("info encrypted.keras", "'encrypted.keras', which is neither"),
    "a config that does not unpack": ("info inflated.keras", "'inflated.keras', which is neither"),
    "a config nested deeply": ("info nested.keras", "'nested.keras', which is neither"),
    "a config of blanks": ("info blank.keras", "'blank.keras', which is neither"),
    "a width of nothing": ("fit base.keras other.keras --hidden-size 0", "0 is not in the range"),
}


def _patched(archive, field, value):
    """An archive with another value in a field of every entry of its directory."""
    entry = archive.find(b"PK\x01\x02")
    while entry >= 0:
        place = entry + field
        archive = archive[:place] + value.to_bytes(2, "little") + archive[place + 2 :]
        entry = archive.find(b"PK\x01\x02", entry + 4)
    return archive


def _damaged_archives(folder):
    """Keras files, but for what zipfile and json say to them."""
    whole = (folder / "nern.keras").read_bytes()
    for name, field, value in (("method", 10, 99), ("encrypted", 8, 1)):
        (folder / f"{name}.keras").write_bytes(_patched(whole, field, value))
    texts = {"inflated": json.dumps(list(range(3000))), "nested": "[" * 200_000}
    for name, text in {**texts, "blank": "{" + " " * 2**26}.items():
        with zipfile.ZipFile(folder / f"{name}.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", text)
    content = bytearray((folder / "inflated.keras").read_bytes())
    content[60:62] = bytes(255 - byte for byte in content[60:62])
    (folder / "inflated.keras").write_bytes(content)


def _other_head(classes):
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(classes)]
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), *head])


@pytest.fixture(scope="module")
def spoilt(folder):
    """The folder, with all that is not to be taken beside what is."""
    content = (folder / "small.nern").read_bytes()
    (folder / "damaged.nern").write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    (folder / "cut.keras").write_bytes((folder / "nern.keras").read_bytes()[:1000])
    with zipfile.ZipFile(folder / "hollow.keras", "w") as archive:
        archive.writestr("config.json", '{"registered_name": "Functional"}')
    np.save(folder / "wide.npy", np.zeros((2, 9, 9, 1), "float32"))
    np.savez(folder / "few.npz", images=np.zeros((2, 8, 8, 1), "float32"), labels=np.zeros(1, int))
    np.savez(folder / "names.npz", pixels=np.zeros((2, 8, 8, 1), "float32"))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "labels.npz", images=np.zeros((2, 8, 8, 1), "float32"), labels=np.full(2, 3))
    np.savez(
        folder / "words.npz", images=np.zeros((2, 8, 8, 1), "float32"), labels=np.array(["cat"] * 2)
    )
    content = bytearray((folder / "images.npz").read_bytes())
    (folder / "cut.npz").write_bytes(content[:500])
    content[500] ^= 1  # within the first array
    (folder / "damaged.npz").write_bytes(content)
    (folder / "encrypted.npz").write_bytes(_patched((folder / "images.npz").read_bytes(), 8, 1))
    _other_head(5).save(folder / "five.keras")
    np.save(folder / "nan.npy", np.full((1, 8, 8, 1), np.nan, "float32"))
    np.save(folder / "complex.npy", np.zeros((2, 8, 8, 1), "complex64"))
    _damaged_archives(folder)
    broken = keras.models.load_model(folder / "nern.keras")
    broken.predictor.layers[0].bias.assign(np.full(8, np.nan))
    broken.save(folder / "nan.keras")
    (folder / "mine.keras.backup").mkdir()
    (folder / "mine.keras.backup" / "mine.txt").write_text("precious")
    (folder / "file.keras.backup").write_text("precious")
    (folder / "listed.keras.backup").mkdir()
    (folder / "listed.keras.backup" / "settings.json").write_text("[]")
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_any_work(spoilt, case, monkeypatch):
    monkeypatch.chdir(spoilt)
    before = {path.name: path.stat().st_mtime_ns for path in spoilt.iterdir()}
    line, message = REFUSED[case]
    code, out, err = run(*shlex.split(line), "--json")
    assert code == 2, err
    document = json.loads(out)
    assert document["exit_code"] == 2
    assert message in document["error"]
    assert message in " ".join(err.split())
    assert {path.name: path.stat().st_mtime_ns for path in spoilt.iterdir()} == before


def test_refuses_a_folder_that_cannot_be_written_to(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, _, err = run("reconstruct", folder / "nern.keras", folder / "closed.keras")
    assert code == 2
    assert "cannot be written to" in err


def test_a_plot_that_cannot_be_drawn_leaves_no_scores_behind(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outputs = ("--scores", folder / "no.npz", "--plot", folder / "no.png")
    code, _, err = run("importance", folder / "nern.keras", *outputs)
    assert code == 2
    assert "pip install keras-nern[plots]" in err
    assert not (folder / "no.npz").exists()


def test_force_replaces(folder):
    output = folder / "replaced.keras"
    output.write_text("something else")
    results("reconstruct", folder / "nern.keras", output, "--force")
    assert keras.models.load_model(output).count_params() > 0


def test_a_failure_of_the_work_is_another_exit_code(folder, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras_nern.NeRNModel, "export", full)
    code, out, err = run("export", folder / "nern.keras", folder / "full.nern", "--json")
    assert code == 1
    assert json.loads(out) == {"error": "[Errno 28] No space left on device", "exit_code": 1}
    assert err.endswith("Error: [Errno 28] No space left on device\n")

    def broken(*arguments, **options):
        raise AttributeError("a mistake of ours")

    monkeypatch.setattr(keras_nern.NeRNModel, "export", broken)
    code, out, err = run("export", folder / "nern.keras", folder / "full.nern", "--json")
    assert code == 1
    assert json.loads(out)["error"] == "AttributeError: a mistake of ours"
    assert "Traceback" in err


def test_says_what_to_install_without_click(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "keras_nern.cli.commands")
    assert main(["--help"]) == 2
    assert capsys.readouterr().err == "keras-nern needs click: `pip install keras-nern[cli]`\n"


STEPS = 300


def _long(verb, folder, output):
    if verb == "fit":
        model, options = "base.keras", ("--hidden-size", 8, "--steps", STEPS, "--epochs", 0)
    else:
        images = ("--data", folder / "images.npz", "--batch-size", 4)  # three batches
        model, options = "nern.keras", ("--bits", 5, *images, "--epochs", STEPS // 3)
    options += ("--seed", 5, "--backup-every", 10)
    return [str(one) for one in (verb, folder / model, folder / output, *options)]


@pytest.mark.parametrize(
    ("verb", "phase", "number"),
    [
        ("fit", "reconstruction", signal.SIGINT),
        ("compress", "distillation", signal.SIGTERM),
    ],
)
def test_a_signal_leaves_what_resume_ends_as_if_nothing_had_been(folder, verb, phase, number):
    for output in ("stopped.keras", "undisturbed.keras"):
        (folder / output).unlink(missing_ok=True)
    command = _long(verb, folder, "stopped.keras")
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_nern.cli", *command, "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    weights = folder / "stopped.keras.backup" / "latest.weights.h5"
    deadline = time.monotonic() + 600
    while not weights.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number, err
    document = json.loads(out)
    assert document["exit_code"] == 128 + number
    assert f"  {document['resume']}\n" in err
    step = int(document["error"].split("keeps step ")[1].split()[0].replace(",", ""))
    assert 10 <= step < STEPS
    assert f"of the {phase}" in document["error"]
    assert not (folder / "stopped.keras").exists()

    # what it is not to be taken for
    code, _, err = run(*command)
    assert code == 2
    assert "keeps a fit that was stopped: go on with --resume, or start over with --force" in err
    code, _, err = run(*command, "--resume", "--seed", 6)
    assert code == 2
    assert "Received: other options than its (seed=5, now 6)" in err

    name, *resume = shlex.split(document["resume"])
    assert (name, resume) == ("keras-nern", [*command, "--json", "--resume"])
    code, _, err = run(*resume)
    assert code == 0, err
    assert not weights.parent.exists()
    assert run(*_long(verb, folder, "undisturbed.keras"))[0] == 0
    assert_same(kernels(folder / "stopped.keras"), kernels(folder / "undisturbed.keras"))


def test_resume_refuses_another_file_of_the_name(folder, tmp_path):
    copy, backup = tmp_path / "base.keras", tmp_path / "out.keras.backup"
    command = ("fit", copy, tmp_path / "out.keras", "--epochs", 0, "--resume")
    backup.mkdir()
    copy.write_bytes((folder / "base.keras").read_bytes())
    (backup / "settings.json").write_text(json.dumps({"content": "0" * 64}))
    code, _, err = run(*command)
    assert code == 2
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    assert f"content='{'0' * 64}', now '{digest}'" in "".join(err.split("\n"))


def test_force_deletes_backups_alone(folder, tmp_path):
    small = ("--hidden-size", 4, "--steps", 2, "--epochs", 0, "--quiet", "--force")
    output = tmp_path / "out.keras"
    backup = tmp_path / "out.keras.backup"
    backup.mkdir()
    (backup / "partial.0123.settings.json").write_text("{")  # its writer was killed
    code, _, err = run("fit", folder / "base.keras", output, *small)
    assert code == 0, err
    assert not backup.exists()


def test_a_fit_that_diverges_fails(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(keras_nern.NeRNModel, "relative_error", lambda self: float("nan"))
    output = tmp_path / "out.keras"
    small = ("--hidden-size", 4, "--steps", 2, "--epochs", 0, "--quiet")
    code, out, err = run("fit", folder / "base.keras", output, *small, "--json")
    assert code == 1, err
    assert "it diverged; " in json.loads(out)["error"]
    assert not list(tmp_path.iterdir())


def test_a_resumed_fit_that_is_stopped_before_its_first_step_says_how_to_go_on(
    folder, tmp_path, monkeypatch
):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    output = tmp_path / "out.keras"
    command = [
        str(one) for one in ("fit", folder / "base.keras", output, "--steps", 2, "--epochs", 0)
    ]
    monkeypatch.setattr(keras_nern.NeRNModel, "fit", stop)
    code, out, _ = run(*command, "--json")
    assert code == 130
    assert "resume" not in json.loads(out)  # as it stopped by itself, and not by a signal
    code, out, err = run(*command, "--resume", "--json")
    assert code == 130
    document = json.loads(out)
    assert shlex.split(document["resume"]) == ["keras-nern", *command, "--resume", "--json"]
    assert f"{output}.backup keeps the fit as it was; go on by" in err


def test_a_second_ctrl_c_does_not_wait(capsys):
    keeping = keras.callbacks.BackupAndRestore("backup", save_freq=100)
    stopping = _StopBetweenSteps(keeping, "backup", "keras-nern fit --resume")
    stopping.on_train_batch_end(0)
    stopping.on_signal(signal.SIGINT, None)
    assert keeping.save_freq == 1
    assert "once more to stop at once" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt, match="--resume goes on from the last backup"):
        stopping.on_signal(signal.SIGINT, None)


def test_runs_as_a_module_and_as_a_script():
    setup = (ROOT / "setup.py").read_text()
    assert '"keras-nern = keras_nern.cli.__main__:main"' in setup
    assert keras_nern.cli.__main__.main is main
    done = subprocess.run(
        [sys.executable, "-m", "keras_nern.cli", "fit"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Missing argument 'BASE'" in done.stderr
