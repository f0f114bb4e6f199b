"""What an image source is: a table with a line per image, and the bytes of one when asked.

A source of your own implements ``records`` and ``read``; the rest has defaults. Names from a source
are only ever identifiers: nothing is written under them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from phistill.errors import UsageError, counted

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("apng", "avif", "avifs", "bmp", "bw", "dib", "gif", "heic", "heif", "hif", "ico", "icb"),
        *("j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx", "jxl"),
        *("mpo", "pbm", "pcx", "pgm", "png", "pnm", "ppm", "qoi", "rgb", "rgba", "sgi", "tga"),
        *("tif", "tiff", "vda", "vst", "webp"),
    )
)
"""Of what is decoded (``decode.rgb``), as files are named."""
HIDDEN_NAMES = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"})
"""Folders of copies that systems make by themselves, beside all that begin with a dot."""
MAX_KINDS = 40
"""Kinds of what is left out that are kept apart; the rest is counted together."""
OTHER_KINDS = "files of further kinds"

KINDS = {
    "folder": "image files",
    "list": "paths in a text file",
    "parquet": "parquet tables",
    "arrow": "Arrow files of a saved dataset",
    "tar": "tars",
}
"""What ``--kind`` may ask for, and what it reads."""
NO_LABELS = "none"
"""As the name of a label column: no column is one."""

RECORDS = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
    ]
)
"""Columns of what a source lists, see ``image_records``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What of IMAGES is taken. A cache remembers what was used; only then is nothing said here."""

    kind: str = ""
    """One of KINDS; by default what holds most images, see ``choose``."""
    member: str = ""
    """Which image of a sample: in a tar what follows the key, as ``jpg`` or ``left.png``, in a
    table the column; one of each by default."""
    allow_cut_tars: bool = False
    """A tar that ends without its end mark is read as far as it goes."""
    label_column: str = ""
    """Column of a table that holds the class; NO_LABELS for none; by default one of a list."""
    window_tars: int = 8
    """Tars from afar whose images are mixed in a new cache; twice as many are on the disk."""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise UsageError(f"--kind {self.kind!r} is not known; write one of {', '.join(KINDS)}.")
        if self.window_tars < 1:
            raise UsageError(f"--window {self.window_tars} must be positive.")

    def recorded(self, used: Mapping[str, Any]) -> SourceOptions:
        """These options, and what a cache says was ``used`` where nothing is asked for."""
        chosen = {name: getattr(self, name) or used.get(name) for name in USED}
        if chosen["kind"] not in KINDS:  # a source of somebody's own
            del chosen["kind"]
        return replace(self, **{name: value for name, value in chosen.items() if value})


DEFAULTS = SourceOptions()
NOTHING: Mapping[str, int] = MappingProxyType({})
USED = ("kind", "member", "allow_cut_tars", "label_column")
"""Options that decide which images a source has: a cache remembers them."""


class ImageSource(ABC):
    """Images that can be listed and read."""

    kind = "own"
    """What it is, in a word."""
    options = SourceOptions()
    """What it was opened with."""
    slow_to_list = False
    """Listing reads everything: it is done when images are added, not when a run goes on."""

    left_out: Mapping[str, int] = NOTHING
    """What lies beside the images that ``records`` listed last, by kind."""

    @abstractmethod
    def records(self) -> pa.Table:
        """Every image once, in the same order each time (``image_records``); UsageError when there
        is none."""

    @abstractmethod
    def read(self, uri: str, offset: int, length: int) -> bytes:
        """The encoded bytes of an image, by what its record says. Called from several threads.

        Raises SourceError, which stops the run, where the bytes cannot be had. Bytes that are no
        image are a reject.
        """

    def order(self, records: pa.Table, generator: np.random.Generator) -> NDArray[np.int64]:
        """Positions (n,) of the records in the order of a new cache's rows: random, so that a shard
        is a fair sample, as far as the images can be read in it."""
        return generator.permutation(records.num_rows)

    def expect(self, reads: Iterable[tuple[str, int]]) -> None:  # noqa: B027
        """These images (uri, offset) will be read, about in this order."""

    def stop(self) -> None:  # noqa: B027
        """End what is being read, within seconds; the source is of no use afterwards."""

    def close(self) -> None:  # noqa: B027
        """Give back what is held. A source may be closed twice."""


def image_records(
    ids: Sequence[str] | pa.ChunkedArray,
    uris: Sequence[str] | pa.ChunkedArray | str | None = None,
    *,
    offsets: Sequence[int] | NDArray[np.int64] | int = -1,
    lengths: Sequence[int] | NDArray[np.int64] | int = -1,
    labels: Sequence[str | None] | pa.ChunkedArray | str | None = None,
    splits: Sequence[str | None] | pa.ChunkedArray | str | None = None,
) -> pa.Table:
    """A line per image (RECORDS); one value stands for all lines.

    id: says which row is which image, for ever. uri: relative to the source's root; the id where
    none is given. offset: of the bytes, or the row number, inside ``uri``; -1 for a whole file.
    length: in bytes, -1 where it is not needed. label: name of the class, if known. split:
    ``train`` or ``heldout`` when the source says so.
    """
    columns = (ids, ids if uris is None else uris, offsets, lengths, labels, splits)
    num_rows = len(ids)
    filled = [
        _column(values, field.type, num_rows)
        for values, field in zip(columns, RECORDS, strict=True)
    ]
    return pa.table(filled, schema=RECORDS)


def _column(values: Any, kind: pa.DataType, num_rows: int) -> Any:
    if values is None:
        return pa.nulls(num_rows, kind)
    if isinstance(values, str | int):
        return pa.repeat(pa.scalar(values, kind), num_rows)
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values.cast(kind)
    return pa.array(values, kind)


def refuse_duplicates(ids: Sequence[str] | pa.ChunkedArray, where: str) -> None:
    """UsageError naming an id that is listed twice."""
    column = _column(ids, pa.string(), len(ids))
    if pc.count_distinct(column).as_py() == len(column):
        return
    counts = pc.value_counts(column)
    twice = counts[int(np.argmax(counts.field("counts").to_numpy()))]
    raise UsageError(
        f"{where} lists {twice['values'].as_py()!r} {twice['counts']} times; every image needs an "
        "id of its own."
    )


def is_hidden(name: str) -> bool:
    """Whether a part of a path names a hidden file, or a folder of copies that a system made."""
    return name in HIDDEN_NAMES or (name.startswith(".") and name not in (".", ".."))


def is_text(name: str) -> bool:
    """Whether a name can be an id: one with bytes that are no UTF-8 cannot."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def suffix_kind(name: str) -> str:
    """``.txt files``: how a file that is not taken is counted."""
    stem, _, suffix = name.rpartition(".")
    if not stem or not suffix:
        return "files without a suffix"
    return f".{suffix.lower()} files" if len(suffix) <= 12 and is_text(suffix) else OTHER_KINDS


def few_kinds(left_out: Mapping[str, int]) -> dict[str, int]:
    """The same, commonest first, with no more than MAX_KINDS kinds."""
    common = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    if len(common) <= MAX_KINDS:
        return dict(common)
    kinds = dict(common[: MAX_KINDS - 1])
    rest = sum(count for _, count in common[MAX_KINDS - 1 :])
    return {**kinds, OTHER_KINDS: kinds.get(OTHER_KINDS, 0) + rest}


def left_out_text(left_out: Mapping[str, int], num_named: int = 6) -> str:
    """``left out: 12 hidden files, 2 named pipes``; empty where nothing was."""
    kinds = [f"{count:,} {kind}" for kind, count in Counter(left_out).most_common()]
    more = f", and {len(kinds) - num_named} kinds more" if kinds[num_named:] else ""
    return f"left out: {', '.join(kinds[:num_named])}{more}." if kinds else ""


def listing_text(source: ImageSource, num_images: int) -> str:
    """What was chosen and what else is there, in a line."""
    what = f" from {KINDS[source.kind]} (--kind {source.kind})" if source.kind in KINDS else ""
    beside = left_out_text(source.left_out) or "nothing left out."
    return f"{counted(num_images, 'image')}{what}; {beside}"
