"""JSON documents that carry a digest of themselves.

Commit records and the root attributes are small and decide what a reader believes, so a changed
byte in them must be noticed. The digest is sha256 over the canonical form (sorted keys, no
spaces) of everything but the digest itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from phistill.errors import CorruptCache

MAX_DOCUMENT_BYTES = 256 * 2**20
"""A document larger than this is refused before it is parsed: the largest real one, a commit record
of 65,536 rows, is about 10 MB."""

RESTORE = "Restore it from a copy."
"""What helps with any document."""

MAX_DEPTH = 64
"""Nesting beyond this is refused; ours needs six levels."""


def canonical(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: object) -> str:
    """sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its digest added under ``digest``."""
    return {**content, "digest": digest_of(content)}


def unseal(document: object, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """The content of a sealed document; CorruptCache names ``what``, and ``cure``, when the digest
    differs."""
    if not isinstance(document, dict):
        raise CorruptCache(f"{what} is {type(document).__name__}, not a JSON object.")
    content = {key: value for key, value in document.items() if key != "digest"}
    try:
        digest = digest_of(content)
    except ValueError as error:  # a flipped byte can spell NaN, which JSON does not have
        raise CorruptCache(f"{what} holds a number that JSON does not have. {cure}") from error
    if document.get("digest") != digest:
        raise CorruptCache(
            f"{what} does not match its own digest: it was changed after it was written. {cure}"
        )
    return content


def parse(data: bytes, what: str, cure: str = RESTORE) -> Any:
    """Parse JSON of limited size and depth; CorruptCache names ``what``, and ``cure``."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CorruptCache(
            f"{what} has {len(data):,} bytes; more than {MAX_DOCUMENT_BYTES:,} is not ours."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCache(f"{what} is not JSON: {error}. {cure}") from error
    if _deeper_than(value, MAX_DEPTH):
        raise CorruptCache(f"{what} is nested deeper than {MAX_DEPTH} levels.")
    return value


def _deeper_than(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass as types, put together once."""
    return get_type_hints(cls)


def conforms(value: object, hint: Any) -> bool:
    """Whether a parsed JSON value has the type that a field's annotation says.

    Knows Any, None, int, float, str, unions, ``dict[X, Y]`` and tuples, which JSON holds as lists;
    a dataclass is left to its own ``from_dict``.
    """
    return _check_of(hint)(value)


Check = Callable[[object], bool]


@cache
def _check_of(hint: Any) -> Check:
    """The check of one annotation, taken apart once: a record has it for each of its rows."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any or is_dataclass(hint):
        return lambda value: True
    if origin in (Union, UnionType):
        choices = [_check_of(choice) for choice in inside]
        return lambda value: any(check(value) for check in choices)
    if origin is dict:
        key_of, item_of = map(_check_of, inside)
        return lambda value: (
            isinstance(value, Mapping)
            and all(key_of(key) and item_of(item) for key, item in value.items())
        )
    if origin is tuple and inside[-1] is Ellipsis:
        each = _check_of(inside[0])
        return lambda value: isinstance(value, list | tuple) and all(map(each, value))
    if origin is tuple:
        checks = [_check_of(part) for part in inside]
        return lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(checks)
            and all(check(item) for check, item in zip(checks, value, strict=True))
        )
    wanted = (int, float) if hint is float else hint  # None's hint is NoneType
    return lambda value: isinstance(value, wanted) and not isinstance(value, bool)
