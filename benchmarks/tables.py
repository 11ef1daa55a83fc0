"""Markdown tables, printed row by row."""

import statistics


def print_header(names):
    """Prints the names of the columns and the rule below them."""
    print_row(names)
    print("|" + " --- |" * len(names), flush=True)


def print_row(cells):
    """Prints one row and flushes it, so that a long run shows its progress."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def spread(values, digits, center=statistics.mean):
    """Formats `values` as center ± standard deviation; a single value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{center(values):.{digits}f}{deviation}"
