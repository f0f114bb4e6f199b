"""What an extraction will cost, before it is started: bytes, hours, the read rate a trainer needs,
and when the cache pays off against running the teachers in every epoch.

Hours are measured on a few images here, with the device that will be used; bytes are exact.

s seconds per row: t of a teacher, d of decoding (all inputs together, one core)
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phistill.cache.storage.files import LocalFiles, open_files
from phistill.errors import SourceError, UsageError, counted
from phistill.pipeline.decode.shards import DecodedShard, ShardRows, decode_shards, num_cores
from phistill.pipeline.decode.views import Rendering, View
from phistill.pipeline.images.open_source import Source, opened
from phistill.pipeline.images.record import Entry
from phistill.pipeline.settings import CacheSettings
from phistill.pipeline.teachers.licences import licence_of, licences_text
from phistill.pipeline.teachers.runner import TeacherRunner, choose_device
from phistill.pipeline.teachers.spec import TeacherSpec

from .terminal import bytes_text, duration_text

NUM_SAMPLE = 64
DISK_BYTES_PER_S = 1e9
"""Assumed speed of the disk that a trainer reads from, where none is given."""
PIXEL_INTERPOLATION = "bicubic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPlan:
    """What one teacher costs."""

    name: str
    spec: str
    grid: tuple[int, int]
    widths: dict[str, int]
    row_bytes: int
    total_bytes: int
    seconds_per_row: float
    hours: float
    licence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an extraction costs, and when it pays off."""

    num_images: int
    num_rows: int
    """Images times views."""
    num_sample: int
    """Images that were decoded and run to measure the hours."""
    num_rejected: int
    """Of the sample."""
    image_bytes: float
    """Mean encoded bytes of the sample."""
    teachers: tuple[TeacherPlan, ...]
    pixel_row_bytes: int
    total_bytes: int
    free_bytes: int | None
    """On the disk where the cache would lie; None when no place was named."""
    decode_seconds_per_row: float
    """On one core."""
    num_cores: int
    device: str
    epochs: float
    num_runs: int
    student_rows_per_s: float
    disk_bytes_per_s: float

    @property
    def row_bytes(self) -> int:
        """Stored bytes per row over teachers and pixels."""
        return self.pixel_row_bytes + sum(teacher.row_bytes for teacher in self.teachers)

    @property
    def teacher_seconds_per_row(self) -> float:
        return sum(teacher.seconds_per_row for teacher in self.teachers)

    @property
    def pass_seconds_per_row(self) -> float:
        """One pass with teachers. On the CPU they and the decoder share the cores; a GPU works
        while the cores decode, and the slower of the two decides."""
        decode = self.decode_seconds_per_row / self.num_cores
        if self.device == "cpu":
            return self.teacher_seconds_per_row + decode
        return max(self.teacher_seconds_per_row, decode)

    @property
    def extract_hours(self) -> float:
        return self.num_rows * self.pass_seconds_per_row / 3600

    @property
    def read_hours_per_epoch(self) -> float:
        """An epoch reads one view of every image."""
        return self.num_images * self.row_bytes / self.disk_bytes_per_s / 3600

    @property
    def live_hours_per_epoch(self) -> float:
        return self.num_images * self.pass_seconds_per_row / 3600

    @property
    def read_bytes_per_s(self) -> float:
        """What the trainer must read to keep a student of ``student_rows_per_s`` busy."""
        return self.student_rows_per_s * self.row_bytes

    @property
    def break_even_epochs(self) -> float:
        """Epochs, over all runs, from which on the cache is cheaper than live teachers:
        E live = extract + E read. Infinite when reading costs as much as the teachers do."""
        saved = self.live_hours_per_epoch - self.read_hours_per_epoch
        return self.extract_hours / saved if saved > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        derived = (
            *("row_bytes", "extract_hours", "read_hours_per_epoch", "live_hours_per_epoch"),
            *("read_bytes_per_s", "break_even_epochs"),
        )
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def plan(
    images: str | Path | Source,
    teachers: Sequence[str],
    *,
    cache: Path | str | None = None,
    settings: CacheSettings | None = None,
    device: str = "auto",
    autocast: str | None = None,
    rows_per_forward: int | None = None,
    num_sample: int = NUM_SAMPLE,
    epochs: float = 20.0,
    num_runs: int = 1,
    student_rows_per_s: float = 1000.0,
    disk_bytes_per_s: float = DISK_BYTES_PER_S,
    say: Callable[[str], None] | None = None,
) -> Plan:
    """Measure the teachers on ``num_sample`` images and work out what all of them will cost.

    ``cache`` is where it would lie, for the free space. ``epochs`` times ``num_runs`` is what the
    cache is read for; ``student_rows_per_s`` how fast the student learns. Raises UsageError when
    there is no teacher, SourceError when no image of the sample can be used.
    """
    if not teachers:
        raise UsageError("a plan needs at least one --teacher, for example demo:clip.")
    if (
        num_sample < 1
        or epochs <= 0
        or num_runs < 1
        or min(student_rows_per_s, disk_bytes_per_s) <= 0
    ):
        raise UsageError(
            f"num_sample={num_sample}, epochs={epochs}, num_runs={num_runs}, "
            f"student_rows_per_s={student_rows_per_s} and disk_bytes_per_s={disk_bytes_per_s} must "
            "be positive."
        )
    settings = settings or CacheSettings()
    say = say or (lambda text: None)
    with opened(images) as source:
        entries = source.entries()
        views = settings.views or (View(),)
        num_rows = len(entries) * len(views)
        sample = _Sample(source, entries, settings, num_sample)
        target = choose_device(device)
        plans, renderings = [], []
        for text in teachers:
            spec = TeacherSpec.parse(text)
            say(f"{spec.name}: building and running it on {counted(sample.num_images, 'image')}")
            teacher = spec.build()
            runner = TeacherRunner(
                spec.name, spec.text, teacher, target,
                autocast=autocast, rows_per_forward=rows_per_forward,
            )  # fmt: skip
            seconds = _seconds_per_row(runner, sample.pixels(runner.rendering))
            renderings.append(runner.rendering)
            plans.append(
                TeacherPlan(
                    name=spec.name,
                    spec=spec.text,
                    grid=runner.info.grid,
                    widths=dict(runner.info.widths),
                    row_bytes=runner.info.row_bytes,
                    total_bytes=runner.info.row_bytes * num_rows,
                    seconds_per_row=seconds,
                    hours=seconds * num_rows / 3600,
                    licence=licence_of(teacher),
                )
            )
        side = 224 if settings.pixel_size is None else settings.pixel_size
        if side:
            renderings.append(Rendering((side, side), PIXEL_INTERPOLATION))
        decode_seconds = sample.decode_seconds(list(dict.fromkeys(renderings)))
    pixel_row_bytes = side * side * 3
    per_row = pixel_row_bytes + sum(found.row_bytes for found in plans)
    return Plan(
        num_images=len(entries),
        num_rows=num_rows,
        num_sample=sample.num_images,
        num_rejected=sample.num_rejected,
        image_bytes=sample.image_bytes,
        teachers=tuple(plans),
        pixel_row_bytes=pixel_row_bytes,
        total_bytes=per_row * num_rows,
        free_bytes=None if cache is None else free_bytes(cache),
        decode_seconds_per_row=decode_seconds,
        num_cores=num_cores(),
        device=target.type,
        epochs=epochs,
        num_runs=num_runs,
        student_rows_per_s=student_rows_per_s,
        disk_bytes_per_s=disk_bytes_per_s,
    )


