"""Images inside tar files, as WebDataset writes them: read in place, never extracted.

A tar is walked once, header by header; members are then read by offset. A member's name is only
ever part of an id. ``KEY.cls`` beside ``KEY.jpg`` is the image's label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from phistill.errors import SourceError, UsageError

from .local_files import read_part, retried
from .source import SUFFIXES, ImageRecord, ImageSource, is_hidden, left_out_text

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20
"""Long names and pax headers beyond this are refused, not read."""
MAX_LABEL_BYTES = 256
LABEL_SUFFIX = ".cls"
REGULAR = (b"0", b"\0", b"7")
SPARSE = b"S"
CHUNK = 2**20
BESIDE = (LABEL_SUFFIX, ".json", ".txt")
"""What WebDataset and img2dataset put beside each image."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    length: int
    is_sparse: bool = False

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


@dataclass(frozen=True, slots=True)
class TarRules:
    """What is taken of a tar."""

    member: str = ""
    """What follows the key of a sample's image, as ``jpg`` or ``left.png``; by default one image of
    each key, see ``records_of``."""
    allow_cut: bool = False
    """A tar that ends without its end mark counts as whole; what is missing of it is lost."""


WHOLE_TARS = TarRules()


class TarSource(ImageSource):
    """Every image in some tar files."""

    kind = "tar"

    def __init__(self, root: Path, tars: Sequence[Path], rules: TarRules = WHOLE_TARS) -> None:
        self._root, self._tars, self._rules = root, list(tars), rules

    def records(self) -> list[ImageRecord]:
        self.left_out = left_out = Counter[str]()
        records = [record for tar in self._tars for record in self._tar_records(tar, left_out)]
        if not records:
            raise UsageError(
                f"{self._root}: the tars hold no image ({', '.join(sorted(SUFFIXES))}). "
                f"{left_out_text(left_out)}".rstrip()
            )
        return records

    def _tar_records(self, tar: Path, left_out: Counter[str]) -> list[ImageRecord]:
        inside = retried(lambda: list(members(tar, self._rules)), tar)
        uri = tar.relative_to(self._root).as_posix()
        return records_of(
            uri,
            inside,
            lambda member: read_part(tar, member.offset, member.length),
            self._rules,
            left_out,
        )

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_part(self._root / uri, offset, length)


def records_of(
    uri: str,
    members: Sequence[Member],
    read: Callable[[Member], bytes],
    rules: TarRules,
    left_out: Counter[str],
) -> list[ImageRecord]:
    """A record per image among the members of a tar; ``read`` gives the bytes of a label.

    KEY.jpg is an image, and KEY.seg.png beside it is not: of the images of one key, the one without
    a further dot is taken, of several of these the one whose suffix most keys have. Without such a
    one, names that repeat from key to key (KEY.left.jpg, KEY.right.jpg) are parts of a sample, of
    which the commonest is taken; others (photo.001.jpg) are images of their own.
    """
    images: dict[str, list[Member]] = {}
    labels: dict[str, str] = {}
    for member in members:
        if member.is_sparse:
            left_out["sparse members of tars"] += 1
        elif any(map(is_hidden, PurePosixPath(member.name).parts)):
            left_out["hidden files and folders"] += 1
        elif member.suffix in SUFFIXES:
            images.setdefault(member.key, []).append(member)
        elif member.suffix == LABEL_SUFFIX and member.length <= MAX_LABEL_BYTES:
            labels[member.key] = read(member).decode(errors="replace").strip()
        elif member.suffix not in BESIDE:
            left_out[f"{member.suffix} files" if member.suffix else "files without a suffix"] += 1
    common = Counter(e for key in images.values() for e in {member.extension for member in key})
    seen: set[str] = set()
    records = []
    for key, candidates in images.items():
        taken = _taken(candidates, common, rules.member.lower().lstrip("."))
        for member in candidates:
            if member.extension not in taken:
                left_out[f"KEY.{member.extension} beside another image of its key"] += 1
                continue
            name = f"{uri}/{member.name}"
            if name in seen:  # a tar may hold a name twice
                name = f"{name}@{member.offset}"
            seen.add(name)
            place = (member.offset, member.length)
            records.append(ImageRecord(name, uri, *place, labels.get(key)))
    return sorted(records, key=lambda record: record.offset)


def _taken(candidates: Sequence[Member], common: Mapping[str, int], member: str) -> set[str]:
    """The extensions that are taken of the images of one key."""
    extensions = {candidate.extension for candidate in candidates}
    if member:
        return extensions & {member}
    plain = {extension for extension in extensions if "." not in extension}
    parts = plain or {extension for extension in extensions if common[extension] > 1}
    if not parts:
        return extensions
    return {min(parts, key=lambda extension: (-common[extension], extension))}


def members(tar: Path, rules: TarRules = WHOLE_TARS) -> Iterator[Member]:
    """The regular files of a tar, in order; SourceError names the byte where it is damaged."""
    with tar.open("rb") as file:
        yield from members_of(file, tar.stat().st_size, tar, rules)


def members_of(
    file: BinaryIO, size: int, tar: object, rules: TarRules = WHOLE_TARS
) -> Iterator[Member]:
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
        if kind in b"LKxg" and kind:
            extended |= _extension(file, kind, length, tar, position)
        else:
            length = extended.get("size", length)
            name = extended.get("path") or _name(header)
            sparse = kind == SPARSE or "sparse" in extended
            extended = {}
            if start + length > size:
                raise SourceError(
                    f"{tar} is cut: the member at byte {position:,} is {length:,} bytes long. "
                    "Get the file again."
                )
            if kind == SPARSE:
                while header[482 if start == position + BLOCK else 504]:  # further maps of holes
                    file.seek(start)
                    header, start = file.read(BLOCK), start + BLOCK
                    if len(header) < BLOCK:
                        break
            if kind in REGULAR or kind == SPARSE:
                yield Member(name, start, length, sparse)
            elif kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                length = 0  # links, devices and folders have no content
        position = start + -(-length // BLOCK) * BLOCK
    if not ended and not rules.allow_cut:
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
        elif key.startswith(b"GNU.sparse."):
            extended["sparse"] = True
        data = data[int(head) :]
    return extended


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="replace")
