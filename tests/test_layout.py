"""The rules of the house, of CONTRIBUTING.md, that can be read off the source."""

import ast
import dataclasses
import inspect
import pathlib
import re

import pytest

import keras_nern

ROOT = pathlib.Path(keras_nern.__file__).parents[1]
MODULES = sorted(
    path.stem for path in (ROOT / "keras_nern").glob("*.py") if not path.stem.startswith("__")
)
INIT = ast.parse((ROOT / "keras_nern" / "__init__.py").read_text())
EXPORTS = [node for node in INIT.body if isinstance(node, ast.ImportFrom)]


def _house():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = text.split("```text\nkeras_nern/\n")[1].split("```")[0]
    return re.findall(r"^  (\w+)\.py +\S", listed, re.MULTILINE)


def _imported(module):
    """The modules of the package that a module imports, anywhere but for the type checker."""

    class Imports(ast.NodeVisitor):
        def __init__(self):
            self.found = set()

        def visit_If(self, node):
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_ImportFrom(self, node):
            if node.module == "keras_nern":
                self.found |= {alias.name for alias in node.names if alias.name in MODULES}
            elif node.module and node.module.startswith("keras_nern."):
                self.found.add(node.module.split(".")[1])

        def visit_Import(self, node):
            names = [alias.name for alias in node.names]
            self.found |= {name.split(".")[1] for name in names if name.startswith("keras_nern.")}

    imports = Imports()
    imports.visit(ast.parse((ROOT / "keras_nern" / f"{module}.py").read_text()))
    return imports.found


def test_the_house_lists_every_module_once():
    assert sorted(_house()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_above(module):
    house = _house()
    assert module in house
    above = set(house[: house.index(module)])
    assert _imported(module) <= above


def test_imports_are_found_wherever_they_are(tmp_path, monkeypatch):
    (tmp_path / "keras_nern").mkdir()
    (tmp_path / "keras_nern" / "some.py").write_text(
        "from keras_nern import blocks, undefined\n"
        "import keras_nern.utils.files\n"
        "if typing.TYPE_CHECKING:\n    from keras_nern.model import NeRNModel\n"
        "def f():\n    from keras_nern.permutations.tours import METHODS\n"
    )
    monkeypatch.setattr("test_layout.ROOT", tmp_path)
    assert _imported("some") == {"blocks", "files", "tours"}


def test_exports_say_name_as_name():
    statements = [node for node in INIT.body if not isinstance(node, ast.ImportFrom)]
    assert [type(node) for node in statements] == [ast.Expr, ast.Assign]  # docstring, version
    for node in EXPORTS:
        assert [alias.asname for alias in node.names] == [alias.name for alias in node.names]
    lines = [ast.unparse(node) for node in EXPORTS]
    assert lines == sorted(lines, key=lambda line: (line.split()[1].count("."), line))


def test_the_citation_is_of_this_version():
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == keras_nern.__version__


def _public():
    """Everything public: exported objects, and what the exported modules define."""
    for node in EXPORTS:
        for alias in node.names:
            exported = getattr(keras_nern, alias.name)
            if not inspect.ismodule(exported):
                yield alias.name, exported
                continue
            for name, value in vars(exported).items():
                own = getattr(value, "__module__", None) == exported.__name__
                if own and not name.startswith("_"):
                    yield f"{alias.name}.{name}", value


def _callables():
    """Public functions and classes, and the public methods of these.

    A method that is Keras's word (`call`, `get_config`, ...) may go without a docstring.
    """
    for name, value in _public():
        yield name, value
        own = [cls for cls in getattr(value, "__mro__", ()) if _is_ours(cls)]
        for cls in own:
            for attribute, method in vars(cls).items():
                method = getattr(method, "__func__", method)
                if attribute.startswith("_") or not inspect.isfunction(method):
                    continue
                theirs = [base for base in value.__mro__ if not _is_ours(base)]
                if method.__doc__ or not _is_known(attribute, theirs):
                    yield f"{name}.{attribute}", method


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == "keras_nern"


def _is_known(attribute, classes):
    known = ("get_config", "from_config")
    return attribute in known or any(hasattr(cls, attribute) for cls in classes)


CALLABLES = dict(_callables())


def _arguments(value):
    parameters = inspect.signature(value).parameters
    return {name for name in parameters if name not in ("self", "cls")}


def _documented(docstring, section):
    """The names that a section describes, several of which may share a line."""
    found = re.search(rf"^{section}:\n((?:(?: {{4}}.*)?\n)+)", docstring + "\n", re.MULTILINE)
    lines = re.findall(r"^ {4}(\*{0,2}\w+(?:,\s+\w+)*):", found[1] if found else "", re.MULTILINE)
    return {name.lstrip("*") for line in lines for name in re.split(r",\s+", line)}


@pytest.mark.parametrize("name", CALLABLES)
def test_public_names_have_docstrings(name):
    docstring = inspect.cleandoc(CALLABLES[name].__doc__ or "")
    summary, *rest = docstring.split("\n\n")
    assert summary.endswith("."), f"expected a summary that ends with a full stop: {summary!r}"
    if rest:  # else a line says all there is
        is_data = dataclasses.is_dataclass(CALLABLES[name])
        section = "Attributes" if is_data and "Args:" not in docstring else "Args"
        assert _documented(docstring, section) == _arguments(CALLABLES[name])


def test_reads_the_arguments_of_a_docstring():
    docstring = """Does.

    Args:
        a: one, b: or so.
        b, c,
            d: three.
        **kwargs: all else.

    Returns:
        x: no argument.
    """
    assert _documented(inspect.cleandoc(docstring), "Args") == {"a", "b", "c", "d", "kwargs"}
