"""Runs every example of the docstrings, of README.md, of docs/ and of benchmarks/README.md.

Each page is one test: its Python blocks run as one program, from top to bottom. A block preceded by
the line `<!-- not run: REASON -->` is reported as skipped. Docstring examples are compared with the
output they show, and only run if they show none. `reader` provides the names and files that the
examples assume and shortens fits.
"""

import doctest
import importlib
import pkgutil
import re

import pytest
import reader
from processes import ROOT

import keras_nern

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(text):
    """Lists the Python blocks of a page as `(line, code, reason for skipping it or None)`."""
    return [
        (text[: match.start("code")].count("\n"), match["code"], match["reason"])
        for match in BLOCK.finditer(text)
        if match["language"] in ("python", "py")
    ]


def _pages():
    for page in PAGES:
        blocks = blocks_of(page.read_text())
        name = str(page.relative_to(ROOT))
        if any(reason is None for _, _, reason in blocks):
            yield pytest.param(page, id=name)
        for line, _, reason in blocks:
            if reason is not None:
                skip = pytest.mark.skip(reason=f"{name}:{line + 1}: {reason}")
                yield pytest.param(page, id=f"{name}:{line + 1}", marks=skip)


def _examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(keras_nern.__path__, "keras_nern."):
        if not info.name.endswith(".__main__"):
            for test in finder.find(importlib.import_module(info.name)):
                if test.examples:
                    yield pytest.param(test, id=test.name.removeprefix("keras_nern."))


class _ShownOutput(doctest.OutputChecker):
    """Accepts any output of an example that shows none."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(autouse=True)
def _reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader.shorten_fits(monkeypatch)


@pytest.mark.parametrize("page", list(_pages()))
def test_page_runs(page):
    text = page.read_text()
    names = reader.namespace(text)
    for line, code, reason in blocks_of(text):
        if reason is None:
            exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("test", list(_examples()))
def test_docstring_example_runs(test):
    names = reader.namespace("".join(example.source for example in test.examples))
    test.globs = {**test.globs, **names}
    report = []
    runner = doctest.DocTestRunner(_ShownOutput(), verbose=False)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_finds_the_python_blocks_of_a_page():
    skipped = "<!-- not run: no GPU -->\n```python\ny\n```\n"
    page = f"a\n\n```python\nx = 1\n```\n\n{skipped}```sh\nz\n```\n{skipped}"
    assert blocks_of(page) == [
        (3, "x = 1\n", None),
        (8, "y\n", "no GPU"),
        (15, "y\n", "no GPU"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_fences_are_balanced(page):
    text = page.read_text()
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(BLOCK.findall(text))
