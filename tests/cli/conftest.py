import importlib.util

import keras
import numpy as np
import pytest
from processes import classifier

if importlib.util.find_spec("click") is None:  # install keras-nern[cli]
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a classifier, ten images with two wrong labels, a NeRN and its compact file."""
    from command_line import fit_command, run

    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    base = classifier()
    base.save(folder / "base.keras")
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype("float32")
    labels = base.predict(images, verbose=0).argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.save(folder / "images.npy", images)
    few_bits = ("--bits", 6, "--epochs", 0)
    for command in (
        fit_command(folder, "nern.keras"),
        ("export", folder / "nern.keras", folder / "small.nern"),
        ("compress", folder / "nern.keras", folder / "few_bits.keras", *few_bits),
    ):
        code, _, err = run(*command)
        assert code == 0, err
    return folder
