"""Encoding and writing a shard against copying and writing the same bytes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measuring import in_turns, ratios, spread
from rows import SHARD_ROWS, TOKENS, WIDTH

from phistill.cache.format.shard import encode_shard, sha256_of
from phistill.cache.storage.positional import fsync_folder
from phistill.cache.storage.publish import write_all

TITLES = {"ours": "encode and write", "with sha256": "the same, sha256 beside it"}


def writes(disk: Path) -> Iterator[str]:
    """To memory, and to a disk with fsync."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((SHARD_ROWS, TOKENS, WIDTH), np.float32).astype(np.float16)
    for name, folder, sync in (("tmpfs", Path("/dev", "shm"), False), ("disk, fsync", disk, True)):
        path = folder / f"phistill-benchmark-{os.getpid()}"
        found = in_turns(
            {
                "plain": lambda p=path, s=sync: _plain(values, p, s),
                "ours": lambda p=path, s=sync: _ours(values, p, s, False),
                "with sha256": lambda p=path, s=sync: _ours(values, p, s, True),
            },
            rounds=15,
            unmeasured=1,
        )
        path.unlink()
        for who, title in TITLES.items():
            rate = values.nbytes / statistics.median(found[who]) / 1e9
            of_plain = spread(ratios(found["plain"], by=found[who]), ".2f")
            yield f"| {name}: {title} | {rate:.2f} GB/s | {of_plain} |"


def _plain(values: np.ndarray, path: Path, sync: bool) -> None:
    copy = values.copy()
    _write(path, [memoryview(copy.reshape(-1).view(np.uint8))], sync)


def _ours(values: np.ndarray, path: Path, sync: bool, digest: bool) -> None:
    encoded = encode_shard(values, SHARD_ROWS)
    with ThreadPoolExecutor(1) as hashing:
        if digest:
            hashing.submit(sha256_of, encoded)
        _write(path, encoded, sync)


def _write(path: Path, parts: Sequence[memoryview], sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write_all(descriptor, parts)
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)
    if sync:
        fsync_folder(path.parent)
