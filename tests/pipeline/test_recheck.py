"""A changed library is noticed by its features, and a harmless change is let through."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phistill.cache import Cache
from phistill.errors import CacheMismatch
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.recheck import compare_live, sample_rows
from phistill.pipeline.runners import stored_runner
from phistill.pipeline.teachers import runner
from phistill.pipeline.teachers.contract import Features

SETTINGS = CacheSettings(pixel_size=16, shard_rows=8, seed=1)


@pytest.fixture
def half_done(folder: Path, tiny: str, tmp_path: Path) -> Cache:
    """A cache that misses its last shard."""
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    for owner in cache.owners:
        cache.forget_shard(owner, 5)
    return cache


def another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if timm had been upgraded since."""
    known = importlib.metadata.version
    monkeypatch.setattr(runner, "version", lambda name: "99" if name == "timm" else known(name))


def test_rows_run_again_are_the_stored_ones(half_done: Cache, folder: Path) -> None:
    rows = sample_rows(half_done, "t", 8)
    report = compare_live(half_done, open_source(folder), stored_runner(half_done, "t"), rows)
    assert report.differences == {"patches": 0.0, "summary": 0.0}
    assert report.agrees


def test_a_changed_environment_with_the_same_features_goes_on_and_is_recorded(
    half_done: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_version(monkeypatch)
    cache = extract(folder, half_done.path).cache
    versions = [record.environment["timm"] for record in cache.commits("t").values()]
    assert versions.count("99") == 1
    assert len(set(versions)) == 2


def test_a_changed_environment_with_other_features_is_refused_naming_the_change(
    half_done: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_version(monkeypatch)
    teacher: Any = importlib.import_module("tiny_teacher").TinyTeacher
    before = teacher.features

    def drifted(self: object, images: object) -> Features:
        found = before(self, images)
        return Features(found.patches * 1.05, found.summary)

    monkeypatch.setattr(teacher, "features", drifted)
    with pytest.raises(CacheMismatch, match=r"ANOTHER TEACHER.*timm \S+ -> 99"):
        extract(folder, half_done.path)


def test_a_changed_image_is_named(half_done: Cache, folder: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    rows = sample_rows(half_done, "t", 20)
    with pytest.raises(CacheMismatch, match="is not the one the cache was extracted from"):
        compare_live(half_done, open_source(folder), stored_runner(half_done, "t"), rows)
