"""Statistics of codes stay those of the features when caches are merged, copied and grown."""

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
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.stage import stage
from phistill.cache.upkeep.verify import verify
from phistill.cli import main
from phistill.errors import UsageError
from phistill.pipeline import ExtractOptions, extract
from phistill.report.verification import render
from phistill.stats import fit_stats
from phistill.stats.compacting import compact_cache
from phistill.stats.fit.kept_sums import lost_sums, merge_kept_sums
from phistill.stats.fit.places import shards_in_passing
from phistill.stats.fit.reuse import reuse_statistics
from tests.pipeline.codes.test_coded_extraction import coded, floats, require_same_moments


def grown(cache: Cache, folder: Path, number: int, seed: int) -> Cache:
    """With ``number`` other images, in a segment of their own."""
    more = folder.with_name(f"more-{seed}")
    shutil.copytree(folder, more, dirs_exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(number):
        pixels = random.integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(more / f"new-{seed}-{i}.png")
    return extract(more, cache.path, options=ExtractOptions(append=True, num_workers=1)).cache


def merged(target: Cache, source: Cache) -> Cache:
    with target.writing():
        merge(target, source, reuse=merge_kept_sums)
    return store.open(target.path)


@pytest.mark.parametrize("fitted", [True, False])
def test_a_merge_adds_the_sums_of_both_sides(
    folder: Path, tiny: str, tmp_path: Path, fitted: bool
) -> None:
    pairs = []
    for make, name in ((coded, "c"), (floats, "f")):
        cache = make(folder, tmp_path / name, f"t={tiny}")
        other = store.open(shutil.copytree(cache.path, tmp_path / f"{name}2"))
        pairs.append((grown(cache, folder, 9, seed=1), grown(other, folder, 21, seed=2)))
    if fitted:  # else the sums are still those of single shards
        for cache in pairs[0]:
            fit_stats(cache)
    ours, theirs = (merged(*pair) for pair in pairs)
    fit_stats(theirs)
    fit_stats(ours)
    require_same_moments(ours, theirs)


def test_a_merge_without_them_says_that_rows_are_decoded(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    other = store.open(shutil.copytree(cache.path, tmp_path / "d"))
    other = grown(other, folder, 9, seed=2)
    with cache.writing():
        merge(cache, other)
    with pytest.warns(UserWarning, match=r"rows are summed as they are decoded, without the \d+"):
        fit_stats(cache)


def test_two_copies_that_give_each_other_their_shards_have_the_sums_of_all(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    whole = coded(folder, tmp_path / "whole", f"t={tiny}")
    halves = []
    for number, missing in enumerate((range(6), range(6, 11))):
        half = store.open(shutil.copytree(whole.path, tmp_path / str(number)))
        with half.writing():
            half.forget_shards("t", set(missing))
        for shard in missing:
            (half.path / f"teachers/t/moments/patches/shard-{shard:06d}.safetensors").unlink()
        halves.append(store.open(half.path))
    both = merged(*halves)
    fit_stats(whole)
    fit_stats(both)
    require_same_moments(both, whole)


def test_a_compact_copy_that_grows_stays_exact(folder: Path, tiny: str, tmp_path: Path) -> None:
    plain = grown(floats(folder, tmp_path / "f", f"t={tiny}"), folder, 9, seed=1)
    fit_stats(plain)
    small = compact_cache(plain, tmp_path / "c", bits=2).cache
    require_same_moments(small, plain)
    (more,) = folder.parent.glob("more-1")
    plain, small = grown(plain, more, 5, seed=3), grown(small, more, 5, seed=3)
    fit_stats(plain)
    fit_stats(small)
    require_same_moments(small, plain)


def test_damaged_sums_are_named_with_what_is_lost(folder: Path, tiny: str, tmp_path: Path) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    fit_stats(cache)
    path = next((cache.path / "teachers/t/moments/patches").glob("floats-*"))
    path.write_bytes(path.read_bytes()[:-1])
    (finding,) = verify(cache).findings
    assert "sums of features that their codes alone are stored of. Restore it" in str(finding)
    assert "fit-stats" not in render(verify(cache), cache)
    with pytest.warns(UserWarning, match="Restore it from a copy"):
        fit_stats(cache, repair=True)
    assert verify(cache).findings == (finding,), "what cannot be made again stays named"


@pytest.mark.parametrize("name", ["shard-*3.*", "floats-*"])
def test_damaged_sums_stay_until_they_are_restored(
    folder: Path, tiny: str, tmp_path: Path, name: str
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    if name == "floats-*":
        fit_stats(cache)
    whole = store.open(shutil.copytree(cache.path, tmp_path / "whole"))
    path = next((cache.path / "teachers/t/moments/patches").glob(name))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    codes = next((cache.path / "teachers/t/patches-codes/c").rglob("2/**/0"))
    codes.write_bytes(codes.read_bytes()[:-1])
    repaired = ExtractOptions(repair=True, num_workers=1)
    cache = extract(folder, cache.path, options=repaired).cache
    told = "Restore it from a copy|are summed as they are decoded"
    with pytest.warns(UserWarning, match=told) as caught:
        fit_stats(cache, repair=True)
    assert "Restore it" in str(caught[0].message)
    assert [found.path for found in verify(cache).findings] == [str(path.relative_to(cache.path))]
    path.write_bytes(data)
    cache, whole = grown(cache, folder, 3, seed=4), grown(whole, folder, 3, seed=4)
    fit_stats(cache)
    fit_stats(whole)
    require_same_moments(cache, whole)
    assert lost_sums(cache) == []


def test_lost_sums_are_named(folder: Path, tiny: str, tmp_path: Path) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    moments = cache.path / "teachers/t/moments/patches"
    assert lost_sums(cache) == []
    shutil.copytree(cache.path, tmp_path / "fresh")
    (tmp_path / "fresh/teachers/t/moments/patches/shard-000003.safetensors").unlink()
    fresh = store.open(tmp_path / "fresh")
    assert "features of 1 shard, of which" in lost_sums(fresh)[0]
    with pytest.warns(UserWarning, match="are summed as they are decoded"):
        fit_stats(fresh)
    assert "features of 1 shard, of which" in lost_sums(fresh)[0]
    fit_stats(cache)
    assert lost_sums(cache) == []
    next(moments.glob("floats-*")).unlink()
    (text,) = lost_sums(cache)
    assert "teachers/t/moments/patches/ has no sums of the features of 11 shards" in text
    result = CliRunner().invoke(main, ["verify", str(cache.path)])
    assert (result.exit_code, text in result.output) == (0, True)
    pack = next(path for path in (cache.path / "packs").rglob("*") if "/t/" in str(path))
    pack.write_bytes(pack.read_bytes()[:-9])
    result = CliRunner().invoke(main, ["verify", str(cache.path)])
    assert result.exit_code == 1
    assert f"{pack.name}: " in result.output
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    assert lost_sums(plain) == []


def test_sums_that_a_copy_would_lack_are_asked_for_before(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    fit_stats(plain, max_images=10)
    with pytest.raises(UsageError, match=r"are of a sample.* first phistill fit-stats .*f$"):
        compact_cache(plain, tmp_path / "c", bits=2)
    fit_stats(plain, exact=True)
    small = compact_cache(plain, tmp_path / "c", bits=2).cache
    assert lost_sums(small) == []
    require_same_moments(small, plain)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside fit-stats"])
def test_a_copy_of_a_cache_whose_statistics_were_never_taken_has_the_sums(
    folder: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """Also where fit-stats adds those of shards together just when the first is copied."""
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    fit_stats(plain)
    cache, read = coded(folder, tmp_path / "c", f"t={tiny}"), LocalFiles.read

    def reading(files: LocalFiles, relative: str, **limits: Any) -> bytes:
        if "/shard-" in relative:
            monkeypatch.setattr(LocalFiles, "read", read)
            fit_stats(store.open(cache.path))
        return read(files, relative, **limits)

    if beside:
        monkeypatch.setattr(LocalFiles, "read", reading)
    copy = stage(cache, tmp_path / "d", reuse=reuse_statistics).cache
    fit_stats(copy)
    require_same_moments(copy, plain)


def test_a_shard_that_is_held_out_whole_leaves_no_sums_and_nothing_to_do(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """As the last one, of a single image, may be."""
    order = floats(folder, tmp_path / "f", f"t={tiny}")
    held = tmp_path / "held.txt"
    held.write_text("\n".join(order.lines(np.arange(12, 16), ["id"])["id"].to_pylist()))
    cache = coded(folder, tmp_path / "c", f"t={tiny}", holdout_file=held)
    fit_stats(cache)
    assert not shards_in_passing(cache.files, "t", "patches")
    with LocalFiles(cache.path).writing():  # nothing is locked
        fit_stats(store.open(cache.path))
