"""A plan's bytes are those of the cache that is then written, and its sums add up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill.errors import SourceError, UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.decode.views import View
from phistill.report.costs import Plan, TeacherPlan, render
from phistill.report.plan import plan

TEACHER = "t=timm:vit_tiny_patch16_224?random=0&size=32"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no")
    return folder


def test_planned_bytes_are_the_bytes_of_the_cache(images: Path, tmp_path: Path) -> None:
    settings = CacheSettings(pixel_size=16, views=(View(), View("center-crop", flip="yes")))
    planned = plan(images, [TEACHER], cache=tmp_path / "c", settings=settings, device="cpu")
    assert (planned.num_images, planned.num_rows, planned.num_sample, planned.num_rejected) == (
        13,
        26,
        13,
        1,
    )
    cache = extract(images, tmp_path / "c", [TEACHER], settings=settings).cache
    info = cache.teacher("t")
    assert planned.teachers[0].row_bytes == info.row_bytes
    assert planned.total_bytes == 26 * (info.row_bytes + 16 * 16 * 3)
    assert planned.free_bytes is not None
    assert planned.shard_rows == cache.info.shard_rows
    stored = [record.files for owner in cache.owners for record in cache.commits(owner).values()]
    assert planned.num_files == sum(map(len, stored))
    text = render(planned)
    assert "13 images, 26 rows; measured on 13 images (1 rejected)" in text
    json.dumps(planned.to_dict(), allow_nan=False)


def invented(device: str, decode: float, teacher: float) -> Plan:
    one = TeacherPlan(
        name="a", spec="demo:a", grid=(2, 2), widths={"patches": 4}, row_bytes=1000,
        total_bytes=10**9, num_files=7000, seconds_per_row=teacher, hours=teacher * 1e6 / 3600,
        licence="mit",
    )  # fmt: skip
    return Plan(
        num_images=10**6, num_rows=2 * 10**6, num_sample=64, num_rejected=0, image_bytes=1e5,
        teachers=(one,), pixel_row_bytes=500, pixel_files=50, shard_rows=1024,
        total_bytes=3 * 10**9, free_bytes=10**9,
        decode_seconds_per_row=decode, num_cores=4, device=device, epochs=10.0, num_runs=3,
        student_rows_per_s=2000.0, disk_bytes_per_s=1e6,
    )  # fmt: skip


def test_a_cpu_adds_decoding_and_a_gpu_hides_it() -> None:
    assert invented("cpu", 0.04, 0.02).pass_seconds_per_row == pytest.approx(0.03)
    assert invented("cuda", 0.04, 0.02).pass_seconds_per_row == pytest.approx(0.02)
    assert invented("cuda", 0.4, 0.02).pass_seconds_per_row == pytest.approx(0.1)


def test_what_a_killed_run_does_again_is_a_shard_at_most() -> None:
    planned = invented("cuda", 0.04, 0.02)
    assert planned.num_shards == 1954
    assert planned.shard_s == pytest.approx(1024 * 0.02)
    assert "7,050, in 1,954 shards of 1,024 rows" in render(planned)
    assert planned.to_dict()["num_files"] == 7050


def test_from_break_even_on_the_cache_is_cheaper() -> None:
    planned = invented("cuda", 0.04, 0.02)
    epochs = planned.break_even_epochs
    live, read = planned.live_hours_per_epoch, planned.read_hours_per_epoch
    assert epochs * live == pytest.approx(planned.extract_hours + epochs * read)
    assert planned.read_bytes_per_s == 2000 * 1500
    assert "NOT ENOUGH" in render(planned)
    slow = replace(planned, disk_bytes_per_s=1e4)
    assert math.isinf(slow.break_even_epochs)
    assert "Worth it never" in render(slow)
    assert slow.to_dict()["break_even_epochs"] is None


def test_what_cannot_be_planned_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one --teacher"):
        plan(images, [])
    with pytest.raises(UsageError, match="epochs=0"):
        plan(images, [TEACHER], epochs=0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no")
    with pytest.raises(SourceError, match="none of 1 images can be used"):
        plan(broken, [TEACHER], device="cpu")


def test_precision_is_measured_on_images_and_told(images: Path) -> None:
    planned = plan(images, [TEACHER], num_sample=2, num_precision=13, device="cpu")
    (teacher,) = planned.teachers
    assert [row.name for row in teacher.precision][:4] == ["float16", "bfloat16", "8", "4"]
    lost = [row.lost_share for row in teacher.precision]
    assert lost == sorted(lost)
    assert 0 < lost[0] < 1e-5
    text = render(planned)
    assert "t patches" in text
    assert all(words in text for words in ("in all", "time", "limit dB"))
    assert "2% lost at most" in text
    json.dumps(planned.to_dict(), allow_nan=False)
    assert "patches" not in render(plan(images, [TEACHER], num_sample=2, device="cpu"))


def test_precision_needs_some_images(images: Path) -> None:
    with pytest.raises(UsageError, match="4 usable images for the precision; 10 are needed"):
        plan(images, [TEACHER], num_sample=2, num_precision=4, device="cpu")


def test_a_picture_shows_what_the_precision_was_measured_of(images: Path, tmp_path: Path) -> None:
    picture = tmp_path / "codes.svg"
    plan(images, [TEACHER], num_sample=2, num_precision=13, picture=picture, device="cpu")
    text = picture.read_text("utf-8")
    assert "<svg" in text
    for words in ("2 bits", "water level, R(D)", "left by the codes"):
        assert words in text


def test_a_picture_that_cannot_be_is_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    for wrong, text in (("codes.txt", "must end with"), ("nowhere/codes.svg", "no folder")):
        with pytest.raises(UsageError, match=text):
            plan(images, ["nothing:"], num_precision=13, picture=tmp_path / wrong)
    with pytest.raises(UsageError, match="--precision"):
        plan(images, ["nothing:"], picture=tmp_path / "codes.svg")
