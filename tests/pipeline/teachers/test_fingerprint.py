"""Whatever changes a teacher's features is refused by name; what does not is let through."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phistill.errors import CacheMismatch
from phistill.pipeline import CacheSettings, ExtractOptions, extract

TEACHER = "t=module:stated_teacher:build"
SETTINGS = CacheSettings(pixel_size=8, shard_rows=4)
CPU = ExtractOptions(device="cpu", num_workers=1)

FIELDS = (
    *("source", "model", "revision", "weights_sha256", "layer", "norm", "neck", "summary"),
    *("registers", "dtype", "space", "remote_code", "prompt", "pooling"),
)
CHANGES = {
    **{name: (f"{name}=other", name) for name in FIELDS},
    "a new field": ("extra=1", "extra"),
    "size": ("given_size=32", "preprocessing"),
    "mean": ("mean=0.4", "preprocessing"),
    "std": ("std=0.4", "preprocessing"),
    "interpolation": ("interpolation=nearest", "preprocessing"),
    "grid": ("given_grid=4", "grid"),
    "width": ("given_width=4", "widths"),
    "number of registers": ("given_registers=2", "num_registers"),
    "resampling": ("grid=2x2", "resampled_to"),
    "padding": ("pad_from=8", "padded_to|preprocessing|grid"),
}


@pytest.fixture
def images(tmp_path: Path, tiny: str) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.guarantee("G11", "a changed identity field: refused and named")
@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_field_is_refused_and_named(images: Path, tmp_path: Path, what: str) -> None:
    option, field = CHANGES[what]
    cache = extract(images, tmp_path / "c", [TEACHER], settings=SETTINGS, options=CPU).cache
    before = cache.digest()
    with pytest.raises(CacheMismatch, match=rf"another teacher 't': ({field}) is "):
        extract(images, tmp_path / "c", [f"{TEACHER}?{option}"], options=CPU)
    assert cache.digest() == before


def test_another_arithmetic_is_refused_and_named(images: Path, tmp_path: Path) -> None:
    extract(images, tmp_path / "c", [TEACHER], settings=SETTINGS, options=CPU)
    other = ExtractOptions(device="cpu", autocast="bfloat16")
    with pytest.raises(CacheMismatch, match="autocast is 'float32' there, 'bfloat16' here"):
        extract(images, tmp_path / "c", [TEACHER], options=other)


@pytest.mark.guarantee("G11", "moved path, mtime, workers: no false refusal")
def test_paths_times_and_workers_are_no_part_of_it(images: Path, tmp_path: Path) -> None:
    extract(images, tmp_path / "c", [TEACHER], settings=SETTINGS, options=CPU)
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(images, moved)
    shutil.rmtree(images)
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    shutil.move(tmp_path / "c", tmp_path / "elsewhere" / "c")
    again = extract(
        moved, tmp_path / "elsewhere" / "c", [TEACHER],
        options=ExtractOptions(device="cpu", num_workers=3),
    )  # fmt: skip
    assert again.num_shards == 0
    assert again.num_new_images == 0


def test_weights_are_known_by_their_bytes_and_not_by_their_file(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    from phistill.pipeline.teachers.spec import TeacherSpec

    def identity(path: Path) -> dict[str, object]:
        text = f"timm:vit_tiny_patch16_224?size=32&weights={path}"
        return dict(TeacherSpec.parse(text).build().identity())

    net: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(net.state_dict(), tmp_path / name)
    first = identity(tmp_path / "a.safetensors")
    assert identity(tmp_path / "b.safetensors") == first
    net.cls_token.data[0, 0, 0] += 1e-3
    save_file(net.state_dict(), tmp_path / "b.safetensors")
    assert identity(tmp_path / "b.safetensors")["weights_sha256"] != first["weights_sha256"]
