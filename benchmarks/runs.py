"""Helpers of all benchmarks: the argument parser, separate processes and result files."""

import argparse
import json
import subprocess
import sys


def parser(description, run=()):
    """Makes an argument parser whose `--help` shows a benchmark's docstring unchanged.

    Args:
        description: the docstring.
        run: names of the values of the hidden option `--run`, see `in_new_process`; empty for
            a benchmark that runs in one process. Defaults to `()`.

    Returns:
        An `argparse.ArgumentParser`.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    if run:
        made.add_argument("--run", nargs=len(run), metavar=run, help=argparse.SUPPRESS)
    return made


def in_new_process(*values):
    """Runs the current command again with `--run VALUES` in a new process.

    Time and memory of a fit are thereby measured in a new interpreter.

    Args:
        *values: values of the option `--run`.

    Returns:
        The JSON value that the process prints on its last line.
    """
    command = [sys.executable, *sys.argv, "--run", *map(str, values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def read_results(path):
    """Reads the results in a JSON lines file, a list of dicts."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def append_result(path, result):
    """Appends a result to a JSON lines file; does nothing if `path` is `None`."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
