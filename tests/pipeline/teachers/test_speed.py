"""Options that make a teacher faster: what they find is stored, what they change is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, Features, Preprocessing, extract
from phistill.pipeline.teachers.batch_size import best, choose_batch_sizes, measure
from phistill.pipeline.teachers.contract import Teacher
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec

SETTINGS = CacheSettings(pixel_size=0, shard_rows=8)


def test_a_batch_size_is_doubled_until_it_no_longer_helps() -> None:
    asked: list[int] = []

    def seconds(rows: int) -> float:
        asked.append(rows)
        return 1.0 + rows / 100.0 if rows < 32 else rows / 16.0

    speeds = measure(seconds, 1024)
    assert asked == [4, 8, 16, 32, 64]
    assert best(speeds) == 32


@pytest.mark.parametrize(
    ("room", "expected"), [(32, 32), (5, 4), (3, 2), (1, 1), (0, 1)]
)  # rows that fit into memory
def test_a_batch_size_is_the_largest_that_fits_while_it_helps(room: int, expected: int) -> None:
    speeds = measure(lambda rows: 1.0 if rows <= room else None, 1024)
    assert best(speeds) == expected


def test_a_gain_of_less_than_a_twentieth_is_not_worth_the_memory() -> None:
    assert best({4: 10.0, 8: 10.4, 16: 10.45}) == 4
    assert list(measure(lambda rows: rows / 10.0, 1024)) == [4, 8]


def test_a_slow_teacher_is_not_measured_for_minutes() -> None:
    assert list(measure(lambda rows: rows * 2.0, 1024)) == [4]


def test_layers_of_one_model_get_one_batch_size_and_stay_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "phistill")
    base = "timm:vit_tiny_patch16_224?random=0&size=32"
    cpu = torch.device("cpu")
    runners = {
        name: TeacherRunner(name, text, TeacherSpec.parse(text).build(), cpu)
        for name, text in {"a": base, "b": base + "&layer=-3&summary=none"}.items()
    }
    choose_batch_sizes(runners)
    assert len({runner.info.rows_per_forward for runner in runners.values()}) == 1
    (line,) = caplog.messages
    assert line.startswith(f"a, b: {runners['a'].info.rows_per_forward} rows per forward pass (")


def test_the_size_that_was_found_is_stored_and_used_again(
    folder: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    auto = ExtractOptions(rows_per_forward="auto")
    first = extract(
        folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=auto,
    )  # fmt: skip
    rows = first.cache.teacher("t").rows_per_forward
    assert any(
        line.startswith(f"t: {rows} rows per forward pass (measured 4: ")
        for line in caplog.messages
    )
    caplog.clear()
    first.cache.forget_shard("t", 0)
    again = extract(folder, tmp_path / "c", options=auto)
    assert again.cache.teacher("t").rows_per_forward == rows
    assert not caplog.messages


def test_a_batch_size_for_a_teacher_that_has_one_is_not_ignored_silently(
    folder: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    for rows in (4, 4, 6):
        extract(
            folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS,
            options=ExtractOptions(rows_per_forward=rows),
        )  # fmt: skip
    assert [line for line in caplog.messages if "batch-size" in line] == [
        "t keeps the 4 rows per forward pass that it was stored with; --batch-size 6 is for new "
        "teachers."
    ]


def test_options_are_named_as_they_are_written() -> None:
    for wrong, named in (
        ({"rows_per_forward": 0}, "--batch-size 0"),
        ({"num_workers": -1}, "--workers -1"),
        ({"time_limit_s": 0}, "--time-limit 0"),
    ):
        with pytest.raises(UsageError, match=f"{named} must be positive"):
            ExtractOptions(**wrong)  # type: ignore[arg-type]


def test_other_kernels_are_recorded_and_compared_with_what_is_stored(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    plain = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    assert "memory_format" not in plain.read_commit("t", 0).environment
    plain.forget_shard("t", 0)
    report = extract(folder, tmp_path / "c", options=ExtractOptions(channels_last=True))
    assert report.cache.read_commit("t", 0).environment["memory_format"] == "channels_last"
    assert report.cache.read_commit("t", 1).environment == plain.read_commit("t", 1).environment


class Convolution(Teacher):
    """Patches are a fixed convolution of the image."""

    def __init__(self) -> None:
        kernel = torch.linspace(-1.0, 1.0, 8 * 3 * 4 * 4).reshape(8, 3, 4, 4)
        self._kernel = kernel

    def identity(self) -> Mapping[str, Any]:
        return {"source": "test"}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        patches = torch.nn.functional.conv2d(images, self._kernel, stride=4).permute(0, 2, 3, 1)
        return Features(patches, patches.mean(dim=(1, 2)))


@pytest.mark.parametrize(
    "option", [pytest.param("compiled", marks=pytest.mark.slow), "channels_last"]
)
def test_other_kernels_give_the_same_features_to_rounding(option: str) -> None:
    cpu, pixels = torch.device("cpu"), np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3))
    plain, other = (
        TeacherRunner("t", "x:y", Convolution(), cpu, **{option: on})  # type: ignore[arg-type]
        for on in (False, True)
    )
    expected, _ = plain.run(pixels.astype(np.uint8), 6)
    found, reasons = other.run(pixels.astype(np.uint8), 6)
    assert plain.info == other.info
    assert reasons == {}
    # Sums of 48 products in another order, then one rounding to 11 bits.
    np.testing.assert_allclose(found["patches"], expected["patches"], rtol=2**-9, atol=2**-9)
    np.testing.assert_allclose(found["summary"], expected["summary"], rtol=1e-4, atol=1e-5)
