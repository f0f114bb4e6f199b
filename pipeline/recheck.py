"""Running a teacher again on rows that are stored, and comparing.

After a library, a driver or a device changed, the same weights may give other features. A cache
must not mix them unnoticed, so a few stored rows are computed again and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phistill.cache import Cache
from phistill.errors import CacheMismatch

from .decode.rgb import DecodeRules
from .decode.shards import decode_shards
from .decode.views import View
from .images.listings import last_listing
from .images.open_source import opened
from .images.source import DEFAULTS, ImageSource, SourceOptions
from .index import shard_rows
from .runners import stored_runner
from .teachers.runner import TeacherRunner

NUM_ROWS = 8
"""Rows compared when the environment changed."""

TOLERANCE = {"float32": 0.01, "bfloat16": 0.05, "float16": 0.02}
"""Largest relative difference |x - y| / |y - mean| of a row that counts as the same teacher, by its
arithmetic. Rounding to float16 alone gives about 0.0005; a wrong resize or norm gives above 0.1."""


@dataclass(frozen=True, slots=True)
class LiveReport:
    """How far a teacher's features are from the stored ones."""

    teacher: str
    rows: tuple[int, ...]
    differences: dict[str, float]
    """Per kind, the largest relative difference over the rows."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether every difference is within the tolerance."""
        return max(self.differences.values()) <= self.tolerance

    def __str__(self) -> str:
        listed = ", ".join(f"{kind} {value:.2g}" for kind, value in self.differences.items())
        verdict = "the same" if self.agrees else "ANOTHER TEACHER"
        return (
            f"{self.teacher}: largest relative difference on {len(self.rows)} rows: {listed} "
            f"(tolerance {self.tolerance:g}): {verdict}"
        )


def compare_live(
    cache: Cache, source: ImageSource, runner: TeacherRunner, rows: NDArray[np.int64]
) -> LiveReport:
    """Compute ``rows`` (n,) again and compare them with what is stored.

    Raises CacheMismatch when an image is not the one that the row was extracted from.
    """
    name = runner.info.name
    stored = cache.teacher(name)
    pixels = _render(cache, source, runner, rows)
    arrays, _ = runner.run(pixels, stored.rows_per_forward)
    differences = {}
    for kind in stored.kinds:
        old = cache.reader(name, kind).read(rows).astype(np.float64)
        new = arrays[kind].astype(np.float64)
        axes = tuple(range(1, old.ndim))
        spread = old - old.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.sum(spread**2, axis=axes))
        square = np.sum((new - old) ** 2, axis=axes)
        if codec := cache.codec(name, kind):  # what codes lose is no difference
            coded = codec.decode(codec.encode(new)).astype(np.float64)
            square = np.maximum(square - np.sum((new - coded) ** 2, axis=axes), 0.0)
        error = np.sqrt(square)
        differences[kind] = float(np.max(error / np.maximum(scale, np.finfo(np.float64).tiny)))
    tolerance = TOLERANCE[str(stored.identity.get("autocast", "float32"))]
    return LiveReport(name, tuple(rows.tolist()), differences, tolerance)


def recheck(
    cache: Cache,
    images: str | Path,
    num_rows: int,
    device: str = "auto",
    options: SourceOptions = DEFAULTS,
) -> Iterator[LiveReport]:
    """A report for each teacher that was not imported, on ``num_rows`` random rows."""
    with opened(images, options, last_listing(cache)) as source:
        for name in cache.teachers:
            if not cache.teacher(name).is_imported:
                rows = sample_rows(cache, name, num_rows)
                yield compare_live(cache, source, stored_runner(cache, name, device), rows)


def sample_rows(cache: Cache, teacher: str, num_rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Up to ``num_rows`` random rows that are stored for a teacher and the pixels, ascending."""
    rows = cache.rows([teacher], "all")
    generator = np.random.Generator(np.random.PCG64(seed))
    return np.sort(generator.permutation(rows)[:num_rows])


def require_same_teacher(
    cache: Cache,
    source: ImageSource,
    runners: Mapping[str, TeacherRunner],
    environment: Mapping[str, str],
) -> list[LiveReport]:
    """Compare every teacher whose stored shards were computed in another environment.

    Raises CacheMismatch, naming what changed, when a teacher gives other features now. The
    environment of each shard is in its commit record, whatever the outcome.
    """
    reports = []
    for name, runner in runners.items():
        changes = _changes(cache, name, environment)
        rows = sample_rows(cache, name, NUM_ROWS)
        if not changes or not rows.size:
            continue
        report = compare_live(cache, source, runner, rows)
        if not report.agrees:
            raise CacheMismatch(
                f"{report}. Since {cache.location} was written, this changed: "
                f"{'; '.join(changes)}. Go back to the old versions, or extract into a new cache."
            )
        reports.append(report)
    return reports


def _changes(cache: Cache, teacher: str, environment: Mapping[str, str]) -> list[str]:
    """What differs from the environment of the last committed shard, phistill itself left out."""
    records = cache.commits(teacher)
    if not records:
        return []
    stored = records[int(records.shards[-1])].environment
    return [
        f"{key} {stored.get(key, 'absent')} -> {environment.get(key, 'absent')}"
        for key in sorted({*stored, *environment} - {"phistill"})
        if stored.get(key) != environment.get(key)
    ]


def _render(
    cache: Cache, source: ImageSource, runner: TeacherRunner, rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The teacher's input of ``rows``, from the images themselves: uint8 (n, h, w, 3)."""
    job = shard_rows(cache.lines(rows))
    info = cache.info
    decoded = decode_shards(
        source.read,
        [job],
        rules=DecodeRules.from_dict(info.decode),
        views=[View.from_dict(view) for view in info.views],
        renderings=[runner.rendering],
        seed=info.seed,
        num_workers=1,
        mode="threads",
    )
    try:
        shard = next(decoded)
    finally:
        decoded.close()
    _require_same_images(cache, runner.info.name, rows, shard.sha256, job.ids or ())
    return shard.pixels[runner.rendering]


def _require_same_images(
    cache: Cache,
    teacher: str,
    rows: NDArray[np.int64],
    hashes: Sequence[str | None],
    ids: Sequence[str],
) -> None:
    stored = cache.facts([teacher]).take(rows).hashes()
    for row, before, sha256, image in zip(rows.tolist(), stored, hashes, ids, strict=True):
        if before != sha256:
            raise CacheMismatch(
                f"image {image} (row {row}) is not the one the cache was extracted from: its bytes "
                "changed. Put the old image back, or extract into a new cache."
            )
