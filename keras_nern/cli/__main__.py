"""The command `keras-nern`, also available as `python -m keras_nern.cli`.

Exit codes: 0 for success; 1 if the work failed; 2 if the command line or a file it names cannot
be used, in which case nothing was done; 130 and 143 if SIGINT (Ctrl-C) or SIGTERM stopped it.
"""

import json
import sys
import traceback
import warnings
from typing import Any

from keras_nern.utils.optional import require

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    With `--json`, stdout holds exactly one JSON document; everything else goes to stderr.

    Args:
        arguments: the command line; `None` for `sys.argv[1:]`. Defaults to `None`.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        click = require("click", "cli")
    except ImportError as error:
        print(error, file=sys.stderr)
        return REFUSED
    from keras_nern.cli.commands import commands

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = commands.main(arguments, "keras-nern", standalone_mode=False, obj=arguments)
            return code or OK
        except click.ClickException as error:
            error.show()  # on stderr
            return _report(arguments, error.format_message(), error.exit_code)
        except click.Abort as error:  # raised by click for a KeyboardInterrupt, such as `Stopped`
            stopped = error.__cause__
            text = str(stopped or "") or "Stopped."
            print(text, file=sys.stderr)
            resume = getattr(stopped, "resume", None)
            more = {} if resume is None else {"resume": resume}
            return _report(arguments, text, getattr(stopped, "code", INTERRUPTED), **more)
        except (ValueError, OSError, ImportError) as error:  # their messages say what happened
            print(f"Error: {error}", file=sys.stderr)
            return _report(arguments, str(error), FAILED)
        except Exception as error:
            traceback.print_exc()
            return _report(arguments, f"{type(error).__name__}: {error}", FAILED)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning without the line of code that `warnings` shows."""
    print(f"Warning: {message}", file=sys.stderr)


def _report(arguments: list[str], text: str, code: int, **more: Any) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": text, "exit_code": code, **more}))
    return code


if __name__ == "__main__":
    sys.exit(main())
