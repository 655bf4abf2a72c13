"""Optional dependencies, imported when needed; the error names the extra to install."""

from importlib import import_module
from typing import Any


def optional(module: str, need: str, extra: str) -> Any:
    """Import a module; without it say what is needed and which extra brings it."""
    try:
        import_module(module.partition(".")[0])
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{need}: pip install "robustfusion[{extra}]"') from error


def import_pillow() -> Any:
    """Return ``PIL.Image``."""
    return optional("PIL.Image", "images need Pillow", "data")


def is_pillow(value: object) -> bool:
    """Tell whether this is an image of Pillow, which is not imported to find out."""
    of_pillow = any(base.__module__.startswith("PIL.") for base in type(value).__mro__)
    return of_pillow and isinstance(value, import_pillow().Image)
