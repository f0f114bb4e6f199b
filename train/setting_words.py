"""What the value of a setting must be, as a person would say it."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

LARGEST = 1e9
"""Bound of numbers that have no other, so that infinity is none of them."""


def spelt(hint: Any) -> str:
    """What a value must be, as a person would say it."""
    return _words(inspect.type_info(hint))


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            choices = (extra or {}).get("choices")
            return _one_of(choices) if choices else _words(inner)
        case inspect.LiteralType(values=values):
            return _one_of(values)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return noun + _range(kind)
        case inspect.StrType():
            return "a text"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each of it {_words(item)}"
        case inspect.TupleType(item_types=items):
            return f"a list of {len(items)}, each of it {_words(items[0])}"
        case inspect.DictType(value_type=inspect.AnyType()):
            return "a table, as in {key = 1}"
        case inspect.DictType(value_type=value):
            return f"a table, as in {{key = 1}}, each value {_words(value)}"
    raise AssertionError(f"no setting is of type {kind}")


def _one_of(names: tuple[Any, ...]) -> str:
    *others, last = names
    return f"one of {', '.join(others)} or {last}"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    """`` between 0 and 1``, ``, at least 1``, ``, above 0``, ``, at least 0 and below 1``."""
    if kind.ge is not None and kind.le is not None and abs(kind.le) != LARGEST:
        return f" between {_figure(kind.ge)} and {_figure(kind.le)}"
    low = f"at least {_figure(kind.ge)}" if kind.ge not in (None, -LARGEST) else ""
    low = f"above {_figure(kind.gt)}" if kind.gt is not None else low
    high = f"below {_figure(kind.lt)}" if kind.lt is not None else ""
    bounds = " and ".join(filter(None, (low, high)))
    return f", {bounds}" if bounds else ""


def _figure(number: float | None) -> str:
    assert number is not None, "asked for bounds that there are"
    return f"{number:,.0f}" if number == int(number) else f"{number:g}"
