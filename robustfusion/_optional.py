"""Dependencies not everybody needs: imported when wanted, missed by the name of their extra."""

from importlib import import_module
from typing import Any


def optional(module: str, need: str, extra: str) -> Any:
    """Import a module; without it say what is needed and which extra brings it."""
    try:
        import_module(module.partition(".")[0])
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{need}: pip install "robustfusion[{extra}]"') from error
