"""Runs notebooks and writes them with their outputs as pages of the documentation.

    python notebooks/render.py                 # all notebooks
    python notebooks/render.py 1_quick_start   # one of them

Each notebook runs with its own parameters. The page docs/notebooks/NAME.md holds its cells and what
they print, and NAME_1.png, NAME_2.png, ... hold its pictures. The script prints the processor time
that a notebook took. tests/test_notebooks.py fails if a page shows other cells than its notebook:
run this script after a change of a notebook.
"""

import base64
import io
import itertools
import os
import pathlib
import re
import resource
import sys
import tempfile

import nbclient
import nbformat
from PIL import Image

NOTEBOOKS = pathlib.Path(__file__).parent
PAGES = NOTEBOOKS.parent / "docs" / "notebooks"
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # TensorFlow describes the machine otherwise


def source(cell):
    """Returns the Markdown of a cell without its outputs."""
    if cell.cell_type == "code":
        return f"```python\n{cell.source}\n```"
    text = re.sub(r"\]\((\d_\w+)\.ipynb\)", r"](\1.md)", cell.source)
    return text.replace("](../docs/", "](../")


def page(name, notebook):
    """Returns the page of a notebook with outputs, and its pictures.

    Args:
        name: name of the notebook's file, without `.ipynb`.
        notebook: a notebook that was run.

    Returns:
        The Markdown, and the pictures `{file name: bytes in base64}`.
    """
    title, *cells = notebook.cells
    note = f"*This page is a notebook with its outputs: [download](../../notebooks/{name}.ipynb).*"
    parts, pictures = [source(title), note], {}
    for cell in cells:
        parts.append(source(cell))
        shown = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        for is_text, outputs in itertools.groupby(shown, _is_text):
            if is_text:  # what a cell prints may come in several outputs
                parts.append(f"```text\n{''.join(map(_text, outputs))}```")
                continue
            for output in outputs:
                if "image/png" in output.data:
                    picture = f"{name}_{len(pictures) + 1}.png"
                    pictures[picture] = output.data["image/png"]
                    parts.append(f"![Picture {len(pictures)}]({picture})")
                else:
                    parts.append(output.data["text/html"].strip())
    return "\n\n".join(parts) + "\n", pictures


def _is_text(output):
    return not {"image/png", "text/html"} & set(output.get("data", ()))


def _text(output):
    text = output.text if output.output_type == "stream" else output.data["text/plain"]
    return text.strip("\n") + "\n"


def run(path):
    """Returns the notebook of a file with the outputs of all its cells."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": folder}})
        client.execute(env={**os.environ, **ENVIRONMENT})
    return notebook


def processor_seconds():
    """Returns the processor time of all notebooks that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(names):
    """Runs and renders notebooks.

    Args:
        names: names of their files, with or without `.ipynb`; empty for all.
    """
    names = [pathlib.Path(name).stem for name in names]
    names = names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    PAGES.mkdir(exist_ok=True)
    for name in names:
        start = processor_seconds()
        text, pictures = page(name, run(NOTEBOOKS / f"{name}.ipynb"))
        for old in PAGES.glob(f"{name}_*.png"):
            old.unlink()
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
        for file, data in pictures.items():
            picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
            # 256 colors look the same and take a third of the bytes
            picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=0)
            picture.save(PAGES / file, optimize=True)
        print(f"{name}: {(processor_seconds() - start) / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main(sys.argv[1:])
