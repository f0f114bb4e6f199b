"""What a second run reads: what is new, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.remove import remove_images
from phistill.errors import CorruptCache, LockHeld, StaleMoments
from phistill.stats import (
    FitProgress,
    fit_stats,
    load_description,
    load_moments,
    load_normalizer,
)
from phistill.stats.fit.dask_graph import partial_task
from phistill.stats.fit.partials import sharing_readers, stored_partial
from phistill.stats.fit.pieces import ArraySpec, Group, PassOptions, plan_array
from phistill.stats.moments.pass_result import PassResult
from tests.stats.conftest import ARRAYS, TEACHERS, CacheFactory, copy_of, statistics, vectors

_KILLED = """
import os, signal, sys
import phistill.cache as store
from phistill.stats import fit_stats
cache = store.open(sys.argv[1])
def stop(progress):
    stored = cache.path.glob("teachers/*/moments/*/part-*[0-9].safetensors")
    if len(list(stored)) >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
fit_stats(cache, progress=stop)
"""


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(cache: Cache, after: int) -> None:
    killed = copy_of(cache, "killed.cache")
    fit_stats(cache)
    run = subprocess.run(
        [sys.executable, "-c", _KILLED, str(killed.path), str(after)], capture_output=True
    )
    assert run.returncode == -signal.SIGKILL
    kept = statistics(killed)
    assert len(kept) >= after
    assert statistics(cache).items() >= kept.items()
    fit_stats(killed)
    assert statistics(killed) == statistics(cache)


def forget_shards(cache: Cache, teacher: str, kind: str) -> None:
    """Take the features away, so that reading any of them is an error."""
    shutil.rmtree(cache.path / "teachers" / teacher / kind / "c")


def test_a_second_run_reads_nothing(cache: Cache) -> None:
    rows = fit_stats(cache)
    before = statistics(cache)
    for array in ARRAYS:
        forget_shards(cache, *array)
    calls: list[FitProgress] = []
    assert fit_stats(cache, progress=calls.append) == rows
    assert [load_description(cache, *array) for array in ARRAYS] == rows
    assert statistics(cache) == before
    assert not calls


def test_adding_a_teacher_reads_only_the_new_one(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=300, teachers=TEACHERS[:1])
    first = fit_stats(cache)
    for kind in TEACHERS[0].kinds:
        forget_shards(cache, "a", kind)
    cache.add_teacher(TEACHERS[1])
    for shard in cache.info.shards():
        record = cache.commits("a")[shard]
        values = np.random.default_rng(shard).normal(size=(record.num_rows, 16, 7))
        cache.commit_shard(
            "b",
            shard,
            {"patches": values.astype(np.float16)},
            images=cache.committed_facts(record),
            reasons={},
            environment={},
        )
    both = fit_stats(cache)
    assert both[:3] == first
    assert both[3].teacher == "b"


def sum_of(cache: Cache, spec: ArraySpec, group: Group) -> PassResult:
    task = partial_task(cache.files, spec, group, "token", lambda *_: None)
    with sharing_readers(cache):
        result: PassResult = task.compute(scheduler="synchronous")
    return result


def test_a_partial_is_extended_by_reading_only_what_is_new(cache: Cache) -> None:
    """What growing a cache costs: the first pieces are not read again, and no bit differs."""
    plan = plan_array(cache, "a", "patches", PassOptions())
    teacher = TeacherInfo(name="a", grid=(1, 4), widths={"patches": 12})
    assert len(plan.groups) > 3
    group = max(plan.groups, key=lambda group: len(group.pieces))
    assert teacher.num_tokens * len(group.pieces) >= 4
    at_once = sum_of(cache, plan.spec, group)
    shutil.rmtree(cache.path / "teachers/a/moments")
    begun = Group(group.number, group.pieces[:-1])
    sum_of(cache, plan.spec, begun)
    for piece in begun.pieces:
        for shard in {int(row) // 16 for row in piece.rows}:
            (cache.path / f"teachers/a/patches/c/{shard}/0/0").unlink()
    assert stored_partial(cache.files, plan.spec, group).num_pieces == len(begun.pieces)
    extended = sum_of(cache, plan.spec, group)
    assert extended.moments.scatter.tobytes() == at_once.moments.scatter.tobytes()
    assert extended.moments.mean.tobytes() == at_once.moments.mean.tobytes()
    assert extended.num_rows == at_once.num_rows


def test_a_shard_that_changed_is_not_served_from_an_old_partial(cache: Cache) -> None:
    fit_stats(cache)
    replace_shard(cache, "b", 2)
    with pytest.raises(StaleMoments, match=r"b patches.*phistill fit-stats"):
        load_moments(store.open(cache.path), "b", "patches")
    again = store.open(cache.path)
    load_moments(again, "a", "patches")
    fit_stats(again)
    x = vectors(again, "b", "patches")
    assert np.allclose(load_moments(again, "b", "patches").mean, x.mean(axis=0), atol=1e-7)


def test_images_taken_down_make_statistics_stale_and_leave_them(cache: Cache) -> None:
    fit_stats(cache)
    row = int(cache.rows(["a"])[10])
    remove_images(cache, [f"image-{row:05d}"])
    again = store.open(cache.path)
    with pytest.raises(StaleMoments, match="a patches"):
        load_moments(again, "a", "patches")
    fit_stats(again)
    assert (
        load_description(again, "a", "patches").num_rows
        == len(cache.rows(["a"]))
        == len(again.rows(["a"]))
    )
    x = vectors(again, "a", "patches")
    assert np.allclose(load_moments(again, "a", "patches").mean, x.mean(axis=0), atol=1e-7)


def test_a_grown_cache_costs_the_groups_that_grew(cache: Cache) -> None:
    """Ten percent more images: old groups are not read, and the bits are those of a fresh fit."""
    fit_stats(cache)
    grow(cache, 30)
    fresh = copy_of(cache, "fresh.cache")
    for part in ("moments", "normalizers"):
        for teacher in fresh.teachers:
            shutil.rmtree(fresh.path / "teachers" / teacher / part)
    rows = fit_stats(fresh)
    grown = store.open(cache.path)
    with pytest.raises(StaleMoments):
        load_moments(grown, "a", "patches")
    for shard in range(16):  # those of complete groups: 4 shards in a's, 8 in b's
        (grown.path / f"teachers/a/patches/c/{shard}/0/0").unlink()
        (grown.path / f"teachers/b/patches/c/{shard}/0/0").unlink()
    assert fit_stats(grown) == rows
    assert statistics(grown) == statistics(fresh)


def grow(cache: Cache, num_rows: int) -> None:
    """Add a segment of new images, and their features for every owner."""
    start = cache.info.next_row
    number = np.arange(start, start + num_rows)
    index = cache.index().slice(0, num_rows).set_column(0, "row", pa.array(number))
    ids = pa.array([f"new-{row}" for row in number])
    add_segment(cache, index.set_column(1, "id", ids))
    for shard in range(start // 16, len(cache.info.shards())):
        first, stop = cache.info.shard_range(shard)
        facts = store.ImageFacts.of(
            sha256=tuple(
                hashlib.sha256(f"new {row}".encode()).hexdigest() for row in range(first, stop)
            ),
            size=((8, 8),) * (stop - first),
            box=((0, 0, 8, 8),) * (stop - first),
        )
        for owner in cache.owners:
            arrays = {
                kind: np.random.default_rng(shard).integers(0, 9, (stop - first, *shape))
                for kind, shape in cache.shapes(owner).items()
            }
            dtypes = {"pixels": np.uint8, "summary": np.float32}
            typed = {k: v.astype(dtypes.get(k, np.float16)) for k, v in arrays.items()}
            cache.commit_shard(owner, shard, typed, images=facts, reasons={}, environment={})


def replace_shard(cache: Cache, teacher: str, shard: int) -> None:
    """Commit other features for a shard, as a repair by another library version would."""
    record = cache.commits(teacher)[shard]
    values = np.random.default_rng(99).normal(size=(record.num_rows, 16, 7)).astype(np.float16)
    cache.commit_shard(
        teacher,
        shard,
        {"patches": values},
        images=cache.committed_facts(record),
        reasons=record.reasons,
        environment={},
    )


def test_damaged_statistics_are_found_and_made_again(cache: Cache) -> None:
    fit_stats(cache)
    before = statistics(cache)
    for name, data in before.items():
        flipped = bytearray(data)
        flipped[-9] ^= 4
        (cache.path / name).write_bytes(flipped)
    with pytest.raises(CorruptCache, match=r"merged.*fit-stats"):
        load_moments(cache, "a", "patches")
    fit_stats(cache)
    assert {name for name, data in statistics(cache).items() if data != before[name]} == set()


def test_a_normalizer_of_older_moments_is_not_used(cache: Cache) -> None:
    fit_stats(cache)
    name = "teachers/a/normalizers/patches/phi-s/normalizer.safetensors"
    old = (cache.path / name).read_bytes()
    fit_stats(cache, max_images=30)
    new = load_normalizer(cache, "a", "patches")
    (cache.path / name).write_bytes(old)
    assert load_normalizer(cache, "a", "patches").forward.tobytes() == new.forward.tobytes()


def test_only_one_run_writes_at_a_time(cache: Cache) -> None:
    with cache.writing(), pytest.raises(LockHeld):
        fit_stats(cache)
