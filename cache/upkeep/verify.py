"""Checking every byte of a cache against its commit records, and saying which rows are damaged.

crc32c finds flipped bits when a row is read; sha256 of whole files also finds what it cannot: two
shards swapped, a file cut and padded, a record that belongs elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phistill.errors import CorruptCache, UsageError

from ..codes.stored import read_codec
from ..committed.packs import whole_facts, whole_records
from ..format import names
from ..format.arrays import same_array, same_group
from ..format.record import CommitRecord
from ..format.shard import CRC_BYTES, decode_rows, index_bytes, matches
from ..format.tensor_file import decode
from ..segments import Index
from ..storage.files import Files
from ..store import Cache

VerifyProgress = Callable[[int, int], None]
"""Called with the bytes checked and the bytes there are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as the cache promises."""

    owner: str
    """A teacher, ``pixels``, or empty for the cache as a whole."""
    shard: int | None
    """None when it concerns all shards of the owner."""
    path: str
    what: str
    rows: tuple[int, ...] = ()
    """Global rows whose stored values are wrong, where that can be told."""
    unfinished: bool = False
    """Nothing is damaged: the shard was never committed."""
    statistics: bool = False
    """It is about moments or a normalizer."""
    irreplaceable: bool = False
    """``fit-stats --repair`` cannot make it again, as it makes other statistics."""

    @property
    def is_of_facts(self) -> bool:
        """It is about what is known of images; ``owner`` is who can read them again."""
        return self.path.startswith((f"{names.FACTS}/", f"{names.FACT_PACKS}/"))

    def __str__(self) -> str:
        where = self.owner or "cache"
        where += f", shard {self.shard}" if self.shard is not None else ""
        shown = ", ".join(map(str, self.rows[:5])) + (", ..." if len(self.rows) > 5 else "")
        rows = f" (rows {shown})" if self.rows else ""
        return f"{where}: {self.path}: {self.what}{rows}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked and what was found; good when ``findings`` is empty."""

    findings: tuple[Finding, ...]
    num_files: int
    num_bytes: int

    @property
    def damaged(self) -> tuple[Finding, ...]:
        """Findings that are damage, not just unfinished work."""
        return tuple(finding for finding in self.findings if not finding.unfinished)


def verify(cache: Cache, *, progress: VerifyProgress | None = None) -> VerifyReport:
    """Check the index, every zarr.json, every commit record and the facts it stands on, every byte
    of every shard, and all stored statistics by the digest that they carry."""
    findings = list(_metadata(cache))
    records: list[CommitRecord] = []
    for owner in cache.owners:
        readable, broken = _records(cache, owner)
        findings += broken
        records += readable
    findings += _facts(cache, records)
    statistics = [path for name in cache.teachers for path in _statistics(cache.files, name)]
    total = sum(size for record in records for size, _ in record.files.values())
    total += sum(cache.files.size(path) or 0 for path in statistics)
    done = num_files = 0
    for record in records:
        for path, (size, sha256) in record.files.items():
            if problem := _file(cache, record, path, size, sha256):
                findings.append(problem)
            done, num_files = done + size, num_files + 1
            if progress is not None:
                progress(done, total)
    findings += damaged_statistics(cache)
    if progress is not None and total:
        progress(total, total)
    return VerifyReport(tuple(findings), num_files + len(statistics), total)


def damaged_statistics(cache: Cache, teachers: Sequence[str] | None = None) -> list[Finding]:
    """Files of moments and normalizers that are not what was written; all teachers by default."""
    findings = []
    for name in cache.teachers if teachers is None else teachers:
        for path in _statistics(cache.files, name):
            try:
                decode(cache.files.read(path))
            except FileNotFoundError:
                continue  # replaced in between
            except (ValueError, OSError) as error:
                lost = _what_is_lost(cache, name, path)
                findings.append(
                    Finding(
                        name,
                        None,
                        path,
                        str(error) + lost,
                        statistics=True,
                        irreplaceable=bool(lost),
                    )
                )
    return findings


def _what_is_lost(cache: Cache, teacher: str, path: str) -> str:
    """With a file of statistics that cannot be computed again."""
    kind, file = path.split("/")[-2:]
    if kind not in cache.teacher(teacher).codecs or not file.startswith(("floats-", "shard-")):
        return ""
    return (
        "; it holds sums of features that their codes alone are stored of. Restore it from a copy; "
        "without it the statistics that are stored stay as they are, and where images of its "
        "shards change or are new they are summed as they are decoded"
    )


