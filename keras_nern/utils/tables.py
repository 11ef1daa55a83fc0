"""Tables of results, as text and as HTML for notebooks.

A report is a frozen dataclass that inherits `Printable` and returns its tables from `tables`;
`print(report)` and a notebook cell then show the same rows.
"""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
        rows: sequence of rows; cells are converted by `str`.
        header: names of the columns; empty for a table without a header.
        align: one of `"l"` and `"r"` per column; missing columns align as the last one.
        footer: whether the last row is a total, set off by a rule.
        title: line above the table, or `""`.
    """

    rows: Sequence[Sequence[Any]]
    header: Sequence[str] = ()
    align: str = "l"
    footer: bool = False
    title: str = ""

    def to_text(self) -> str:
        """The table in columns of a fixed width."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(row, widths, self._sides(len(row)), strict=True)
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines), default=0)
        if self.footer:
            lines.insert(-1, rule)
        if self.header:
            lines.insert(1, rule)
        return "\n".join([self.title] * bool(self.title) + lines)

    def to_html(self) -> str:
        """The table as an HTML element; cells are escaped."""
        cells = self._cells()
        sides = self._sides(max(map(len, cells), default=0))

        def row(values: Sequence[str], tag: str) -> str:
            parts = (
                f'<{tag} style="text-align: {"right" if side == "r" else "left"}">'
                f"{html.escape(value)}</{tag}>"
                for value, side in zip(values, sides, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = f"<thead>{row(cells.pop(0), 'th')}</thead>" if self.header else ""
        foot = f"<tfoot>{row(cells.pop(), 'th')}</tfoot>" if self.footer else ""
        body = "".join(row(values, "td") for values in cells)
        return f"<table>{caption}{head}<tbody>{body}</tbody>{foot}</table>"

    def _cells(self) -> list[list[str]]:
        rows = [self.header, *self.rows] if self.header else self.rows
        return [[printable(str(cell)) for cell in row] for row in rows]

    def _sides(self, count: int) -> str:
        return self.align.ljust(count, self.align[-1])


class Printable:
    """A report that prints as its `tables`, separated by blank lines."""

    def tables(self) -> list[Table]:
        """The tables to show, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join(table.to_text() for table in self.tables())

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self.tables())


def printable(text: str) -> str:
    """Escapes control characters, because names read from a file may contain terminal codes."""
    return text if text.isprintable() else ascii(text)
