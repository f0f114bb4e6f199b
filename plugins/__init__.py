"""Students, heads, losses and row filters of one's own, named ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from phistill.errors import UsageError


def load(name: str, what: str) -> Callable[..., Any]:
    """The callable called ``name``; UsageError says which part of the name does not exist."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{what}={name!r} must be package.module:function.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"{what}={name!r}: the module {module_name!r} cannot be imported ({error}). "
            "Install it or put its folder on PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(f"{what}={name!r}: {module_name} has no callable {attribute!r}.")
    return found