def discard(cache: Cache, report: VerifyReport) -> int:
    """Take back the commit of every damaged shard and write damaged array documents anew.

    Damaged facts go too: whoever commits the shard again brings the same ones, or is refused. The
    shards count as missing afterwards, so that ``extract`` makes them again. Returns how many.
    Damaged statistics are deleted where ``fit_stats`` can make them again.
    Raises CorruptCache for damage that no extraction can undo (the index, the root).
    """
    hopeless = [finding for finding in report.damaged if not finding.owner]
    if hopeless:
        raise CorruptCache(
            f"{cache.location} cannot be repaired by extracting: {hopeless[0].path} is damaged. "
            "Restore that file from a copy, or extract into a new cache."
        )
    shards = {(f.owner, f.shard) for f in report.damaged if f.shard is not None}
    for owner in sorted({owner for owner, _ in shards}):
        cache.forget_shards(owner, {shard for other, shard in shards if other == owner})
    lost = {f.shard for f in report.damaged if f.shard is not None and f.is_of_facts}
    cache.forget_facts(lost)
    for finding in report.damaged:
        if finding.statistics:
            if not finding.irreplaceable:
                cache.files.delete(finding.path)
        elif finding.shard is None:
            cache.restore_metadata(finding.owner)
    return len(shards)


def _metadata(cache: Cache) -> Iterator[Finding]:
    try:
        Index(cache.files).table(cache.info)
    except (CorruptCache, OSError) as error:
        yield Finding("", None, "index", str(error))
    node = names.metadata(names.TEACHERS)
    try:
        same_group(cache.files.read(node), node)
    except (CorruptCache, OSError) as error:
        yield Finding("", None, node, str(error))
    for owner in cache.owners:
        node = names.metadata(names.group(owner))
        try:
            if owner != names.PIXELS:
                cache.read_teacher(owner)
            shapes = cache.shapes(owner)
        except (CorruptCache, UsageError, OSError) as error:
            yield Finding("", None, node, str(error))
            continue
        for kind in shapes:
            path = names.metadata(names.array(owner, kind))
            expected = cache.array_document(owner, kind)
            try:
                same_array(cache.files.read(path), expected, path, exactly=True)
            except (CorruptCache, OSError) as error:
                yield Finding(owner, None, path, str(error))
        for kind, stored in cache.teacher(owner).codecs.items() if owner in cache.teachers else ():
            path = names.codec(owner, kind)
            row_shape = cache.teacher(owner).row_shape(kind)
            try:
                read_codec(cache.files, path, stored, row_shape)
            except (CorruptCache, OSError) as error:
                what = str(error).removeprefix(f"{cache.files.where(path)}: ")
                yield Finding("", None, path, what)


def _records(cache: Cache, owner: str) -> tuple[list[CommitRecord], list[Finding]]:
    """The readable records of an owner, and what is wrong with the others."""
    records, findings = [], []
    try:
        cache.shapes(owner)
    except (CorruptCache, OSError):
        return [], []  # said of its group
    loose = cache.catalogue.loose_shards(names.commits(owner))
    for number, shards in cache.info.ranges().items():
        path = names.pack(names.record_packs(owner), number)
        packed = whole_records(cache.files, number, owner, cache.info, cache.paths(owner))
        damaged = []
        for shard in shards:
            if shard in loose:
                try:
                    records.append(cache.read_commit(owner, shard))
                except (CorruptCache, OSError) as error:
                    path_of_shard = names.commit(owner, shard)
                    findings.append(Finding(owner, shard, path_of_shard, str(error)))
            elif shard in packed.by_shard:
                records.append(packed.by_shard[shard])
            elif packed.problem and (shard in packed.shards or not packed.shards):
                damaged.append(Finding(owner, shard, path, packed.problem))
            else:
                path_of_shard = names.commit(owner, shard)
                finding = Finding(owner, shard, path_of_shard, "not extracted yet", unfinished=True)
                findings.append(finding)
        if packed.problem and not damaged:
            damaged = [Finding(owner, shards[0], path, packed.problem)]
        findings += damaged
    return records, findings


