"""Which members of a tar are images, and their labels, as WebDataset and img2dataset write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from phistill.errors import SourceError

from ..source import (
    NO_LABELS,
    SUFFIXES,
    SourceOptions,
    image_records,
    is_hidden,
    suffix_kind,
)
from .members import Member

MAX_LABEL_BYTES = 256
LABEL_SUFFIX = ".cls"
BESIDE = (LABEL_SUFFIX, ".json", ".txt")
"""What WebDataset and img2dataset put beside each image."""


class Sample(NamedTuple):
    """An image of a tar."""

    id: str
    offset: int
    length: int
    label: str | None


def samples_of(
    uri: str,
    members: Sequence[Member],
    read: Callable[[Member], bytes],
    options: SourceOptions,
    left_out: Counter[str],
) -> list[Sample]:
    """The images among the members of a tar, in their order; ``read`` gives the bytes of a label.

    KEY.jpg is an image, and KEY.seg.png beside it is not: of the images of one key, the one without
    a further dot is taken, of several of these the one whose suffix most keys have. Without such a
    one, names that repeat from key to key (KEY.left.jpg, KEY.right.jpg) are parts of a sample, of
    which the commonest is taken; others (photo.001.jpg) are images of their own.
    """
    images: dict[str, list[Member]] = {}
    labels: dict[str, str | None] = {}
    beside: list[Member] = []
    for member in members:
        if any(map(is_hidden, PurePosixPath(member.name).parts)):
            left_out["hidden files and folders"] += 1
        elif member.unread:
            left_out[member.unread] += 1
        elif member.suffix in SUFFIXES:
            images.setdefault(member.key, []).append(member)
        elif member.suffix in BESIDE:
            beside.append(member)
            if member.suffix == LABEL_SUFFIX and options.label_column != NO_LABELS:
                labels[member.key] = _label(uri, member, read)
        else:
            left_out[suffix_kind(member.name)] += 1
    left_out.update(suffix_kind(member.name) for member in beside if member.key not in images)
    common = Counter(e for key in images.values() for e in {member.extension for member in key})
    seen: set[str] = set()
    samples = []
    for key, candidates in images.items():
        taken = _taken(candidates, common, options.member.lower().lstrip("."))
        for member in candidates:
            if member.extension not in taken:
                left_out[f"KEY.{member.extension} beside another image of its key"] += 1
                continue
            name = f"{uri}/{member.name}"
            if name in seen:  # a tar may hold a name twice
                name = f"{name}@{member.offset}"
            seen.add(name)
            samples.append(Sample(name, member.offset, member.length, labels.get(key)))
    return sorted(samples, key=lambda sample: sample.offset)


def table_of(tars: Mapping[str, Sequence[Sample]], splits: Sequence[str | None]) -> pa.Table:
    """The records of tars by their uri; ``splits`` has one for each of them."""
    return pa.concat_tables(
        image_records(
            [sample.id for sample in samples],
            uri,
            offsets=[sample.offset for sample in samples],
            lengths=[sample.length for sample in samples],
            labels=[sample.label for sample in samples],
            splits=split,
        )
        for (uri, samples), split in zip(tars.items(), splits, strict=True)
    )


def _label(uri: str, member: Member, read: Callable[[Member], bytes]) -> str | None:
    """The text of KEY.cls; SourceError where it is none."""
    try:
        if member.length > MAX_LABEL_BYTES:
            raise ValueError
        text = read(member).decode().strip()
        if not text.isprintable():
            raise ValueError
    except ValueError as error:
        raise SourceError(
            f"{uri}: {member.name} is no label: wanted a name or a number as text, at most "
            f"{MAX_LABEL_BYTES} bytes. Write the tar without it, or leave labels out with "
            "--label-column none."
        ) from error
    return text or None


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
