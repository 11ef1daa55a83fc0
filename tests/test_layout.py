"""Checks the imports between the rooms of CONTRIBUTING.md, and the docstrings of public names."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re

import pytest

import keras_nern
import keras_nern.tuner

ROOT = pathlib.Path(keras_nern.__file__).parents[1]
PACKAGE = ROOT / "keras_nern"
INIT = ast.parse((PACKAGE / "__init__.py").read_text())
EXPORTS = [
    node
    for node in INIT.body
    if isinstance(node, ast.ImportFrom) and node.module.startswith("keras_nern")
]


def _rooms():
    """The lines of rooms in CONTRIBUTING.md: a list of lists, each importing from those before."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = text.split("The order of imports:\n\n```text\n")[1].split("```")[0]
    return [line.split() for line in listed.splitlines()]


def _modules(package=PACKAGE):
    """Dotted names of all modules, without the name of the package, and their files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def _imported(path, modules=MODULES):
    """The modules of the package that a file imports anywhere, type checking included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            name = name.removeprefix("keras_nern.")
            if name in modules:
                found.add(name)
            elif f"{name}.__init__" in modules and name != "keras_nern":
                found.add(f"{name}.__init__")
            elif name == "keras_nern":
                found.add("__init__")
    # `from keras_nern.room import module` imports the module, not the empty room
    return {one for one in found if one != "__init__" or _takes_from_package(path)}


def _takes_from_package(path):
    """Whether a file imports the package itself, rather than modules in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and any(a.name == "keras_nern" for a in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "keras_nern":
            names = {alias.name for alias in node.names}
            return not names <= {name.partition(".")[0] for name in MODULES}
    return False


def _room(module):
    return module.partition(".")[0]


def _circle(imports):
    """Modules that import each other in a circle, or an empty list."""
    left = {module: set(imported) for module, imported in imports.items()}
    while left:
        free = [module for module, imported in left.items() if not imported & set(left)]
        if not free:
            return sorted(left)
        for module in free:
            del left[module]
    return []


def test_every_room_is_listed_once():
    listed = [room for line in _rooms() for room in line]
    assert sorted(listed) == sorted({_room(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_from_rooms_on_lines_before_their_own(module):
    rooms = _rooms()
    (line,) = (i for i, line in enumerate(rooms) if _room(module) in line)
    allowed = {room for line in rooms[:line] for room in line} | {_room(module)}
    assert {_room(imported) for imported in _imported(MODULES[module])} <= allowed


def test_modules_do_not_import_each_other_in_a_circle():
    imports = {module: _imported(path) - {module} for module, path in MODULES.items()}
    assert _circle(imports) == []


def test_finds_imports_and_circles(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("")
    (tmp_path / "room" / "a.py").write_text("def f():\n    from keras_nern.room.b import x\n")
    (tmp_path / "room" / "b.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from keras_nern.room import a\n"
        "import keras_nern.c\n"
    )
    (tmp_path / "c.py").write_text("import keras\n")
    modules = _modules(tmp_path)
    imports = {
        name: {one for one in _imported(path, modules) if not one.endswith("__init__")}
        for name, path in modules.items()
    }
    assert imports["room.a"] == {"room.b"}
    assert imports["room.b"] == {"room.a", "c"}
    assert _circle(imports) == ["room.a", "room.b"]
    assert _circle({**imports, "room.b": {"c"}}) == []


def test_exports_are_spelled_name_as_name():
    for node in EXPORTS:
        assert [alias.asname for alias in node.names] == [alias.name for alias in node.names]


def test_public_names_are_as_listed():
    names = {alias.name for node in EXPORTS for alias in node.names} - {"__version__"}
    assert names == {
        *("NeRNModel", "compress", "load", "Permutation", "PositionalEncoding", "KernelPredictor"),
        *("SmoothnessRegularizer", "add_regularizer", "smoothness_report", "kernel_importance"),
        *("prune", "NoiseDataset", "AllKernels", "UniformSampling", "MagnitudeSampling"),
        *("LocalPredictor", "KernelSummaries", "callbacks", "losses", "models", "plots"),
    }
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        keras_nern.compres  # noqa: B018


def test_the_model_inherits_from_no_class_of_ours():
    own = [cls for cls in keras_nern.NeRNModel.__mro__ if cls.__module__.startswith("keras_nern")]
    assert own == [keras_nern.NeRNModel]


def test_the_citation_is_of_this_version():
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == keras_nern.__version__


def _public():
    """Public classes and functions, of the package and of its public modules."""
    modules = {"tuner": keras_nern.tuner}
    for node in EXPORTS:
        for alias in node.names:
            exported = getattr(keras_nern, alias.name)
            if inspect.ismodule(exported):
                modules[alias.name] = exported
            elif callable(exported):
                yield alias.name, exported
    for module, exported in modules.items():
        for name, value in vars(exported).items():
            own = str(getattr(value, "__module__", "")).startswith(exported.__name__)
            if own and callable(value) and not name.startswith("_"):
                yield f"{module}.{name}", value


def _callables():
    """Public classes and functions, and the public methods of the classes.

    Hooks of Keras (`call`, `get_config`, ...) need no docstring.
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
                if method.__doc__ or not _is_hook(attribute, theirs):
                    yield f"{name}.{attribute}", method


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == "keras_nern"


def _is_hook(attribute, classes):
    known = ("get_config", "from_config")
    return attribute in known or any(hasattr(cls, attribute) for cls in classes)


CALLABLES = dict(_callables())


def _arguments(value):
    parameters = inspect.signature(value).parameters
    return {name for name in parameters if name not in ("self", "cls")}


def _documented(docstring, section):
    """The names that a section describes; several may share a line."""
    found = re.search(rf"^{section}:\n((?:(?: {{4}}.*)?\n)+)", docstring + "\n", re.MULTILINE)
    names = r"^ {4}(\*{0,2}\w+(?:,\s+\*{0,2}\w+)*):"
    lines = re.findall(names, found[1] if found else "", re.MULTILINE)
    return {name.lstrip("*") for line in lines for name in re.split(r",\s+", line)}


@pytest.mark.parametrize("name", CALLABLES)
def test_public_names_have_docstrings(name):
    docstring = inspect.cleandoc(CALLABLES[name].__doc__ or "")
    summary, *rest = docstring.split("\n\n")
    assert summary.endswith("."), f"expected a summary that ends with a full stop: {summary!r}"
    if rest:  # otherwise one line says it all
        is_data = dataclasses.is_dataclass(CALLABLES[name])
        section = "Attributes" if is_data and "Args:" not in docstring else "Args"
        assert _documented(docstring, section) == _arguments(CALLABLES[name])


def test_reads_the_arguments_of_a_docstring():
    docstring = """Does.

    Args:
        a: one, b: or so.
        b, c,
            d: three.
        *args, **kwargs: all else.

    Returns:
        x: no argument.
    """
    found = _documented(inspect.cleandoc(docstring), "Args")
    assert found == {"a", "b", "c", "d", "args", "kwargs"}


def test_modules_import_alone():
    """The rooms' `__init__` are empty, but for the public `tuner`."""
    for module, path in MODULES.items():
        if module.endswith(".__init__") and module != "tuner.__init__":
            assert path.read_text().strip() == "", module
    assert importlib.import_module("keras_nern.tuner") is keras_nern.tuner
