"""Runs every example of the docstrings, of README.md and of docs/, as `reader` has it.

A page is one test and its Python blocks one program, in the order in which they stand. A
block after the line `<!-- not run: REASON -->` is skipped, and the report says so. Docstrings'
examples are compared with the output that they show; where they show none, they are run.
"""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest
import reader

import keras_nern

ROOT = pathlib.Path(keras_nern.__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+) -->\n+)?```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(text):
    """Lists Python blocks: `(line, code, reason)`, the reason for which one is not run."""
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
    for info in pkgutil.iter_modules(keras_nern.__path__):
        module = importlib.import_module(f"keras_nern.{info.name}")
        for test in finder.find(module):
            if test.examples:
                yield pytest.param(test, id=test.name.removeprefix("keras_nern."))


class _ShownOutput(doctest.OutputChecker):
    """Compares what an example shows, if it shows anything."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(autouse=True)
def _reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader.hurry(monkeypatch)


@pytest.mark.parametrize("page", list(_pages()))
def test_page_runs(page):
    names = reader.namespace(page.read_text())
    for line, code, reason in blocks_of(page.read_text()):
        if reason is None:
            exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("test", list(_examples()))
def test_example_runs(test):
    names = reader.namespace("".join(example.source for example in test.examples))
    test.globs = {**test.globs, **names}
    report = []
    runner = doctest.DocTestRunner(_ShownOutput(), verbose=False)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_finds_the_blocks_of_a_page():
    page = (
        "a\n\n```python\nx = 1\n```\n\n<!-- not run: no GPU -->\n```python\ny\n```\n```sh\nz\n```\n"
    )
    assert blocks_of(page) == [(3, "x = 1\n", None), (8, "y\n", "no GPU")]


def test_fences_are_balanced():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(BLOCK.findall(page.read_text())), page
