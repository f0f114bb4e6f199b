"""Caches of millions of rows in the real format, made in seconds: real index, facts, records and
packs; features of a few bytes a row, and every shard of an array the same file under many names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, CommitRecord, TeacherInfo
from phistill.cache.committed.packs import publish_facts, publish_records
from phistill.cache.format.facts import HAS_BOX, HAS_SHA256, HAS_SIZE, HELD_OUT, ImageFacts
from phistill.cache.format.info import DTYPES
from phistill.cache.format.shard import encode_shard, sha256_of
from phistill.cache.upkeep.append import add_segment

SHARD_ROWS = 256
PIXEL_SIZE = 16
WIDTH = 4
"""Channels of every array: what a row holds does not matter here."""

HOLDOUT = 0.02
SEGMENT_ROWS = 10_240_000
"""Rows whose index is made at once: what is held in memory."""

ENVIRONMENT = {"phistill": "0.1.0", "torch": "2.9.0", "device": "NVIDIA H100 80GB HBM3"}


def build(
    path: Path,
    num_rows: int,
    num_teachers: int,
    *,
    shard_rows: int = SHARD_ROWS,
    rejects_per_shard: int = 0,
    with_files: Iterable[int] | None = None,
    first_id: int = 0,
    pixel_size: int = PIXEL_SIZE,
    width: int = WIDTH,
) -> Cache:
    """A finished cache of ``num_teachers`` and pixels (unless ``pixel_size`` is 0), packed.

    ``with_files`` are the shards whose array files exist; None: all.
    """
    info = CacheInfo(
        seed=0,
        shard_rows=shard_rows,
        holdout=HOLDOUT,
        pixel_size=pixel_size,
        views=({"kind": "resize"},),
        decode={},
    )
    first = min(num_rows, SEGMENT_ROWS)
    cache = store.create(path, info, index_of(first, first_id))
    for number in range(num_teachers):
        widths = {"patches": width, "summary": WIDTH}
        cache.add_teacher(TeacherInfo(name=f"teacher{number}", grid=(1, 1), widths=widths))
    for start in range(first, num_rows, SEGMENT_ROWS):
        count = min(SEGMENT_ROWS, num_rows - start)
        add_segment(cache, index_of(count, first_id + start, first_row=start))
    shards = range(cache.info.num_shards) if with_files is None else with_files
    arrays = {owner: _files(cache, owner, shards) for owner in cache.owners}
    for number, members in cache.info.ranges().items():
        facts = {shard: _facts(cache.info, shard, first_id) for shard in members}
        publish_facts(cache.files, number, facts)
        for owner in cache.owners:
            records = {
                shard: _record(cache, owner, shard, arrays[owner], facts[shard], rejects_per_shard)
                for shard in members
            }
            publish_records(cache.files, number, owner, records)
    return store.open(path)


def give_files(cache: Cache, shards: Iterable[int]) -> None:
    """Make the array files of more shards of a cache that was built."""
    for owner in cache.owners:
        _files(cache, owner, shards)


def index_of(num_rows: int, first_id: int = 0, *, first_row: int = 0) -> pa.Table:
    """Names as ImageNet has them; images that lie nowhere."""
    rows = np.arange(num_rows)
    digits = pc.utf8_lpad(pa.array(rows + first_id).cast("string"), 9, "0")
    label = pc.utf8_lpad(pa.array(rows % 1000).cast("string"), 8, "0")
    ids = pc.binary_join_element_wise("n", label, "/n", label, "_", digits, ".JPEG", "")
    return pa.table(
        {
            "row": first_row + rows,
            "id": ids,
            "view": np.zeros(num_rows, np.int32),
            "uri": ids,
            "offset": np.zeros(num_rows, np.int64),
            "length": np.full(num_rows, -1),
            "label": label,
        }
    )


Sized = dict[int, dict[str, tuple[int, str]]]
"""Size and sha256 of the file of each kind, by how many rows a shard has."""


def _files(cache: Cache, owner: str, shards: Iterable[int]) -> Sized:
    """Write one file per kind and length of a shard, and name it for each of ``shards``."""
    info, generator = cache.info, np.random.default_rng(0)
    known: Sized = {}
    originals: dict[tuple[int, str], Path] = {}
    for num in {info.shard_rows, info.num_rows % info.shard_rows or info.shard_rows}:
        known[num] = {}
        for kind, shape in cache.shapes(owner).items():
            values = generator.standard_normal((num, *shape)) * 40
            buffers = encode_shard(values.astype(DTYPES[kind]), info.shard_rows)
            known[num][kind] = sum(b.nbytes for b in buffers), sha256_of(buffers)
            original = cache.path / f"original-{owner}-{kind}-{num}"
            original.write_bytes(b"".join(buffers))
            originals[num, kind] = original
    for shard in shards:
        start, stop = info.shard_range(shard)
        for kind, (relative,) in cache.paths(owner).of(shard).items():
            target = cache.path / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(originals[stop - start, kind], target)
    for original in originals.values():
        original.unlink()
    return known


def _link(original: Path, target: Path) -> None:
    try:
        os.link(original, target)
    except OSError:  # a file has as many names as it may have
        data = original.read_bytes()
        original.unlink()
        original.write_bytes(data)
        os.link(original, target)


def _facts(info: CacheInfo, shard: int, first_id: int) -> ImageFacts:
    start, stop = info.shard_range(shard)
    num = stop - start
    generator = np.random.default_rng([first_id, shard])
    flags = np.full(num, HAS_SHA256 | HAS_SIZE | HAS_BOX, np.uint8)
    flags[generator.random(num) < HOLDOUT] |= HELD_OUT
    return ImageFacts(
        generator.integers(0, 256, (num, 32), np.uint8),
        np.full((num, 2), 500, np.uint32),
        np.broadcast_to(np.array([0, 0, 500, 500], np.uint32), (num, 4)),
        flags,
    )


def _record(
    cache: Cache, owner: str, shard: int, sized: Sized, facts: ImageFacts, num_rejects: int
) -> CommitRecord:
    start, stop = cache.info.shard_range(shard)
    paths = cache.paths(owner).of(shard)
    return CommitRecord(
        owner=owner,
        shard=shard,
        start=start,
        num_rows=stop - start,
        files={paths[kind][0]: known for kind, known in sized[stop - start].items()},
        facts=facts.digest,
        reasons=dict.fromkeys(range(num_rejects), "truncated JPEG"),
        environment=ENVIRONMENT,
    )
