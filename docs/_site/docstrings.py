"""Adapts the docstrings of the package to mkdocstrings.

An example follows the line `Example:` unindented, which Markdown would render as a quotation.
Several arguments may share a line, `include, exclude: ...`, which griffe would read as one.
"""

import re

import griffe

EXAMPLE = re.compile(r"^Example:\n\n((?:(?:>>>|\.\.\. |\S).*\n?)+)", re.MULTILINE)
NAMES = r"\*{0,2}\w+(?:,\s+\*{0,2}\w+)+"
SHARED = re.compile(rf"^    ({NAMES}): (.*(?:\n     .*)*)$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before griffe parses them."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            text = EXAMPLE.sub(_indented, obj.docstring.value)
            obj.docstring.value = SHARED.sub(_one_per_argument, text)


def _indented(match):
    lines = match[1].splitlines()
    return "\n".join(["Examples:", *("    " + line for line in lines), ""])


def _one_per_argument(match):
    return "\n".join(f"    {name}: {match[2]}" for name in re.split(r",\s+", match[1]))
