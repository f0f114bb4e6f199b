"""Reading and decoding a shard's images ahead of the teachers.

Shards come out in the order they were asked for, and hold the same bytes whatever the number of
workers and whether they are threads or processes.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Literal, Protocol

from phistill.errors import UsageError

from .image import DecodedImage, DecodeSetup, decode_image
from .pending import DecodedShard, PendingShard, ShardRows
from .pool import DECODE_TIMEOUT_S, DecodePool
from .process import Request
from .rgb import DecodeRules, prepare_decoder
from .views import Rendering, View

Mode = Literal["auto", "threads", "processes"]
Read = Callable[[str, int, int], bytes]
"""The encoded bytes of an image by uri, offset and length; called from several threads."""
MODES: tuple[Mode, ...] = ("auto", "threads", "processes")

PROCESS_MIN_ROWS = 1000
"""From this many rows on, starting a process per core is repaid."""

MAX_BUNDLE = 8
MAX_BUNDLE_BYTES = 16 * 2**20
"""Images handed to a worker together: at most so many, and no more once they are this large."""

AHEAD_BUNDLES, AHEAD_BYTES = 2, 2**28
"""Decoded ahead: bundles for each worker, of rows whose pixels together take no more than this;
four rows for each worker at least."""


def choose_mode(mode: Mode, num_rows: int | None) -> Mode:
    """``auto`` is processes for 1,000 rows and more, where their start is repaid and one bad
    decoder would lose much; threads for fewer, or when the number is not known."""
    if mode not in MODES:
        raise UsageError(f"decode mode {mode!r} is not known; choose one of {', '.join(MODES)}.")
    if mode == "processes" and not can_use_processes():
        raise UsageError("decode mode 'processes' needs poll(2), which this system does not have.")
    if mode != "auto":
        return mode
    many = num_rows is not None and num_rows >= PROCESS_MIN_ROWS
    return "processes" if many and can_use_processes() else "threads"


def can_use_processes() -> bool:
    """Whether the system can wait for a pipe with a time limit: Windows cannot."""
    return hasattr(select, "poll")


def decode_shards(
    read: Read,
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
) -> Generator[DecodedShard]:
    """Whole shards in order, one decoded ahead of the one that is being used.

    ``num_rows`` of all jobs together lets ``auto`` choose. ``timeout_s`` is for one image in a
    process; a thread cannot be stopped.
    """
    setup = DecodeSetup(rules, tuple(views), tuple(renderings), seed)
    with arriving_shards(
        read, jobs, setup,
        num_workers=num_workers, mode=choose_mode(mode, num_rows), timeout_s=timeout_s,
    ) as arriving:  # fmt: skip
        for shard in arriving:
            yield shard.complete()


@contextmanager
def arriving_shards(
    read: Read,
    jobs: Iterable[ShardRows],
    setup: DecodeSetup,
    *,
    mode: Mode,
    num_workers: int | None = None,
    timeout_s: float = DECODE_TIMEOUT_S,
) -> Iterator[Iterator[PendingShard]]:
    """Shards in order, handed out at once; their rows arrive one after another.

    While a shard is used the next is being decoded, and as many more as keep every worker busy.
    At the end of the ``with`` what is not decoded yet is given up.
    """
    workers = num_workers or min(32, num_cores())
    decoder: _Decoder = _InThreads(setup)
    num_threads = workers
    if mode == "processes":
        decoder = DecodePool(workers, setup, timeout_s=timeout_s)
        num_threads = 2 * workers  # half of them read while the others wait for a process
    ahead_rows = max(
        4 * workers,
        min(AHEAD_BUNDLES * MAX_BUNDLE * workers, AHEAD_BYTES // max(1, setup.row_bytes)),
    )
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    pending: deque[PendingShard] = deque()
    remaining = iter(jobs)

    def submit() -> bool:
        for job in islice(remaining, 1):
            shard = PendingShard(job, setup.renderings)
            images = _images(job, setup)
            # What is ahead is shared by the workers; in threads nothing is handed over.
            size = (ahead_rows if mode == "processes" else len(images)) // (2 * workers)
            for rows in _bundles(images, min(max(1, size), MAX_BUNDLE)):
                work = pool.submit(_read_and_decode, read, job, rows, decoder, shard)
                shard.expect(rows[0].start, work)
            pending.append(shard)
            return True
        return False

    def shards() -> Iterator[PendingShard]:
        while True:
            # One whole shard ahead, or several small ones.
            while sum(shard.num_rows for shard in islice(pending, 1, None)) < ahead_rows:
                if not submit():
                    break
            if not pending:
                return
            yield pending.popleft()

    try:
        yield shards()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        decoder.close()
        pool.shutdown(wait=True)


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Decoder(Protocol):
    def decode_many(self, requests: Sequence[Request]) -> Iterator[DecodedImage]: ...

    def close(self) -> None: ...


class _InThreads:
    """Decoding in the calling thread: Pillow releases the interpreter meanwhile."""

    def __init__(self, setup: DecodeSetup) -> None:
        prepare_decoder()
        self._setup = setup

    def decode_many(self, requests: Sequence[Request]) -> Iterator[DecodedImage]:
        for request in requests:
            yield decode_image(request.data, request.image_id, request.views, self._setup)

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


def _bundles(images: Sequence[range], size: int) -> Iterator[Sequence[range]]:
    """Images that one worker decodes in a row, ``size`` at most."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _read_and_decode(
    read: Read, job: ShardRows, images: Sequence[range], decoder: _Decoder, shard: PendingShard
) -> None:
    """Read some images, decode them, and put them into their shard."""
    requests: list[Request] = []
    first = 0
    for number, rows in enumerate(images):
        row = rows.start
        data = read(job.uris[row], job.offsets[row], job.lengths[row])
        image_id = job.uris[row] if job.ids is None else job.ids[row]
        requests.append(Request(data, image_id, [job.views[row] for row in rows]))
        large = sum(len(request.data) for request in requests) > MAX_BUNDLE_BYTES
        if large or number == len(images) - 1:
            decoded = decoder.decode_many(requests)
            for place, image in zip(images[first : number + 1], decoded, strict=True):
                shard.place(place, image)
            first, requests = number + 1, []
