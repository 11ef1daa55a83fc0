"""Command lines that exit with code 2 before any work."""

import json
import shlex
import zipfile

import keras
import numpy as np
import pytest
from command_line import run

REFUSED = {
    "a missing file": ("info nothing.keras", "'nothing.keras' does not exist"),
    "a folder as input": (
        "info .",
        "Expected a NeRN or a compact file. Received: '.', a folder",
    ),
    "a folder as base": (
        "fit folder.keras other.keras",
        "Expected a Keras model or an HDF5 file. Received: 'folder.keras', a folder",
    ),
    "a file of another kind": (
        "info base.keras",
        "Expected a NeRN or a compact file. Received: 'base.keras', a Keras model",
    ),
    "a file of no kind": ("info images.npz", "'images.npz', a file of another kind"),
    "a NeRN of a NeRN": ("fit nern.keras other.keras", "'nern.keras', a NeRN"),
    "a damaged compact file": ("info damaged.nern", "does not match its SHA-256"),
    "a truncated Keras file": ("info cut.keras", "'cut.keras', a file of another kind"),
    "an unknown compression": ("info method.keras", "'method.keras', a file of another kind"),
    "an encrypted file": ("info encrypted.keras", "'encrypted.keras', a file of another kind"),
    "a damaged config": ("info inflated.keras", "'inflated.keras', a file of another kind"),
    "a deeply nested config": ("info nested.keras", "'nested.keras', a file of another kind"),
    "a huge config": ("info blank.keras", "'blank.keras', a file of another kind"),
    "an empty Keras file": (
        "fit hollow.keras other.keras",
        "Expected a model that Keras can load. Received: 'hollow.keras', which raises ",
    ),
    "a damaged HDF5 file": (
        "fit damaged.h5 other.keras",
        "Expected a model that Keras can load. Received: 'damaged.h5', a damaged HDF5 file",
    ),
    "an HDF5 file of weights": (
        "evaluate weights.h5 --data images.npz",
        "Received: 'weights.h5', which holds weights without a model: write it with model.save",
    ),
    "custom layers": (
        "fit custom.keras other.keras",
        "'custom.keras', whose custom layers the command line cannot import: use keras_nern in",
    ),
    "a base without convolutions": (
        "fit dense.keras other.keras --epochs 0",
        "Expected a model with at least one layer to represent. Received: 'dense', whose layers "
        "are all skipped: Dense, and include_dense is False",
    ),
    "a base of NaN": (
        "fit nan_base.keras other.keras --epochs 0",
        "'nan_base.keras' must have finite weights. Received: 'nan/kernel' with 18 of 18 entries",
    ),
    "an evaluation of NaN": (
        "evaluate nan_base.keras --data images.npz",
        "'nan_base.keras' must have finite weights. Received: 'nan/kernel' with 18 of 18 entries",
    ),
    "an original of NaN": (
        "evaluate base.keras --data images.npz --base nan_base.keras",
        "'nan_base.keras' must have finite weights",
    ),
    "a teacher of NaN": (
        "fit base.keras other.keras --data images.npz --teacher nan_base.keras",
        "teacher must have finite weights. Received: 'nan/kernel' with 18 of 18 entries",
    ),
    "a rebuilt classifier of NaN": (
        "reconstruct nan.keras a.keras",
        "'nan.keras' must have finite weights. Received: 'predictor/hidden_0/bias' with 8 of 8",
    ),
    "a compression of NaN": (
        "compress nan.keras a.keras --bits 8",
        "'nan.keras' must have finite weights",
    ),
    "an unknown suffix": (
        "export nern.keras small.zip",
        "Expected a name that ends in .nern. Received: 'small.zip'",
    ),
    "a missing folder": (
        "export nern.keras there/small.nern",
        "Expected a path in a folder that exists. Received: 'there/small.nern'",
    ),
    "a folder as output": (
        "reconstruct nern.keras folder.keras --force",
        "Expected the path of a file. Received: 'folder.keras'",
    ),
    "an existing output": (
        "export nern.keras small.nern",
        "'small.nern' exists: replace it with --force",
    ),
    "an output that is the input": (
        "reconstruct nern.keras nern.keras --force",
        "'nern.keras' is the input",
    ),
    "an output folder that cannot be made": ("demo --output images.npy/demo", "'images.npy/demo'"),
    "a pruned classifier without sparsity": (
        "importance nern.keras --pruned a.keras",
        "Expected --pruned and --sparsity together. Received: one of them",
    ),
    "pruning per layer without pruning": (
        "importance nern.keras --per-layer",
        "--per-layer needs --pruned and --sparsity. Received: neither",
    ),
    "an unknown layer": (
        "fit base.keras other.keras --epochs 0 --include stem",
        "include must name layers that can be represented",
    ),
    "a width of zero": ("fit base.keras other.keras --hidden-size 0", "0 is not in the range"),
    "no experts": (
        "fit base.keras other.keras --experts 0",
        "Expected auto or an integer of at least 1. Received: '0'",
    ),
    "a fraction of an expert": (
        "fit base.keras other.keras --experts 1.5",
        "Expected auto or an integer of at least 1. Received: '1.5'",
    ),
    "more experts than kernels": (
        "fit base.keras other.keras --experts 37 --epochs 0",
        "experts must be at most 36, the number of blocks. Received: experts=37",
    ),
    "no steps": (
        "fit base.keras other.keras --reconstruction-steps 0",
        "Expected auto or an integer of at least 1. Received: '0'",
    ),
    "a size in an unknown unit": (
        "fit base.keras other.keras --size '3 bits'",
        "such as '200 kB'. Received: size='3 bits'",
    ),
    "a negative size": (
        "fit base.keras other.keras --size -0.4",
        "size must be a finite number above 0. Received: size=-0.4",
    ),
    "a size of NaN": ("fit base.keras other.keras --size nan", "Received: size=nan"),
    "a size that is too small": (
        "fit base.keras other.keras --size '100 B' --epochs 0",
        "bytes for the predictor. Received: size='100 B'",
    ),
    "a size and a width": (
        "fit base.keras other.keras --size 0.4 --hidden-size 8",
        "Expected --size or --hidden-size. Received: both",
    ),
    "one layer": ("fit base.keras other.keras --num-layers 1", "1 is not in the range x>=2"),
    "a negative seed": ("fit base.keras other.keras --seed -1", "-1 is not in the range 0<=x<="),
    "a scale of NaN": (
        "fit base.keras other.keras --data images.npy --scale nan",
        "Expected a finite number. Received: nan",
    ),
    "no images": ("evaluate nern.keras", "Missing option '--data'"),
    "missing images": ("evaluate nern.keras --data nothing.npz", "'nothing.npz' does not exist"),
    "a file name with a typing error": (
        "evaluate nern.keras --data imges.npz",
        "'imges.npz' does not exist. Did you mean 'images.npz'?",
    ),
    "a dataset with a typing error": (
        "evaluate nern.keras --data cifar-10",
        "or the name of a TFDS dataset. Received: 'cifar-10'. Did you mean 'cifar10'?",
    ),
    "noise with a typing error": (
        "fit base.keras other.keras --data nosie",
        "Received: 'nosie'. Did you mean 'noise'?",
    ),
    "a file of no images": (
        "evaluate nern.keras --data base.keras",
        "or the name of a TFDS dataset. Received: the file 'base.keras'",
    ),
    "an unknown dataset": (
        "fit base.keras other.keras --data no_such_dataset",
        "or the name of a TFDS dataset. Received: 'no_such_dataset'",
    ),
    "images of another shape": (
        "fit base.keras other.keras --data wide.npy",
        "Received: (2, 9, 9, 1)",
    ),
    "images that are NaN": (
        "evaluate nern.keras --data nan.npy",
        "--data must have images of finite numbers. Received: NaN or infinity in image 0",
    ),
    "complex images": (
        "evaluate nern.keras --data complex.npy",
        "--data must have images of real numbers. Received: an array of complex64",
    ),
    "arrays of other names": (
        "evaluate nern.keras --data names.npz",
        "--data must have an array called images or x. Received: 'names.npz' with ['pixels']",
    ),
    "a damaged archive": (
        "evaluate nern.keras --data damaged.npz",
        "--data must be a file of NumPy arrays. Received: 'damaged.npz' (Bad CRC-32",
    ),
    "a truncated archive": (
        "evaluate nern.keras --data cut.npz",
        "--data must be a file of NumPy arrays. Received: 'cut.npz' (File is not a zip file)",
    ),
    "an encrypted archive": (
        "evaluate nern.keras --data encrypted.npz",
        "--data must be a file of NumPy arrays. Received: 'encrypted.npz' (",
    ),
    "pickled objects": (
        "evaluate nern.keras --data objects.npy",
        "--data must be a file of NumPy arrays. Received: 'objects.npy'",
    ),
    "fewer labels than images": (
        "evaluate nern.keras --data few.npz",
        "--data must have as many labels as images",
    ),
    "labels beyond the classes": (
        "evaluate nern.keras --data labels.npz",
        "--data must have one label from 0 to 2 per image, as the classifier has 3 classes. "
        "Received: labels of shape (2,) with the values [3], ...",
    ),
    "several labels per image": (
        "evaluate nern.keras --data maps.npz",
        "Received: labels of shape (2, 8, 8)",
    ),
    "labels that are text": (
        "evaluate nern.keras --data words.npz",
        "--data must have labels that are real numbers",
    ),
    "an original with other classes": (
        "evaluate nern.keras --data images.npz --base five.keras",
        "--base must have 3 classes, as the rebuilt classifier. Received: 5 classes",
    ),
    "neither labels nor an original": (
        "evaluate small.nern --data images.npy",
        "evaluate needs labels in --data, for the accuracy, or --base",
    ),
    "a precision of other bits": (
        "export few_bits.keras a.nern --precision int8",
        "precision must be",
    ),
    "nothing to compress by": (
        "compress nern.keras a.keras",
        "Expected --bits, --sparsity or both, or one of --max-bytes and --max-drop",
    ),
    "too many bits": ("compress nern.keras a.keras --bits 9", "9 is not in the range 2<=x<=8"),
    "a compressed predictor": (
        "compress few_bits.keras a.keras --bits 4 --epochs 0",
        "compressed",
    ),
    "scores of NaN": (
        "importance nan.keras --scores scores.npz",
        "'nan.keras' must have finite weights. Received: 'predictor/hidden_0/bias' with 8 of 8",
    ),
    "an export of NaN": (
        "export nan.keras nan.nern",
        "'nan.keras' must have finite weights. Received: 'predictor/hidden_0/bias' with 8 of 8",
    ),
    "nothing to resume": (
        "fit base.keras other.keras --resume",
        "--resume needs a backup. Received: none in 'other.keras.backup'",
    ),
    "a backup without a step": (
        "fit base.keras begun.keras --resume",
        "--resume needs a backup. Received: none in 'begun.keras.backup'",
    ),
    "a stopped fit": (
        "fit base.keras listed.keras",
        "'listed.keras.backup' holds the backup of a stopped fit: continue it with --resume",
    ),
    "damaged settings": (
        "fit base.keras listed.keras --resume",
        "'listed.keras.backup' cannot be resumed: settings.json must be an object",
    ),
    "a folder in the backup's place": (
        "fit base.keras mine.keras --force",
        "Expected a folder made by keras-nern, or none. Received: 'mine.keras.backup' "
        "without a settings.json",
    ),
    "a file in the backup's place": (
        "fit base.keras file.keras --force",
        "Received: 'file.keras.backup' without a settings.json",
    ),
}


