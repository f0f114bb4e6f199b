"""Images inside tar files, as WebDataset writes them: read in place, never extracted.

A tar is walked once, header by header; members are then read by offset. A member's name is only
ever part of an id. ``KEY.cls`` beside ``KEY.jpg`` is the image's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from phistill.errors import SourceError, UsageError

from .local_files import read_part, retried
from .source import SUFFIXES, ImageRecord, ImageSource

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20
"""Long names and pax headers beyond this are refused, not read."""
MAX_LABEL_BYTES = 256
LABEL_SUFFIX = ".cls"
REGULAR = (b"0", b"\0", b"7")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    length: int


class TarSource(ImageSource):
    """Every image in some tar files."""

    kind = "tar"

    def __init__(self, root: Path, tars: Sequence[Path]) -> None:
        self._root, self._tars = root, list(tars)

    def records(self) -> list[ImageRecord]:
        records = [record for tar in self._tars for record in self._tar_records(tar)]
        if not records:
            raise UsageError(
                f"{self._root}: the tars hold no image ({', '.join(sorted(SUFFIXES))})."
            )
        return records

    def _tar_records(self, tar: Path) -> list[ImageRecord]:
        inside = retried(lambda: list(members(tar)), tar)
        uri = tar.relative_to(self._root).as_posix()
        return records_of(uri, inside, lambda member: read_part(tar, member.offset, member.length))

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_part(self._root / uri, offset, length)


def records_of(
    uri: str, members: Sequence[Member], read: Callable[[Member], bytes]
) -> list[ImageRecord]:
    """A record per image among the members of a tar; ``read`` gives the bytes of a label."""
    images: list[Member] = []
    labels: dict[str, str] = {}
    for member in members:
        key, suffix = _key(member.name)
        if suffix in SUFFIXES:
            images.append(member)
        elif suffix == LABEL_SUFFIX and member.length <= MAX_LABEL_BYTES:
            labels[key] = read(member).decode(errors="replace").strip()
    seen: set[str] = set()
    records = []
    for member in images:
        name = f"{uri}/{member.name}"
        if name in seen:  # a tar may hold a name twice
            name = f"{name}@{member.offset}"
        seen.add(name)
        label = labels.get(_key(member.name)[0])
        records.append(ImageRecord(name, uri, member.offset, member.length, label))
    return records


def members(tar: Path) -> Iterator[Member]:
    """The regular files of a tar, in order; SourceError names the byte where it is damaged."""
    with tar.open("rb") as file:
        yield from members_of(file, tar.stat().st_size, tar)


def members_of(file: BinaryIO, size: int, tar: object) -> Iterator[Member]:
    """The same of an open file; ``tar`` is its name in messages."""
    position = 0
    extended: dict[str, Any] = {}
    while position + BLOCK <= size:
        file.seek(position)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):
            return
        _check(header, tar, position)
        kind, length = header[156:157], _number(header[124:136], tar, position)
        start = position + BLOCK
        if kind in b"LKxg" and kind:
            extended |= _extension(file, kind, length, tar, position)
        else:
            length = extended.get("size", length)
            name = extended.get("path") or _name(header)
            extended = {}
            if start + length > size:
                raise SourceError(
                    f"{tar} is cut: the member at byte {position:,} is {length:,} bytes long. "
                    "Get the file again."
                )
            if kind in REGULAR:
                yield Member(name, start, length)
            elif kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                length = 0  # links, devices and folders have no content
        position = start + -(-length // BLOCK) * BLOCK


def _check(header: bytes, tar: object, position: int) -> None:
    """The sum of a header's bytes, its own field counted as spaces, stands in the header."""
    stated = header[148:156].strip(b" \0")
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if not stated or not stated.isdigit() or int(stated, 8 if _octal(stated) else 10) != total:
        hint = " It is compressed; decompress it first." if position == 0 else ""
        raise SourceError(f"{tar} has no tar header at byte {position:,}.{hint}")


def _octal(digits: bytes) -> bool:
    return not set(digits) & set(b"89")


def _number(field: bytes, tar: object, position: int) -> int:
    """Octal text, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        digits = field.strip(b" \0")
        if digits and (not digits.isdigit() or not _octal(digits)):
            raise SourceError(f"{tar}: the header at byte {position:,} states no size.")
        value = int(digits or b"0", 8)
    if value >= 2**62:
        raise SourceError(f"{tar}: the header at byte {position:,} states {value} bytes.")
    return value


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), b""
    if header[257:262] == b"ustar" and header[262:263] == b"\0":
        prefix = header[345:500]
    return f"{_text(prefix)}/{name}" if _text(prefix) else name


def _extension(
    file: BinaryIO, kind: bytes, length: int, tar: object, position: int
) -> dict[str, Any]:
    """What a GNU long name or a pax header says of the member after it."""
    if length > MAX_EXTENSION_BYTES:
        raise SourceError(
            f"{tar}: the extension header at byte {position:,} claims {length:,} bytes; more than "
            f"{MAX_EXTENSION_BYTES:,} are refused."
        )
    data = file.read(length)
    if kind == b"L":
        return {"path": _text(data)}
    if kind != b"x":
        return {}
    extended: dict[str, Any] = {}
    while data:
        head, space, _ = data.partition(b" ")
        if not space or not head.isdigit() or not len(head) < int(head) <= len(data):
            raise SourceError(f"{tar}: the pax header at byte {position:,} is damaged.")
        key, _, value = data[len(head) + 1 : int(head) - 1].partition(b"=")
        if key == b"path":
            extended["path"] = value.decode(errors="replace")
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise SourceError(f"{tar}: the pax header at byte {position:,} states no size.")
            extended["size"] = int(value)
        data = data[int(head) :]
    return extended


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="replace")


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key (up to the first dot of the last part) and the last suffix."""
    path = PurePosixPath(name)
    base, _, _ = path.name.partition(".")
    return f"{path.parent}/{base}", path.suffix.lower()
