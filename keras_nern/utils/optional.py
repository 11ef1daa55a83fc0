"""Packages that only some features need, and the message when one is missing."""

import importlib
import types


def require(module: str, extra: str) -> types.ModuleType:
    """Imports a module that an extra of this package installs.

    Args:
        module: name of the module, such as `"safetensors.numpy"`.
        extra: name of the extra in setup.py that installs it.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed; the message names the extra.

    Example:

    >>> zstandard = require("zstandard", "compact")
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: run "
            f'`pip install "keras-nern[{extra}]"`. Received: {error}'
        ) from error
