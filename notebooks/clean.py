"""Removes outputs and execution metadata from the notebooks of this folder.

    python notebooks/clean.py

The repository stores only cells, their ids, the tag of the parameter cell and the name of the
kernel; outputs are made by running a notebook. Run this script before a commit.
tests/test_notebooks.py fails for notebooks that are not clean.
"""

import pathlib

import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cleaned(text):
    """Cleans the text of a notebook.

    Args:
        text: content of an `.ipynb` file.

    Returns:
        The content without outputs and execution metadata, in format 4.5.
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
