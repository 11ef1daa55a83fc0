"""Markdown tables, for the benchmarks."""

import statistics


def print_header(names):
    """Prints a table's first two lines."""
    print_row(names)
    print("|" + " --- |" * len(names), flush=True)


def print_row(cells):
    """Prints a line of a table, at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def spread(values, digits, centre=statistics.mean):
    """Several values as their centre ± standard deviation, one value as it is."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{centre(values):.{digits}f}{deviation}"