def _patched(archive, field, value):
    """A zip archive with another value in a field of every entry of its directory."""
    entry = archive.find(b"PK\x01\x02")
    while entry >= 0:
        place = entry + field
        archive = archive[:place] + value.to_bytes(2, "little") + archive[place + 2 :]
        entry = archive.find(b"PK\x01\x02", entry + 4)
    return archive


class _Custom(keras.layers.Conv2D):
    pass


def _write_models(folder):
    whole = (folder / "nern.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[:1000])
    (folder / "method.keras").write_bytes(_patched(whole, 10, 99))
    (folder / "encrypted.keras").write_bytes(_patched(whole, 8, 1))
    configs = {
        "hollow": '{"registered_name": "Functional"}',
        "inflated": json.dumps(list(range(3000))),
        "nested": "[" * 200_000,
        "blank": "{" + " " * 2**26,
    }
    for name, text in configs.items():
        with zipfile.ZipFile(folder / f"{name}.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", text)
    content = bytearray((folder / "inflated.keras").read_bytes())
    content[60:62] = bytes(255 - byte for byte in content[60:62])
    (folder / "inflated.keras").write_bytes(content)
    content = bytearray((folder / "small.nern").read_bytes())
    content[-40] ^= 1
    (folder / "damaged.nern").write_bytes(content)
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    five = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), *head])
    five.save(folder / "five.keras")
    head = [keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential([keras.Input((8, 8, 1)), *head], name="dense").save(folder / "dense.keras")
    nan = keras.layers.Conv2D(2, 3, name="nan")
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    network = keras.Sequential([keras.Input((8, 8, 1)), nan, *head])
    network.save_weights(folder / "some.weights.h5")
    (folder / "some.weights.h5").rename(folder / "weights.h5")
    (folder / "damaged.h5").write_bytes((folder / "weights.h5").read_bytes()[:1000])
    nan.kernel.assign(np.full((3, 3, 1, 2), np.nan))
    network.save(folder / "nan_base.keras")
    keras.Sequential([keras.Input((8, 8, 1)), _Custom(2, 3)]).save(folder / "custom.keras")
    broken = keras.models.load_model(folder / "nern.keras")
    broken.predictor.layers[0].bias.assign(np.full(8, np.nan))
    broken.save(folder / "nan.keras")


def _write_images(folder):
    images = np.zeros((2, 8, 8, 1), "float32")
    np.save(folder / "wide.npy", np.zeros((2, 9, 9, 1), "float32"))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((1, 8, 8, 1), np.nan, "float32"))
    np.save(folder / "complex.npy", images.astype("complex64"))
    np.savez(folder / "names.npz", pixels=images)
    np.savez(folder / "few.npz", images=images, labels=np.zeros(1, int))
    np.savez(folder / "labels.npz", images=images, labels=np.full(2, 3))
    np.savez(folder / "maps.npz", images=images, labels=np.zeros((2, 8, 8), int))
    np.savez(folder / "words.npz", images=images, labels=np.array(["cat"] * 2))
    content = bytearray((folder / "images.npz").read_bytes())
    (folder / "encrypted.npz").write_bytes(_patched(bytes(content), 8, 1))
    (folder / "cut.npz").write_bytes(content[:500])
    content[500] ^= 1  # in the first array
    (folder / "damaged.npz").write_bytes(content)


def _write_backups(folder):
    (folder / "folder.keras").mkdir()
    files = {
        "mine": {"mine.txt": "precious"},
        "begun": {"settings.json": "{}"},
        "listed": {"settings.json": "[]", "latest.weights.h5": ""},
    }
    for name, contents in files.items():
        (folder / f"{name}.keras.backup").mkdir()
        for file, text in contents.items():
            (folder / f"{name}.keras.backup" / file).write_text(text)
    (folder / "file.keras.backup").write_text("precious")


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """The files of `folder`, and invalid files."""
    files = tmp_path_factory.mktemp("refused")
    for path in folder.iterdir():
        if path.is_file():
            (files / path.name).write_bytes(path.read_bytes())
    _write_models(files)
    _write_images(files)
    _write_backups(files)
    return files


@pytest.mark.parametrize("case", REFUSED)
def test_exits_with_code_2_before_any_work(files, case, monkeypatch):
    monkeypatch.chdir(files)
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    line, message = REFUSED[case]
    code, out, err = run(*shlex.split(line), "--json")
    assert code == 2, err
    document = json.loads(out)
    assert document["exit_code"] == 2
    assert message in document["error"]
    assert message in " ".join(err.split())
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before
