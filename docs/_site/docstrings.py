"""Our docstrings as mkdocstrings reads them.

An example stands below the line `Example:` unindented, which Markdown takes for a quotation,
and several arguments may share a line, `include, exclude: ...`, which griffe takes for one.
"""

import re

import griffe

EXAMPLE = re.compile(r"^Example:\n\n((?:(?:>>>|\.\.\. |\S).*\n?)+)", re.MULTILINE)
NAMES = r"\*{0,2}\w+(?:,\s+\*{0,2}\w+)+"
SHARED = re.compile(rf"^    ({NAMES}): (.*(?:\n     .*)*)$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites them before they are parsed."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            text = EXAMPLE.sub(_example, obj.docstring.value)
            obj.docstring.value = SHARED.sub(_one_by_one, text)


def _example(match):
    lines = match[1].splitlines()
    return "\n".join(["Examples:", *("    " + line for line in lines), ""])


def _one_by_one(match):
    return "\n".join(f"    {name}: {match[2]}" for name in re.split(r",\s+", match[1]))
