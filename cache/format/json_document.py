"""JSON documents that carry a digest of themselves.

Commit records and the root attributes are small and decide what a reader believes, so a changed
byte in them must be noticed. The digest is sha256 over the canonical form (sorted keys, no
spaces) of everything but the digest itself.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from phistill.errors import CorruptCache

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 256 * 2**20
"""A document larger than this is refused before it is parsed: the largest real one, a commit record
of 65,536 rejected rows, is about 10 MB."""

MAX_DEPTH = 64
"""Nesting beyond this is refused; ours needs six levels."""

_ENCODER = msgspec.json.Encoder(order="sorted")


def _plain(value: object) -> object:
    """A text or number of a class of its own, such as torch's version, as what it is."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


def canonical(value: object) -> bytes:
    """The one byte form of a JSON value or a struct: sorted keys, no spaces, shortest numbers."""
    return encoded(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain))


def encoded(plain: object) -> bytes:
    """``canonical`` of what is JSON's own types already, as ``with_digest`` gives it."""
    return _ENCODER.encode(plain)


def digest_of(value: object) -> str:
    """sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def is_sha256(text: object) -> bool:
    """Whether it is 64 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")


def with_digest(content: object) -> dict[str, Any]:
    """``content`` as a JSON object with its digest added under ``digest``."""
    builtins: dict[str, Any] = msgspec.to_builtins(content, str_keys=True, enc_hook=_plain)
    return {**builtins, "digest": hashlib.sha256(encoded(builtins)).hexdigest()}


def decode(document: object, cls: type[T], where: str) -> T:
    """The content of a parsed document as ``cls``.

    CorruptCache naming ``where`` when the digest differs, and with the path of a field that ``cls``
    does not have, or has with another type.
    """
    if not isinstance(document, dict):
        raise CorruptCache(f"{where} is {type(document).__name__}, not a JSON object.")
    content = {key: value for key, value in document.items() if key != "digest"}
    if document.get("digest") != digest_of(content):
        raise CorruptCache(
            f"{where} does not match its own digest: it was changed after it was written."
        )
    try:
        return msgspec.convert(content, cls, str_keys=True)
    except msgspec.ValidationError as error:
        raise CorruptCache(
            f"{where}: {error}. It was written by another version of phistill, or is damaged."
        ) from error


def parse(data: bytes, where: str) -> Any:
    """Parse JSON of limited size and depth; CorruptCache names ``where``."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CorruptCache(
            f"{where} has {len(data):,} bytes; more than {MAX_DOCUMENT_BYTES:,} is not ours."
        )
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptCache(f"{where} is not JSON: {error}.") from error
    if _deeper_than(value, MAX_DEPTH):
        raise CorruptCache(f"{where} is nested deeper than {MAX_DEPTH} levels.")
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
