"""Values of settings as a person gives them: checked, converted, and spelt in refusals."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from phistill.errors import UsageError

UNBOUNDED = float(2**62)


def check_choice(name: str, value: str, known: tuple[str, ...], *, plugin: bool) -> None:
    if value in known or (plugin and ":" in value):
        return
    tail = ", or package.module:function" if plugin else ""
    raise UsageError(f"{name}={value!r} is not one of {', '.join(known)}{tail}.")


def coerce(key: str, value: Any, hint: Any) -> Any:
    """JSON and TOML know lists and may write 1 for 1.0; everything else must match."""
    origin = typing.get_origin(hint) or hint
    if origin is tuple and isinstance(value, list | tuple):
        item = typing.get_args(hint)[0]
        return tuple(coerce(key, v, item) for v in value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    assert not isinstance(hint, types.UnionType), "fields have one type each"
    if isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{key}={value!r} must be {_spell(hint)}.")


def spell_range(low: float, high: float) -> str:
    if high == UNBOUNDED:
        return f"at least {low:g}"
    return f"between {low:g} and " + (f"{high:,.0f}" if high >= 1000 else f"{high:g}")


def _spell(hint: Any) -> str:
    """The type as a person would say it."""
    if typing.get_origin(hint) is tuple:
        return f"a list, each of it {_spell(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a table, as in {key = 1}"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }[hint]
