"""The members of a tar: walked once, header by header, with their offsets; nothing is extracted.

ustar, GNU and pax are read. A member's name is only ever part of an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from phistill.errors import SourceError

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20
"""Long names and pax headers beyond this are refused, not read."""
REGULAR = (b"0", b"\0", b"7")
SPARSE = b"S"
NAMELESS = {
    **dict.fromkeys((b"1", b"2"), "links in tars"),
    **dict.fromkeys((b"3", b"4", b"6"), "pipes and devices in tars"),
    b"5": "",
}
"""What has no content, and how it is counted; folders are not."""
UNREAD = {**NAMELESS, b"V": "", b"D": ""}
"""A volume's name and a folder's listing have content and are no files."""
OTHER = "members of other kinds in tars"
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    length: int
    unread: str = ""
    """How it is counted where it has no bytes that can be read in place."""

    @property
    def key(self) -> str:
        """WebDataset's: the path up to the first dot of its last part."""
        path = PurePosixPath(self.name)
        return f"{path.parent}/{path.name.partition('.')[0]}"

    @property
    def extension(self) -> str:
        """What follows the key, in small letters: ``seg.png``."""
        return PurePosixPath(self.name).name.partition(".")[2].lower()

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def members(tar: Path, allow_cut: bool = False) -> Iterator[Member]:
    """The regular files of a tar, in order; SourceError names the byte where it is damaged."""
    with tar.open("rb") as file:
        yield from members_of(file, tar.stat().st_size, tar, allow_cut)


def members_of(file: BinaryIO, size: int, tar: object, allow_cut: bool = False) -> Iterator[Member]:
    """The same of an open file; ``tar`` is its name in messages.

    Tars that were put behind one another are read to the end of the last.
    """
    position = 0
    extended: dict[str, Any] = {}
    ended = False
    while position + BLOCK <= size:
        file.seek(position)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):
            ended = True
            position = _after_zeros(file, position + BLOCK, size)
            continue
        if ended and not _is_header(header):
            return  # what stands behind the end is no tar
        ended = False
        _check(header, tar, position)
        kind, length = header[156:157], _number(header[124:136], tar, position)
        start = position + BLOCK
        if kind and kind in b"LKxXg":
            extended |= _extension(file, kind, length, tar, position)
        else:
            length = extended.get("size", length)
            name = extended.get("path") or _name(header)
            sparse = kind == SPARSE or "sparse" in extended
            extended = {}
            if kind in NAMELESS:
                length = 0  # whatever it states: the bytes are at the other name, or nowhere
            if start + length > size:
                if allow_cut:
                    return
                raise SourceError(
                    f"{tar} is cut: the member at byte {position:,} is {length:,} bytes long. Get "
                    "the file again, or take what is there with --allow-cut-tars."
                )
            if kind == SPARSE:
                while header[482 if start == position + BLOCK else 504]:  # further maps of holes
                    file.seek(start)
                    header, start = file.read(BLOCK), start + BLOCK
                    if len(header) < BLOCK:
                        break
            if kind in REGULAR or kind == SPARSE:
                yield Member(name, start, length, "sparse members of tars" if sparse else "")
            elif unread := UNREAD.get(kind, OTHER):
                yield Member(name, start, 0, unread)
        position = start + -(-length // BLOCK) * BLOCK
    if not ended and not allow_cut:
        raise SourceError(
            f"{tar} ends at byte {size:,} without the mark that ends a tar: it may have been cut, "
            "and then images are missing. Get the file again, or take what is there with "
            "--allow-cut-tars."
        )


def _after_zeros(file: BinaryIO, position: int, size: int) -> int:
    """Where the next block begins that is not all zeros; the size where there is none."""
    while position < size:
        file.seek(position)
        part = file.read(min(CHUNK, size - position))
        if not part:
            return size
        if rest := part.lstrip(b"\0"):
            return position + (len(part) - len(rest)) // BLOCK * BLOCK
        position += len(part)
    return size


def _is_header(header: bytes) -> bool:
    stated = header[148:156].strip(b" \0")
    total = sum(header) - sum(header[148:156]) + 8 * 32
    return stated.isdigit() and int(stated, 8 if _octal(stated) else 10) == total


def _check(header: bytes, tar: object, position: int) -> None:
    """The sum of a header's bytes, its own field counted as spaces, stands in the header."""
    if not _is_header(header):
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
    if kind not in (b"x", b"X"):
        return {}
    extended: dict[str, Any] = {}
    while data:
        head, space, _ = data.partition(b" ")
        if not space or not head.isdigit() or not len(head) < int(head) <= len(data):
            raise SourceError(f"{tar}: the pax header at byte {position:,} is damaged.")
        key, _, value = data[len(head) + 1 : int(head) - 1].partition(b"=")
        if key == b"path":
            extended["path"] = value.decode(errors="surrogateescape")
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise SourceError(f"{tar}: the pax header at byte {position:,} states no size.")
            extended["size"] = int(value)
        elif key.startswith(b"GNU.sparse."):
            extended["sparse"] = True
        data = data[int(head) :]
    return extended


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")
