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
    is_text,
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
    which the commonest is taken; others (photo.001.jpg) are images of their own. A part that lies
    beside such images (KEY.seg.png) is none where its own image is missing.
    """
    images: dict[str, list[Member]] = {}
    labels: dict[str, list[str | None]] = {}
    beside: list[Member] = []
    for member in members:
        if any(map(is_hidden, PurePosixPath(member.name).parts)):
            left_out["hidden files and folders"] += 1
        elif not is_text(member.name):
            left_out["names that are not UTF-8"] += 1
        elif member.unread:
            left_out[member.unread] += 1
        elif member.suffix in SUFFIXES:
            images.setdefault(member.key, []).append(member)
        elif member.suffix in BESIDE:
            beside.append(member)
            if member.suffix == LABEL_SUFFIX and options.label_column != NO_LABELS:
                labels.setdefault(member.key, []).append(_label(uri, member, read))
        else:
            left_out[suffix_kind(member.name)] += 1
    left_out.update(suffix_kind(member.name) for member in beside if member.key not in images)
    keys = [{member.extension for member in candidates} for candidates in images.values()]
    common = Counter(extension for key in keys for extension in key)
    parts = _parts(keys, common)
    wanted = options.member.lower().lstrip(".")
    samples = []
    for key, candidates in images.items():
        taken = _taken({member.extension for member in candidates}, common, parts, wanted)
        times = Counter(member.name for member in candidates)
        seen: Counter[str] = Counter()
        for member in candidates:
            if member.extension not in taken:
                alone = not wanted and not taken
                why = "without its image" if alone else "beside another image of its key"
                left_out[f"KEY.{member.extension} {why}"] += 1
                continue
            nth = seen[member.name]
            seen[member.name] += 1
            name = f"{uri}/{member.name}" + (f"@{member.offset}" if nth else "")
            label = _nth(labels.get(key, [None]), nth, times[member.name])
            samples.append(Sample(name, member.offset, member.length, label))
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


def _nth(labels: Sequence[str | None], nth: int, times: int) -> str | None:
    """The label of an image that a tar holds ``times`` times, as tars behind one another do: each
    time has its own, or all have the same; else none is known."""
    if len(labels) == times:
        return labels[nth]
    return labels[0] if len(set(labels)) == 1 else None


def _parts(keys: Sequence[set[str]], common: Mapping[str, int]) -> set[str]:
    """The extensions with a further dot that most often lie beside an image without one."""
    beside = Counter(
        extension
        for key in keys
        if any("." not in extension for extension in key)
        for extension in key
        if "." in extension
    )
    return {extension for extension, count in beside.items() if 2 * count >= common[extension]}


def _taken(
    extensions: set[str], common: Mapping[str, int], beside: set[str], member: str
) -> set[str]:
    """The extensions that are taken of the images of one key; ``beside`` are parts of other keys'
    images."""
    if member:
        return extensions & {member}
    extensions = extensions - beside
    plain = {extension for extension in extensions if "." not in extension}
    parts = plain or {extension for extension in extensions if common[extension] > 1}
    if not parts:
        return extensions
    return {min(parts, key=lambda extension: (-common[extension], extension))}
