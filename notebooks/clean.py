"""Puts notebooks into the form in which they are kept: no outputs, no traces of a run.

    python notebooks/clean.py

What a notebook shows is made by running it, so the repository holds only what was written:
cells, their ids, the tag of the parameters' cell and the name of the kernel. Run it before a
commit; tests/test_notebooks.py says where it was forgotten.
"""

import pathlib

import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cleaned(text):
    """A notebook's file as it is kept.

    Args:
        text: of an `.ipynb` file.

    Returns:
        The same cells in format 4.5, as text.
    """
    notebook = nbformat.reads(text, as_version=4)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main():
    """Cleans all notebooks of this folder in place."""
    for path in sorted(pathlib.Path(__file__).parent.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = cleaned(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"cleaned {path.name}")


if __name__ == "__main__":
    main()
