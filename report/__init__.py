"""What a person looks at: ``report`` writes one HTML file; bars and numbers of the terminal.

Names are loaded on first use, because the terminal's bars must not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inspection import describe
    from .page import ExtraTable, report

_WHERE = {"ExtraTable": "page", "describe": "inspection", "report": "page"}

__all__ = ["ExtraTable", "describe", "report"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
