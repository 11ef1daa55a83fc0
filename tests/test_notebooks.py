"""Runs the lessons from beginning to end, on a little of CIFAR-10.

Each notebook ends in assertions of its own, which have to hold at these sizes as well. They are
set as papermill does it, by a cell behind the one that is tagged "parameters".
"""

import ast
import importlib.util
import os
import re

import pytest
from processes import ROOT

nbformat = pytest.importorskip("nbformat", reason="install keras-nern[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="install keras-nern[notebooks]")

# As pyproject.toml has them: warnings of Keras 3.15 and keras-tuner 1.4.8 about themselves, which
# Python hides by default.
KNOWN = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning,"
    "ignore:currentThread() is deprecated:DeprecationWarning,"
    "ignore:getName() is deprecated:DeprecationWarning"
)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# For each lesson the sizes here, and how many pictures it shows.
SMALL = {
    "1_quick_start": (
        {
            "train_images": 80,
            "validation_images": 16,
            "test_images": 100,
            "hidden_size": 32,
            "reconstruction_steps": 20,
            "batch_size": 8,
            "epochs": 1,
            "evaluate_every": 10,
        },
        4,
    ),
    "2_smoothness": (
        {
            "train_images": 32,
            "test_images": 100,
            "regularized_epochs": 1,
            "batch_size": 16,
            "hidden_size": 64,
            "reconstruction_steps": 100,
        },
        5,
    ),
    "3_distillation_and_data_free": (
        {
            "test_images": 50,
            "hidden_size": 64,
            "reconstruction_steps": 100,
            "distillation_steps": 4,
            "batch_size": 8,
        },
        3,
    ),
    "4_width_search": (
        {
            "train_images": 16,
            "validation_images": 16,
            "widths": [16, 32],
            "reconstruction_steps": 10,
            "batch_size": 8,
            "trials": 2,
        },
        1,
    ),
    "5_kernel_importance": (
        {
            "test_images": 50,
            "hidden_size": 32,
            "reconstruction_steps": 20,
            "sparsities": [0.0, 0.2],
        },
        2,
    ),
    "6_compact_file": (
        {
            "train_images": 16,
            "test_images": 50,
            "hidden_size": 32,
            "reconstruction_steps": 20,
            "batch_size": 8,
            "epochs": 1,
            "depths": [4],
        },
        1,
    ),
    "7_your_own_network": (
        {
            "weights": None,
            "side": 32,
            "train_images": 16,
            "test_images": 16,
            "train_epochs": 1,
            "hidden_size": 32,
            "reconstruction_steps": 20,
            "batch_size": 8,
        },
        2,
    ),
}


def _read(path):
    return nbformat.read(path, as_version=4)


def _parameters(notebook):
    """The index of the cell of parameters, and the names that it assigns."""
    (index,) = (
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    names = [node.targets[0].id for node in ast.parse(notebook.cells[index].source).body]
    return index, names


@pytest.fixture
def jupyter(monkeypatch, tmp_path):
    """An environment in which Jupyter finds this Python and package, and writes to a folder."""
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", f"default,{KNOWN}")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.delenv("MPLBACKEND", raising=False)


def test_every_lesson_is_tested():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_as_written(path):
    spec = importlib.util.spec_from_file_location("clean", ROOT / "notebooks" / "clean.py")
    clean = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clean)
    text = path.read_text(encoding="utf-8")
    assert text == clean.cleaned(text), "run `python notebooks/clean.py`"
    for cell in _read(path).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, jupyter, cifar10_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_NERN_TFDS", str(cifar10_folder))
    notebook = _read(path)
    small, pictures = SMALL[path.stem]
    index, names = _parameters(notebook)
    assert set(small) <= set(names)
    sizes = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(sizes))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.findall(r".*\b[A-Z]\w*Warning\b.*", printed) == []
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == pictures
    assert "assert " in notebook.cells[-1].source
