"""Pages of the site that are not files of docs/, and the links between them all.

README.md and its like are pages of the repository and of the site. The API has a page for
each module: its docstring, then its public names. Those come first that a name of
`keras_nern/__init__.py` comes from.
"""

import ast
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
# Files of the repository, and where they are on the site.
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
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def public_names():
    """The public names, by the module they come from: `{module: [name, ...]}`."""
    names = {}
    for node in ast.parse((ROOT / "keras_nern" / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module == "keras_nern":
                    names.setdefault(alias.name, [])
                else:
                    module = node.module.removeprefix("keras_nern.")
                    names.setdefault(module, []).append(alias.name)
    return dict(sorted(names.items()))


def on_config(config):
    """Leaves out of the menu the pages that are not written yet, and adds the API's."""
    written = {path.name for path in (ROOT / "docs").glob("*.md")} | set(_own_pages())
    config.nav = _written(config.nav, written)
    return config


def on_files(files, config):
    """Adds the pages that are not files of docs/."""
    for address, page in _own_pages().items():
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


def _inner_modules():
    """The modules that no public name comes from, in alphabetical order."""
    modules = {path.stem for path in (ROOT / "keras_nern").glob("*.py")}
    return sorted(module for module in modules - set(public_names()) if module[:2] != "__")


def _own_pages():
    """Address on the site to a file's path or a page's text."""
    pages = {
        site: ROOT / source
        for source, site in PAGES.items()
        if not source.endswith("/") and (ROOT / source).exists()
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):  # to be downloaded
        pages[f"notebooks/{path.name}"] = path
    modules = public_names()
    for module in (*modules, *_inner_modules()):
        pages[f"api/{module}.md"] = f"::: keras_nern.{module}\n"
    rows = [
        f"| [`{module}`]({module}.md) | {', '.join(_link(module, name) for name in names)} |"
        for module, names in modules.items()
    ]
    pages["api/index.md"] = "\n".join(
        [
            "# API",
            "",
            "A module of the package has a page: what it is about, and its public names. "
            "Those on the right are to be had as `keras_nern.NAME` as well. The modules under "
            "*Inside* are nobody's interface; their pages tell how things work.",
            "",
            "| module | in `keras_nern` itself |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )
    return pages


def _link(module, name):
    return f"[`{name}`]({module}.md#keras_nern.{module}.{name})"


def _written(entries, written):
    kept = []
    for entry in entries:
        ((title, value),) = entry.items()
        if isinstance(value, list):
            kept.append({title: _written(value, written)})
        elif title == "API":
            public, inner = (
                [f"api/{module}.md" for module in modules]
                for modules in (public_names(), _inner_modules())
            )
            kept.append({title: [value, *public, {"Inside": inner}]})
        elif value in written:
            kept.append(entry)
    return kept
