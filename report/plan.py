"""What an extraction will cost, measured before it is started.

Hours are measured on a few images here, with the device that will be used; bytes are exact.

s seconds per row: t of a teacher, d of decoding (all inputs together, one core)
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from phistill.cache import CacheInfo
from phistill.cache.storage.local_files import LocalFiles
from phistill.cache.storage.open_files import open_files
from phistill.compute.devices import choose_device
from phistill.errors import SourceError, UsageError, counted
from phistill.pipeline.decode.pending import DecodedShard, ShardRows
from phistill.pipeline.decode.shards import decode_shards, num_cores
from phistill.pipeline.decode.views import Rendering, View
from phistill.pipeline.images.local_files import in_a_thread
from phistill.pipeline.images.open_source import opened
from phistill.pipeline.images.source import DEFAULTS, ImageSource, SourceOptions, listing_text
from phistill.pipeline.settings import CacheSettings
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.stats.codes.precision import PrecisionRow

from .codes_picture import check_picture, draw_codes
from .costs import Plan, TeacherPlan
from .precision import measure_precision

log = logging.getLogger(__name__)

NUM_SAMPLE = 64
DISK_BYTES_PER_S = 1e9
"""Assumed speed of the disk that a trainer reads from, where none is given."""
PIXEL_INTERPOLATION = "bicubic"


def plan(
    images: str | Path | ImageSource,
    teachers: Sequence[str],
    *,
    cache: Path | str | None = None,
    settings: CacheSettings | None = None,
    device: str = "auto",
    autocast: str | None = None,
    rows_per_forward: int | None = None,
    num_sample: int = NUM_SAMPLE,
    num_precision: int = 0,
    picture: Path | None = None,
    epochs: float = 20.0,
    num_runs: int = 1,
    student_rows_per_s: float = 1000.0,
    disk_bytes_per_s: float = DISK_BYTES_PER_S,
    source_options: SourceOptions = DEFAULTS,
) -> Plan:
    """Measure the teachers on ``num_sample`` images and work out what all of them will cost.

    ``cache`` is where it would lie, for the free space. ``epochs`` times ``num_runs`` is what the
    cache is read for; ``student_rows_per_s`` how fast the student learns. On ``num_precision``
    images, if any, is measured what patches lose at each precision; ``picture`` is a file for how
    codes would spend their bits. Raises UsageError when there is no teacher, SourceError when no
    image of the sample can be used.
    """
    if not teachers:
        raise UsageError("a plan needs at least one --teacher, for example demo:clip.")
    if picture is not None:
        if not num_precision:
            raise UsageError("--picture shows what --precision measures. Give both.")
        check_picture(picture)
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
    with opened(images, source_options) as source:
        records = in_a_thread(source.records)
        log.info(listing_text(source, records.num_rows))
        views = settings.views or (View(),)
        num_rows = records.num_rows * len(views)
        sample = _Sample(source, records, settings, num_sample)
        wide_sample = _Sample(source, records, settings, num_precision) if num_precision else None
        target = choose_device(device)
        measured, renderings, spectra = [], [], {}
        for text in teachers:
            spec = TeacherSpec.parse(text)
            log.info(
                f"{spec.name}: building and running it on {counted(sample.num_images, 'image')}"
            )
            teacher = spec.build()
            runner = TeacherRunner(
                spec.name, spec.text, teacher, target,
                autocast=autocast, rows_per_forward=rows_per_forward,
            )  # fmt: skip
            seconds = _seconds_per_row(runner, sample.pixels(runner.rendering))
            renderings.append(runner.rendering)
            rows: tuple[PrecisionRow, ...] = ()
            bits: float | None = None
            if wide_sample is not None:
                log.info(f"{spec.name}: precision, on {counted(wide_sample.num_images, 'image')}")
                rows, bits, spectra[spec.name] = measure_precision(
                    runner, wide_sample.pixels(runner.rendering)
                )
            measured.append((runner.info, seconds, rows, bits))
        info = settings.new_cache(
            num_rows=num_rows,
            input_pixels=max(height * width for height, width in (r.size for r in renderings)),
            device=target.type,
        )
        side = info.pixel_size
        if side:
            renderings.append(Rendering((side, side), PIXEL_INTERPOLATION))
        decode_seconds = sample.decode_seconds(list(dict.fromkeys(renderings)))
    if picture is not None:
        draw_codes(picture, spectra)
    plans = [
        TeacherPlan(
            name=teacher.name,
            spec=teacher.spec,
            grid=teacher.grid,
            widths=dict(teacher.widths),
            row_bytes=teacher.row_bytes,
            total_bytes=teacher.row_bytes * num_rows,
            num_files=num_files(info, num_rows, teacher.array_bytes.values()),
            seconds_per_row=seconds,
            hours=seconds * num_rows / 3600,
            licence=teacher.licence or None,
            precision=rows,
            bits_for_loss=bits,
        )
        for teacher, seconds, rows, bits in measured
    ]
    pixel_row_bytes = side * side * 3
    per_row = pixel_row_bytes + sum(teacher_plan.row_bytes for teacher_plan in plans)
    return Plan(
        num_images=records.num_rows,
        num_rows=num_rows,
        num_sample=sample.num_images,
        num_rejected=sample.num_rejected,
        image_bytes=sample.image_bytes,
        teachers=tuple(plans),
        pixel_row_bytes=pixel_row_bytes,
        pixel_files=num_files(info, num_rows, [pixel_row_bytes] if side else []),
        shard_rows=info.shard_rows,
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


def num_files(info: CacheInfo, num_rows: int, array_bytes: Iterable[int]) -> int:
    """Files of arrays of ``num_rows`` rows, by the bytes of a row of each."""
    return sum(math.ceil(num_rows / info.rows_per_file(row_bytes)) for row_bytes in array_bytes)


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
        self,
        source: ImageSource,
        records: pa.Table,
        settings: CacheSettings,
        size: int,
    ) -> None:
        generator = np.random.default_rng(0)
        order = generator.permutation(records.num_rows)[:size]
        self._source, self._settings = source, settings
        self._views = settings.views or (View(),)
        self._chosen = records.take(pa.array(order)).to_pylist()
        sizes = [len(source.read(e["uri"], e["offset"], e["length"])) for e in self._chosen]
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

        rows = [(record, view) for record in self._chosen for view in range(num_views)]
        job = ShardRows(
            0,
            [record["uri"] for record, _ in rows],
            [record["offset"] for record, _ in rows],
            [record["length"] for record, _ in rows],
            [view for _, view in rows],
            [record["id"] for record, _ in rows],
        )
        (shard,) = decode_shards(
            self._source.read,
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
