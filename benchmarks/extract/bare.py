"""What an image costs a teacher alone, and a decoder alone."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from phistill.compute.devices import synchronize
from phistill.compute.precision import products_in, resolve_autocast
from phistill.pipeline.decode.image import DecodeSetup, decode_image
from phistill.pipeline.decode.pending import ShardRows
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.shards import Mode, decode_shards
from phistill.pipeline.decode.views import Rendering, View
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec

RENDERING = Rendering((224, 224), "bicubic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What an image costs."""

    wall_s: float
    cpu_s: float
    """Of this process and of those it waited for, all threads."""


def bare(spec: str, device: torch.device, rows: int, count: int) -> Speed:
    """The teacher over tensors that are ready on the device."""
    teacher = TeacherSpec.parse(spec).build()
    runner = TeacherRunner("t", spec, teacher, device, rows_per_forward=rows)
    height, width = runner.rendering.size
    images = torch.randn(rows, 3, height, width, device=device)
    dtype = resolve_autocast(None, device)

    def step() -> None:
        with torch.inference_mode(), products_in(dtype, device.type):
            teacher.features(images)

    step()
    synchronize(device)
    steps = max(1, count // rows)
    started, cpu = time.perf_counter(), cpu_s()
    for _ in range(steps):
        step()
    synchronize(device)
    total = steps * rows
    return Speed(wall_s=(time.perf_counter() - started) / total, cpu_s=(cpu_s() - cpu) / total)


def bare_decode(images: Path) -> Speed:
    """Reading, decoding and resizing one image after another, in this thread alone."""
    source, rules = open_source(images), DecodeRules()
    setup = DecodeSetup(rules, (View(),), (RENDERING,), 0)
    records = source.records()[:256].to_pylist()
    started, cpu = time.perf_counter(), cpu_s()
    for record in records:
        data = source.read(record["uri"], record["offset"], record["length"])
        decode_image(data, record["id"], [0], setup)
    total = len(records)
    return Speed(wall_s=(time.perf_counter() - started) / total, cpu_s=(cpu_s() - cpu) / total)


def decode_rate(images: Path, mode: Mode, workers: int) -> float:
    """Images/s of reading, decoding and resizing alone, after the workers have started."""
    source = open_source(images)
    records = source.records()
    jobs = []
    for shard, start in enumerate(range(0, len(records), 64)):
        uris = records["uri"][start : start + 64].to_pylist()
        nothing = [-1] * len(uris)
        jobs.append(ShardRows(shard, uris, nothing, nothing, [0] * len(uris)))
    shards = decode_shards(
        source.read, jobs, rules=DecodeRules(), views=[View()], renderings=[RENDERING],
        num_workers=workers, mode=mode,
    )  # fmt: skip
    next(shards)
    started = time.perf_counter()
    for _ in shards:
        pass
    return (len(records) - 64) / (time.perf_counter() - started)


def cpu_s() -> float:
    """CPU seconds of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
