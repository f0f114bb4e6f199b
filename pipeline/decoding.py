"""Reading and decoding a shard's images ahead of the teachers.

Shards come out in the order they were asked for, and hold the same bytes whatever the number of
workers and whether they are threads or processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cache import ImageFacts
from ..cache.commit import Box
from ..cache.errors import UsageError
from .decode import DecodeRules, prepare_decoder
from .decode_image import DecodedImage, DecodeSetup, decode_image
from .decode_pool import DECODE_TIMEOUT_S, DecodePool
from .sources import Source
from .views import Rendering, View

Mode = Literal["auto", "threads", "processes"]
MODES: tuple[Mode, ...] = ("auto", "threads", "processes")

PROCESS_MIN_ROWS = 1000
"""From this many rows on, starting a process per core is repaid."""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What the index says of a shard's rows, in order."""

    shard: int
    uris: Sequence[str]
    offsets: Sequence[int]
    lengths: Sequence[int]
    views: Sequence[int]
    ids: Sequence[str] | None = None
    """Needed by random views."""


@dataclass(frozen=True, slots=True)
class DecodedShard:
    """A shard's rows rendered for every input that is needed; rejected rows are black."""

    shard: int
    pixels: dict[Rendering, NDArray[np.uint8]]
    images: ImageFacts
    reasons: dict[int, str]


def choose_mode(mode: Mode, num_rows: int | None) -> Mode:
    """``auto`` is processes for 1,000 rows and more, where their start is repaid and one bad
    decoder would lose much; threads for fewer, or when the number is not known."""
    if mode not in MODES:
        raise UsageError(f"decode mode {mode!r} is not known; choose one of {', '.join(MODES)}.")
    if mode != "auto":
        return mode
    return "processes" if num_rows is not None and num_rows >= PROCESS_MIN_ROWS else "threads"


def decode_shards(
    source: Source,
    jobs: Iterable[ShardRows],
    *,
    rules: DecodeRules,
    views: Sequence[View],
    renderings: Sequence[Rendering],
    seed: int = 0,
    num_workers: int | None = None,
    mode: Mode = "auto",
    num_rows: int | None = None,
    timeout_s: float = DECODE_TIMEOUT_S,
    ahead: int = 1,
) -> Generator[DecodedShard]:
    """Decode shards in order, ``ahead`` of the one that is being used.

    ``num_rows`` of all jobs together lets ``auto`` choose. ``timeout_s`` is for one image in a
    process; a thread cannot be stopped.
    """
    setup = DecodeSetup(rules, tuple(views), tuple(renderings), seed)
    workers = num_workers or min(32, num_cores())
    decoder: _Decoder = _InThreads(setup)
    num_threads = workers
    if choose_mode(mode, num_rows) == "processes":
        decoder = DecodePool(workers, setup, timeout_s=timeout_s)
        num_threads = 2 * workers  # half of them read while the others wait for a process
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    pending: deque[tuple[ShardRows, list[Future[_Span]]]] = deque()
    remaining = iter(jobs)

    def submit(count: int) -> None:
        for job in islice(remaining, count):
            spans = _images(job, setup)
            futures = [pool.submit(_read_and_decode, source, job, s, decoder) for s in spans]
            pending.append((job, futures))

    try:
        submit(ahead + 1)
        while pending:
            job, futures = pending.popleft()
            spans = [future.result() for future in futures]
            submit(1)
            yield _collect(job, spans, setup.renderings)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        decoder.close()
        pool.shutdown(wait=True)


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_Span = tuple[range, DecodedImage]
"""Rows of a shard that are views of one image, and what became of it."""


class _Decoder(Protocol):
    def decode(self, data: bytes, image_id: str, numbers: Sequence[int]) -> DecodedImage: ...

    def close(self) -> None: ...


class _InThreads:
    """Decoding in the calling thread: Pillow releases the interpreter meanwhile."""

    def __init__(self, setup: DecodeSetup) -> None:
        prepare_decoder()
        self._setup = setup

    def decode(self, data: bytes, image_id: str, numbers: Sequence[int]) -> DecodedImage:
        return decode_image(data, image_id, numbers, self._setup)

    def close(self) -> None:
        pass


def _images(job: ShardRows, setup: DecodeSetup) -> list[range]:
    """Consecutive rows that are views of one image: it is read and decoded once."""
    if job.ids is None and any(view.is_random for view in setup.views):
        raise UsageError("random views need the ids of the images: give ShardRows its ids.")
    keys = list(zip(job.ids or job.uris, job.uris, job.offsets, strict=True))
    spans: list[range] = []
    for row, key in enumerate(keys):
        last = spans[-1] if spans else range(0)
        if last and key == keys[last.start] and len(last) < len(setup.views):
            spans[-1] = range(last.start, row + 1)
        else:
            spans.append(range(row, row + 1))
    return spans


def _read_and_decode(source: Source, job: ShardRows, rows: range, decoder: _Decoder) -> _Span:
    first = rows.start
    data = source.read(job.uris[first], job.offsets[first], job.lengths[first])
    image_id = job.uris[first] if job.ids is None else job.ids[first]
    return rows, decoder.decode(data, image_id, [job.views[row] for row in rows])


def _collect(
    job: ShardRows, spans: Sequence[_Span], renderings: Sequence[Rendering]
) -> DecodedShard:
    num_rows = len(job.uris)
    pixels = {r: np.zeros((num_rows, *r.size, 3), np.uint8) for r in renderings}
    sha256: list[str | None] = [None] * num_rows
    size: list[tuple[int, int] | None] = [None] * num_rows
    box: list[Box | None] = [None] * num_rows
    reasons: dict[int, str] = {}
    for rows, image in spans:
        for number, row in enumerate(rows):
            sha256[row], size[row] = image.sha256, image.size
            if image.reason is not None:
                reasons[row] = image.reason
                continue
            box[row] = image.boxes[number]
            for rendering, values in zip(renderings, image.pixels[number], strict=True):
                pixels[rendering][row] = values
    facts = ImageFacts(sha256=tuple(sha256), size=tuple(size), box=tuple(box))
    return DecodedShard(job.shard, pixels, facts, reasons)
