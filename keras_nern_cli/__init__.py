"""The command `keras-nern`: verbs over the public API of `keras_nern`.

A package beside `keras_nern`, not in it, for to import anything of `keras_nern` is to import
TensorFlow, and `keras-nern --help` should not take the seconds that that does. `commands` says
what the verbs take, `checks` looks at it before any work, `work` does it by the public API and
is the only module here that imports it, and then only when it is needed.

Exit codes: 0, done; 1, the work failed; 2, the command line or a file that it names cannot be
used, and nothing was done; 130 and 143, stopped by Ctrl-C (SIGINT) or SIGTERM.
"""

import json
import os
import sys
import traceback
from typing import Any

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    With `--json` there is one JSON document on stdout, whatever comes; all else is on stderr.

    Args:
        arguments: of the command line; `None` for those of the process. Defaults to `None`.

    Returns:
        The exit code.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import click

        from keras_nern_cli.commands import commands
    except ImportError as error:
        if error.name != "click":
            raise
        print("keras-nern needs click: `pip install keras-nern[cli]`", file=sys.stderr)
        return REFUSED
    try:
        return commands.main(arguments, "keras-nern", standalone_mode=False, obj=arguments) or DONE
    except click.ClickException as error:
        error.show()  # on stderr
        return _report(arguments, error.format_message(), error.exit_code)
    except click.Abort as error:  # click's word for a KeyboardInterrupt
        stopped = error.__cause__
        text = str(stopped or "") or "Stopped; nothing was changed."
        print(text, file=sys.stderr)
        resume = getattr(stopped, "resume", None)
        more = {} if resume is None else {"resume": resume}
        return _report(arguments, text, getattr(stopped, "code", INTERRUPTED), **more)
    except (ValueError, OSError, ImportError) as error:  # what the library says of bad input
        print(f"Error: {error}", file=sys.stderr)
        return _report(arguments, str(error), FAILED)
    except Exception as error:
        traceback.print_exc()
        return _report(arguments, f"{type(error).__name__}: {error}", FAILED)


def _report(arguments: list[str], text: str, code: int, **more: Any) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": text, "exit_code": code, **more}))
    return code
