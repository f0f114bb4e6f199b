"""extract with fit: the statistics of fit_stats to the bit, and the tokens are not read again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.storage.local_files import LocalFiles
from phistill.cache.upkeep.remove import remove_images
from phistill.cli import main
from phistill.errors import CorruptCache
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.settings import WorkerShards
from phistill.stats import fit_stats
from phistill.stats.fit.places import shard_path, shards_in_passing
from tests.stats.conftest import statistics

SETTINGS = CacheSettings(pixel_size=16, shard_rows=4, seed=1)  # 11 shards of 41 images


def run(folder: Path, path: Path, *teachers: str, fit: bool = True, **options: Any) -> Any:
    wanted = ExtractOptions(fit=fit, num_workers=1, **options)
    return extract(folder, path, teachers, settings=SETTINGS, options=wanted)


def lose_patches(cache: Cache, shards: list[int]) -> None:
    """Make patches of these shards unreadable."""
    for shard in shards:
        record = cache.commits("t")[shard]
        for path in record.files:
            if "/patches/" in path:
                (cache.path / path).write_bytes(b"lost")
    rows = np.arange(*cache.info.shard_range(shards[0]))[:1]
    with pytest.raises(CorruptCache):
        Cache(cache.path).reader("t", "patches").read(rows)


def test_the_cache_is_to_the_byte_that_of_an_extraction_and_a_fit(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """Rows that are held out or rejected are in no sum."""
    held = tmp_path / "held.txt"
    held.write_text("cats/001.png\ndogs/004.png\n")
    teacher = f"t={tiny}?poison=0.02"
    report = run(folder, tmp_path / "a", teacher, holdout_file=held)
    plain = run(folder, tmp_path / "b", teacher, fit=False, holdout_file=held)
    assert len(plain.rejects) > 1
    assert plain.statistics is None
    assert list(fit_stats(plain.cache)) == list(report.statistics)
    assert report.cache.digest() == plain.cache.digest()
    assert not shards_in_passing(report.cache.files, "t", "patches")


def test_tokens_of_shards_that_were_summed_in_passing_are_not_read_again(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """They cannot be: between two workers the files of the first one are lost."""
    plain = run(folder, tmp_path / "b", f"t={tiny}", fit=False).cache
    fit_stats(plain)
    first = run(folder, tmp_path / "a", f"t={tiny}", worker=WorkerShards(0, 2))
    assert first.statistics is None
    assert shards_in_passing(first.cache.files, "t", "patches") == {0, 2, 4, 6, 8, 10}
    lose_patches(first.cache, [0, 2, 4, 6, 8, 10])
    second = run(folder, tmp_path / "a", f"t={tiny}", worker=WorkerShards(1, 2))
    assert second.statistics is not None
    assert statistics(second.cache) == statistics(plain)


def test_a_run_that_goes_on_and_appends_ends_with_the_same_bytes(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = run(folder, tmp_path / "a", f"t={tiny}").cache
    plain = run(folder, tmp_path / "b", f"t={tiny}", fit=False).cache
    fit_stats(plain)
    for known in (cache, plain):
        known.forget_shards("t", [1, 5, 6])
    random = np.random.default_rng(3)
    for number in range(6):
        pixels = random.integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"new{number}.png")
    run(folder, plain.path, f"t={tiny}", fit=False, append=True)
    fit_stats(plain.path)
    grown = run(folder, cache.path, f"t={tiny}", append=True)
    assert grown.statistics is not None
    assert grown.cache.digest() == Cache(plain.path).digest()


def test_sums_of_anything_else_are_not_believed(folder: Path, tiny: str, tmp_path: Path) -> None:
    """Of another shard, of damaged bytes, and of rows that were taken down since."""
    plain = run(folder, tmp_path / "b", f"t={tiny}", fit=False).cache
    first = run(folder, tmp_path / "a", f"t={tiny}", worker=WorkerShards(0, 2)).cache
    path = {s: first.path / shard_path("t", "patches", s) for s in (0, 2, 4)}
    shutil.copy(path[0], path[2])
    path[4].write_bytes(path[4].read_bytes()[:-1] + b"\x7f")
    taken = plain.lines(np.array([33]), ["id"])["id"][0].as_py()
    for cache in (first, plain):
        remove_images(cache, [taken])
    second = run(folder, tmp_path / "a", f"t={tiny}", worker=WorkerShards(1, 2))
    fit_stats(plain)
    assert statistics(second.cache) == statistics(plain)


def test_where_nothing_is_to_be_done_nothing_is_locked(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """As on a disk that is only read."""
    report = run(folder, tmp_path / "a", f"t={tiny}")
    with LocalFiles(tmp_path / "a").writing():
        assert list(fit_stats(store.open(tmp_path / "a"))) == list(report.statistics)
        result = CliRunner().invoke(main, ["fit-stats", str(tmp_path / "a")])
        assert result.exit_code == 0, result.output
        assert "nothing to do" in result.output
        assert CliRunner().invoke(main, ["fit-stats", str(tmp_path / "a"), "--exact"]).exit_code
