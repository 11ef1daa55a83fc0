"""Adds pages to the site that are not files of docs/, and adapts the links between pages.

README.md and similar files are pages of the repository and of the site. Each module of the
package has an API page, made from its docstrings: `model` and the other modules that define public
names are listed first, and the rest is grouped by room under *Internals*.
"""

import ast
import itertools
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "keras_nern"
# Files of the repository, and their addresses on the site.
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
    "benchmarks/": "benchmarks.md",
    "notebooks/": "notebooks/index.md",
    "notebooks/README.md": "notebooks/index.md",
}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES |= {f"notebooks/{name}.ipynb": f"notebooks/{name}.ipynb" for name in NOTEBOOKS}  # to download
LAZY = ("tuner",)  # packages that `__getattr__` of keras_nern/__init__.py imports on first use
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_config(config):
    """Lists the pages of the API and of the notebooks in the menu."""
    rooms = itertools.groupby(inner_modules(), key=lambda module: module.rpartition(".")[0])
    internals = [
        {room or "keras_nern": [{name: f"api/{name}.md"} for name in names]}
        for room, names in rooms
    ]
    public = [{module: f"api/{module}.md"} for module in public_modules()]
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [entry["API"], *public, {"Internals": internals}]
        for guide in entry.get("Guide", ()):
            if "Notebooks" in guide:
                pages = [f"notebooks/{name}.md" for name in NOTEBOOKS]
                guide["Notebooks"] = [guide["Notebooks"], *pages]
    return config


def on_files(files, config):
    """Adds the pages that are not files of docs/."""
    for address, page in _pages().items():
        source = (
            {"abs_src_path": str(page)} if isinstance(page, pathlib.Path) else {"content": page}
        )
        files.append(File.generated(config, address, **source))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    sources = {site: source for source, site in PAGES.items() if not source.endswith("/")}
    address = page.file.src_uri
    here = posixpath.dirname(sources.get(address, f"docs/{address}"))

    def on_site(match):
        opening, target, anchor, closing = match.groups()
        path = posixpath.normpath(posixpath.join(here, target))
        path += "/" if target.endswith("/") else ""
        if path not in PAGES and not path.startswith("docs/"):
            return match[0]
        place = PAGES.get(path, path.removeprefix("docs/"))
        place = posixpath.relpath(place, posixpath.dirname(address) or ".")
        return f"{opening}{place}{anchor or ''}{closing}"

    return LINK.sub(on_site, markdown)


def public_modules():
    """Returns the modules that the public names come from: `{module: [name, ...]}`.

    Modules are dotted paths below `keras_nern`. A module that is public itself, such as
    `analysis.plots`, has its own name in the list.
    """
    modules = {name: [name] for name in LAZY}
    for module, name in _imports(PACKAGE / "__init__.py"):
        path = f"{module}.{name}".lstrip(".")
        owner = path if path in _modules() else module
        if not name.startswith("__"):
            modules.setdefault(owner, []).append(name)
    return dict(sorted(modules.items(), key=lambda item: (item[0] != "model", item)))


def inner_modules():
    """Returns the other modules, sorted by room; those of the package itself come first."""
    public = set(public_modules())
    public |= {module for name in LAZY for module, _ in _imports(PACKAGE / name / "__init__.py")}
    return sorted(_modules() - public, key=lambda module: module.rpartition(".")[::2])


def _modules():
    """Returns the dotted paths of all modules below `keras_nern`, without the packages."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return {".".join(path.parts) for path in paths if not path.stem.startswith("__")}


def _imports(path):
    """Yields `(module, name)` for each name that a file imports from `keras_nern`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "keras_nern":
            for alias in node.names:
                yield node.module.partition(".")[2], alias.name


def _pages():
    """Returns the added pages: address on the site to a file's path or a page's text."""
    pages = {site: ROOT / source for source, site in PAGES.items() if not source.endswith("/")}
    for module in public_modules():
        pages[f"api/{module}.md"] = f"::: keras_nern.{module}\n"
    for module in inner_modules():  # the search lists them after the other pages
        front_matter = "---\nsearch: {boost: 0.2}\n---\n"
        pages[f"api/{module}.md"] = f"{front_matter}::: keras_nern.{module}\n"
    for package in LAZY:
        names = [name for _, name in _imports(PACKAGE / package / "__init__.py")]
        pages[f"api/{package}.md"] += f"    options:\n      members: [{', '.join(names)}]\n"
    public = [
        f"| [`{module}`]({module}.md) | {', '.join(_link(module, name) for name in names)} "
        f"| {_description(module)} |"
        for module, names in public_modules().items()
    ]
    internals = [
        f"| [`{module}`]({module}.md) | {_description(module)} |" for module in inner_modules()
    ]
    pages["api/index.md"] = "\n".join(
        [
            "# API",
            "",
            "Each module has a page with its description and its public names. Import the names "
            "in the second column from `keras_nern`.",
            "",
            "| module | public names | description |",
            "| --- | --- | --- |",
            *public,
            "",
            "## Internals",
            "",
            "These modules are not part of the public interface and may change. Their pages "
            "explain how the package works.",
            "",
            "| module | description |",
            "| --- | --- |",
            *internals,
            "",
        ]
    )
    return pages


def _description(module):
    """Returns the first line of a module's docstring, without the period."""
    path = PACKAGE.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(source.read_text())).splitlines()[0].removesuffix(".")


def _link(module, name):
    is_module = module.rpartition(".")[2] == name
    anchor = f"keras_nern.{module}" if is_module else f"keras_nern.{module}.{name}"
    return f"[`keras_nern.{name}`]({module}.md#{anchor})"