def _facts(cache: Cache, records: list[CommitRecord]) -> Iterator[Finding]:
    """Facts that are damaged, missing or of another shard, said of the owner who can bring them
    again by committing the shard again, and owners whose rows come from other images."""
    by_shard: dict[int, list[CommitRecord]] = {}
    for record in records:
        by_shard.setdefault(record.shard, []).append(record)
    loose = cache.catalogue.loose_shards(names.FACTS)
    for number, shards in cache.info.ranges().items():
        packed = whole_facts(cache.files, number, cache.info)
        pack, named = names.pack(names.FACT_PACKS, number), False
        for shard in filter(by_shard.get, shards):
            standing, digest, path = by_shard[shard], "", names.facts(shard)
            what = "the facts of its images are not those that it was committed with"
            if shard in loose:
                cache.catalogue.forget_facts([shard])
                try:
                    facts = cache.facts_of(shard)  # from its pack, if it was packed meanwhile
                    digest = facts.digest if facts is not None else ""
                except (CorruptCache, OSError) as error:
                    what = str(error)
            elif shard in packed.by_shard:
                digest = packed.by_shard[shard].digest
            elif packed.problem and (shard in packed.shards or not packed.shards):
                path, what, named = pack, packed.problem, True
            else:
                what = "the facts of its images are missing"
            others = [record for record in standing if record.facts != digest]
            if len(others) == len(standing):
                rows = tuple(range(*cache.info.shard_range(shard)))
                yield Finding(_who_reads_again(cache, standing), shard, path, what, rows)
                continue
            first = next(record for record in standing if record.facts == digest)
            for record in others:
                what = f"its rows come from other images than those of {first.owner}"
                yield Finding(record.owner, shard, names.commit(record.owner, shard), what)
        if packed.problem and not named:
            first_owner = cache.owners[0] if cache.owners else ""
            yield Finding(first_owner, shards[0], pack, packed.problem)


def _who_reads_again(cache: Cache, standing: Sequence[CommitRecord]) -> str:
    """The owner who costs the least to make again: the pixels, a teacher, an imported one."""
    owners = [record.owner for record in standing]
    here = [o for o in owners if o == names.PIXELS or not cache.teacher(o).is_imported]
    return (here or owners)[0]


def _file(cache: Cache, record: CommitRecord, path: str, size: int, sha256: str) -> Finding | None:
    try:
        data = cache.files.read(path)
    except OSError as error:
        return Finding(
            record.owner, record.shard, path, f"cannot be read: {error.strerror or error}"
        )
    if hashlib.sha256(data).hexdigest() == sha256 and len(data) == size:
        return None
    what = f"has {len(data):,} bytes, {size:,} were committed" if len(data) != size else ""
    rows, inside = _bad_rows(cache, record, path, data)
    if not what:
        what = inside or "is whole, but not the file that was committed"
    return Finding(record.owner, record.shard, path, what, rows)


def _bad_rows(
    cache: Cache, record: CommitRecord, path: str, data: bytes
) -> tuple[tuple[int, ...], str]:
    """Rows whose checksum fails, and in words; nothing when every row is self-consistent."""
    if cache.info.compression:
        return (), ""  # rows have no fixed places; the shard is the smallest unit that can be named
    stop = record.start + record.num_rows
    layout, number = next(
        (layout, number)
        for layout in cache.layouts(record.owner).values()
        for number in layout.files(record.start, stop)
        if layout.path(number) == path
    )
    first, row_bytes, file_rows = number * layout.file_rows, layout.row_bytes, layout.file_rows
    num_rows = min(first + file_rows, stop) - first
    content: Any = np.frombuffer(data, np.uint8)
    try:
        tail = content[-index_bytes(file_rows) :]
        offsets = decode_rows(tail, file_rows, len(data), row_bytes, path)
    except CorruptCache:
        return (), "the shard index is damaged"
    bad = []
    for slot, offset in enumerate(offsets[:num_rows].tolist()):
        row = content[offset : offset + row_bytes]
        crc = content[offset + row_bytes : offset + row_bytes + CRC_BYTES]
        if offset < 0 or crc.size != CRC_BYTES or not matches(row, int(crc.view("<u4")[0])):
            bad.append(first + slot)
    return tuple(bad), f"{len(bad)} of {num_rows} rows are damaged" if bad else ""


def _statistics(files: Files, teacher: str) -> list[str]:
    """Every file of a teacher's moments and normalizers, sorted."""
    return [
        path
        for folder in ("moments", "normalizers")
        for path in _below(files, f"{names.group(teacher)}/{folder}", depth=3)
    ]


def _below(files: Files, folder: str, depth: int) -> Iterator[str]:
    """Files below a folder, at most ``depth`` levels down: moments/KIND/FILE is two."""
    for name in files.names_in(folder):
        path = f"{folder}/{name}"
        if name.endswith(".safetensors"):
            yield path
        elif depth > 1:
            yield from _below(files, path, depth - 1)
