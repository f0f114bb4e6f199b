"""What an image costs ``extract``, everything included but the building of the teacher."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bare import Speed, cpu_s

from phistill.pipeline import CacheSettings, ExtractProgress, extract
from phistill.pipeline.settings import ExtractOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """One run of ``extract``."""

    whole: Speed
    """From the first image asked for to the last commit."""
    steady_s: float
    """Wall seconds per image between the ends of the first and of the last batch."""
    busy: float
    """What the progress line says of the teacher."""


def extraction(
    images: Path, cache: Path, spec: str, device: str, rows: int, workers: int | None
) -> Extraction:
    marks: list[tuple[float, float, ExtractProgress]] = []
    extract(
        images,
        cache,
        [f"t={spec}"],
        settings=CacheSettings(pixel_size=0, holdout=0.0, shard_rows=64),
        options=ExtractOptions(device=device, rows_per_forward=rows, num_workers=workers),
        on_progress=lambda at: marks.append((time.perf_counter(), cpu_s(), at)),
    )
    used_s = cpu_s()  # the decoding processes have ended and are counted now
    shutil.rmtree(cache)
    total = marks[-1][2].total_rows
    first = next(mark for mark in marks if mark[2].computed_rows)
    last = next(mark for mark in marks if mark[2].computed_rows == total)
    return Extraction(
        whole=Speed(
            wall_s=(marks[-1][0] - marks[0][0]) / total, cpu_s=(used_s - marks[0][1]) / total
        ),
        steady_s=(last[0] - first[0]) / (total - first[2].computed_rows),
        busy=marks[-1][2].busy,
    )
