"""Runs every notebook from top to bottom on a few images of CIFAR-10, and checks its page.

Each notebook ends in assertions, which must also hold at the small sizes of this test. A cell after
the one that is tagged "parameters" sets the sizes, as papermill does. The pages of docs/notebooks/
show what the notebooks print at their own sizes, so the tests compare cells and pictures only.
"""

import ast
import importlib.util
import os
import re

import pytest
from processes import ROOT

nbformat = pytest.importorskip("nbformat", reason="install keras-nern[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="install keras-nern[notebooks]")

# The warnings of Keras 3.15 and keras-tuner 1.4.8 that pyproject.toml ignores, too.
IGNORED_WARNINGS = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning,"
    "ignore:currentThread() is deprecated:DeprecationWarning,"
    "ignore:getName() is deprecated:DeprecationWarning"
)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"

LONG = ("4_width_search", "6_compact_file")  # more than a minute

# For each notebook the values of its parameters, and the number of its pictures.
SMALL = {
    "1_quick_start": (
        {
            "train_images": 80,
            "validation_images": 16,
            "test_images": 100,
            "size": 0.1,
            "reconstruction_steps": 20,
            "curvature_steps": 10,
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
            "size": 0.1,
            "reconstruction_steps": 100,
        },
        5,
    ),
    "3_distillation_and_data_free": (
        {
            "test_images": 50,
            "size": 0.2,
            "reconstruction_steps": 150,
            "curvature_images": 32,
            "curvature_steps": 50,
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
            "curvature_steps": 5,
            "trials": 2,
        },
        1,
    ),
    "5_kernel_importance": (
        {
            "train_images": 16,
            "test_images": 50,
            "size": 0.1,
            "reconstruction_steps": 20,
            "sparsities": [0.0, 0.2],
        },
        2,
    ),
    "6_compact_file": (
        {
            "train_images": 16,
            "test_images": 50,
            "curvature_images": 16,
            "budgets": ["80 kB"],
            "size": 0.1,
            "reconstruction_steps": 20,
            "curvature_steps": 10,
            "batch_size": 8,
            "depths": [4],
        },
        1,
    ),
    "7_your_own_network": (
        {
            "side": 32,
            "train_images": 16,
            "test_images": 16,
            "train_epochs": 1,
            "size": 0.1,
            "reconstruction_steps": 20,
            "curvature_steps": 10,
            "distillation_steps": 2,
            "batch_size": 8,
        },
        2,
    ),
}


def _read(path):
    return nbformat.read(path, as_version=4)


def _script(name):
    """Imports a script of notebooks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _insert_parameters(notebook, values):
    """Inserts a cell that assigns `values`, which must be parameters of the notebook."""
    (index,) = (
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    statements = ast.parse(notebook.cells[index].source).body
    assert set(values) <= {statement.targets[0].id for statement in statements}
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source))


@pytest.fixture
def jupyter(monkeypatch, tmp_path):
    """An environment in which Jupyter uses this Python and package, and writes to `tmp_path`."""
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", f"default,{IGNORED_WARNINGS}")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.delenv("MPLBACKEND", raising=False)


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    clean = _script("clean")
    text = path.read_text(encoding="utf-8")
    assert text == clean.cleaned(text), "run `python notebooks/clean.py`"
    for cell in _read(path).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_page_shows_the_notebook(path):
    source = _script("render").source
    page = (PAGES / f"{path.stem}.md").read_text(encoding="utf-8")
    message = f"run `python notebooks/render.py {path.stem}`"
    cells = _read(path).cells
    place = 0
    for cell in cells:
        found = page.find(f"{source(cell)}\n", place)
        assert found >= 0, f"{message}: the page lacks a cell, or has it elsewhere\n{cell.source}"
        place = found + len(source(cell))
    assert page.count("```python") == sum(cell.cell_type == "code" for cell in cells), message
    _, num_pictures = SMALL[path.stem]
    pictures = re.findall(r"!\[.*\]\((.*\.png)\)", page)
    assert len(pictures) == num_pictures, message
    assert {file.name for file in PAGES.glob(f"{path.stem}_*.png")} == set(pictures), message


def test_pages_are_of_notebooks_and_small():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted(SMALL)
    assert sum(path.stat().st_size for path in PAGES.iterdir()) < 1_500_000


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG))
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs(path, jupyter, cifar10_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_NERN_TFDS", str(cifar10_folder))
    notebook = _read(path)
    values, num_pictures = SMALL[path.stem]
    _insert_parameters(notebook, values)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.findall(r".*\b[A-Z]\w*Warning\b.*", printed) == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == num_pictures
    assert "assert " in notebook.cells[-1].source
