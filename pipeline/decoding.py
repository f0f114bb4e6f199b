"""Reading and decoding a shard's images ahead of the teachers.

Images are decoded by a pool of threads (Pillow releases the interpreter while it decodes and
resizes); shards come out in the order they were asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..cache import ImageFacts
from ..cache.commit import Box
from .decode import DecodeRules, Reject, decode, prepare_decoder
from .sources import Source
from .views import Rendering, View, render


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What the index says of a shard's rows, in order."""

    shard: int
    uris: Sequence[str]
    offsets: Sequence[int]
    lengths: Sequence[int]
    views: Sequence[int]


@dataclass(frozen=True, slots=True)
class DecodedShard:
    """A shard's rows rendered for every input that is needed; rejected rows are black."""

    shard: int
    pixels: dict[Rendering, NDArray[np.uint8]]
    images: ImageFacts
    reasons: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Row:
    sha256: str | None
    size: tuple[int, int] | None
    box: Box | None
    renderings: tuple[NDArray[np.uint8], ...]
    reason: str | None


def decode_shards(
    source: Source,
    jobs: Iterable[ShardRows],
    *,
    rules: DecodeRules,
    views: Sequence[View],
    renderings: Sequence[Rendering],
    num_workers: int | None = None,
    ahead: int = 1,
) -> Generator[DecodedShard]:
    """Decode shards in order, ``ahead`` of the one that is being used."""
    prepare_decoder()
    workers = num_workers or min(32, len(os.sched_getaffinity(0)))
    pending: deque[tuple[ShardRows, list[Future[list[_Row]]]]] = deque()
    remaining = iter(jobs)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(count: int) -> None:
        for job in islice(remaining, count):
            futures = [
                pool.submit(_decode_image, source, job, rows, rules, views, renderings)
                for rows in _images(job)
            ]
            pending.append((job, futures))

    try:
        submit(ahead + 1)
        while pending:
            job, futures = pending.popleft()
            rows = [row for future in futures for row in future.result()]
            submit(1)
            yield _collect(job.shard, rows, renderings)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _images(job: ShardRows) -> list[range]:
    """Consecutive rows that are views of one image: it is read and decoded once."""
    spans: list[range] = []
    for row in range(len(job.uris)):
        here = (job.uris[row], job.offsets[row])
        last = spans[-1] if spans else None
        if last is not None and here == (job.uris[last[-1]], job.offsets[last[-1]]):
            spans[-1] = range(last.start, row + 1)
        else:
            spans.append(range(row, row + 1))
    return spans


def _decode_image(
    source: Source,
    job: ShardRows,
    rows: range,
    rules: DecodeRules,
    views: Sequence[View],
    renderings: Sequence[Rendering],
) -> list[_Row]:
    first = rows.start
    data = source.read(job.uris[first], job.offsets[first], job.lengths[first])
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode(data, rules)
    except Reject as reject:
        return [_Row(sha256, None, None, (), str(reject))] * len(rows)
    found = []
    for row in rows:
        box = views[job.views[row]].box(image.size)
        rendered = tuple(render(image, box, rendering) for rendering in renderings)
        found.append(_Row(sha256, image.size, box, rendered, None))
    return found


def _collect(shard: int, rows: Sequence[_Row], renderings: Sequence[Rendering]) -> DecodedShard:
    pixels = {}
    for number, rendering in enumerate(renderings):
        values = np.zeros((len(rows), *rendering.size, 3), np.uint8)
        for slot, row in enumerate(rows):
            if row.reason is None:
                values[slot] = row.renderings[number]
        pixels[rendering] = values
    return DecodedShard(
        shard=shard,
        pixels=pixels,
        images=ImageFacts(
            sha256=tuple(row.sha256 for row in rows),
            size=tuple(row.size for row in rows),
            box=tuple(row.box for row in rows),
        ),
        reasons={slot: row.reason for slot, row in enumerate(rows) if row.reason is not None},
    )