def free_bytes(location: Path | str) -> int | None:
    """Free bytes on the disk where a cache lies, or would lie; None where it is on no disk."""
    files = open_files(location)
    if not isinstance(files, LocalFiles):
        return None
    path = files.root.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class _Sample:
    """Some random images of a source."""

    def __init__(
        self, source: Source, entries: Sequence[Entry], settings: CacheSettings, size: int
    ) -> None:
        generator = np.random.default_rng(0)
        order = generator.permutation(len(entries))[:size].tolist()
        self._source, self._settings = source, settings
        self._views = settings.views or (View(),)
        self._chosen = [entries[number] for number in order]
        sizes = [len(source.read(e.uri, e.offset, e.length)) for e in self._chosen]
        self.image_bytes = float(np.mean(sizes))
        self.num_images = len(self._chosen)
        self.num_rejected = 0

    def pixels(self, rendering: Rendering) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The usable images, first view, as uint8 (n, h, w, 3)."""
        shard = self._decode([rendering], num_workers=None, num_views=1)
        self.num_rejected = len(shard.reasons)
        if self.num_rejected == self.num_images:
            raise SourceError(
                f"none of {self.num_images} images can be used; the first: "
                f"{next(iter(shard.reasons.values()))}."
            )
        usable = [row for row in range(self.num_images) if row not in shard.reasons]
        return shard.pixels[rendering][usable]

    def decode_seconds(self, renderings: Sequence[Rendering]) -> float:
        """Per row, on one core, reading included."""
        started = time.perf_counter()
        self._decode(renderings, num_workers=1, num_views=len(self._views))
        return (time.perf_counter() - started) / (self.num_images * len(self._views))

    def _decode(
        self, renderings: Sequence[Rendering], *, num_workers: int | None, num_views: int
    ) -> DecodedShard:
        from phistill.pipeline.decode.rgb import DecodeRules

        rows = [(entry, view) for entry in self._chosen for view in range(num_views)]
        job = ShardRows(
            0,
            [entry.uri for entry, _ in rows],
            [entry.offset for entry, _ in rows],
            [entry.length for entry, _ in rows],
            [view for _, view in rows],
            [entry.id for entry, _ in rows],
        )
        (shard,) = decode_shards(
            self._source,
            [job],
            rules=self._settings.decode or DecodeRules(),
            views=self._views,
            renderings=renderings,
            seed=self._settings.seed or 0,
            num_workers=num_workers,
            mode="threads",
        )
        return shard


def _seconds_per_row(runner: TeacherRunner, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    """A pass over the sample after a batch that warms up; storing as float16 included."""
    size = min(runner.info.rows_per_forward, len(pixels))
    runner.run(pixels[:size], size)
    started = time.perf_counter()
    runner.run(pixels, size)
    return (time.perf_counter() - started) / len(pixels)


def render(found: Plan) -> str:
    """The plan as text for a terminal."""
    lines = [
        f"{counted(found.num_images, 'image')}, {counted(found.num_rows, 'row')}; measured on "
        f"{counted(found.num_sample, 'image')} ({found.num_rejected} rejected), "
        f"{bytes_text(found.image_bytes)} each.",
        "",
        f"{'teacher':<28} {'grid':>9} {'per row':>10} {'in all':>10} {'ms/row':>8} {'time':>10}",
    ]
    for teacher in found.teachers:
        grid = f"{teacher.grid[0]} x {teacher.grid[1]}"
        lines.append(
            f"{teacher.name:<28} {grid:>9} {bytes_text(teacher.row_bytes):>10} "
            f"{bytes_text(teacher.total_bytes):>10} {teacher.seconds_per_row * 1e3:>8.1f} "
            f"{duration_text(teacher.hours * 3600):>10}"
        )
    pixels = found.pixel_row_bytes
    lines.append(
        f"{'pixels':<28} {'':>9} {bytes_text(pixels):>10} {bytes_text(pixels * found.num_rows):>10}"
    )
    lines += ["", f"Disk     {bytes_text(found.total_bytes)}{_room(found)}"]
    bound = "teachers"
    decode = found.decode_seconds_per_row / found.num_cores
    if found.device != "cpu" and decode > found.teacher_seconds_per_row:
        bound = f"decoding ({found.num_cores} cores; more would help)"
    lines += [
        f"Extract  {duration_text(found.extract_hours * 3600)} on {found.device}, most of it "
        f"{bound}; decoding takes {found.decode_seconds_per_row * 1e3:.1f} ms per row and core.",
        f"Train    reads {bytes_text(found.read_bytes_per_s)}/s to feed a student that learns "
        f"{found.student_rows_per_s:,.0f} rows/s.",
        _pays_off(found),
    ]
    lines.append(licences_text({teacher.name: teacher.licence for teacher in found.teachers}))
    return "\n".join(lines)


def _room(found: Plan) -> str:
    if found.free_bytes is None:
        return "."
    text = f"; {bytes_text(found.free_bytes)} are free there."
    if found.total_bytes > found.free_bytes:
        text += " NOT ENOUGH: take fewer teachers, a smaller grid (grid=16x16), or another disk."
    return text


def _pays_off(found: Plan) -> str:
    passes = found.epochs * found.num_runs
    live = found.live_hours_per_epoch * passes * 3600
    cached = (found.extract_hours + found.read_hours_per_epoch * passes) * 3600
    assumed = f"reading at {bytes_text(found.disk_bytes_per_s)}/s"
    if math.isinf(found.break_even_epochs):
        return (
            f"Worth it never: {assumed}, the cache takes as long to read as the teachers take to "
            "run. Use a faster disk, a smaller grid, or no cache."
        )
    return (
        f"Worth it from {found.break_even_epochs:.1f} epochs on, over all runs ({assumed}): for "
        f"{found.num_runs} x {found.epochs:g} epochs, live teachers take {duration_text(live)}, "
        f"the cache {duration_text(cached)}."
    )
