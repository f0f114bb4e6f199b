"""Statistics of a whole cache: which rows count, and that nothing else changes a bit."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.errors import (
    CorruptCache,
    DegenerateMoments,
    IncompleteCache,
    LockHeld,
    MissingMoments,
    StaleMoments,
    UsageError,
)
from phistill.stats import (
    METHODS,
    FitProgress,
    Moments,
    fit_stats,
    fitted,
    load_moments,
    load_row,
    stored_rows,
)
from phistill.stats.groups import Group, PassOptions, plan_array
from phistill.stats.partials import compute_partial, forget_readers, stored_pieces
from phistill.stats.summary import Summary

CacheFactory = Callable[..., Cache]

TEACHERS = (
    TeacherInfo(
        name="a",
        grid=(8, 8),
        widths={"patches": 12, "summary": 6, "registers": 12},
        num_registers=2,
    ),
    TeacherInfo(name="b", grid=(4, 4), widths={"patches": 7}),
)
ARRAYS = [("a", "patches"), ("a", "summary"), ("a", "registers"), ("b", "patches")]


@pytest.fixture
def cache(
    make_cache: CacheFactory, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """300 rows in 19 shards: several groups, several pieces in each. Written once, then copied."""
    template = tmp_path_factory.getbasetemp() / "template.cache"
    if not template.exists():
        made = make_cache(num_rows=300, teachers=TEACHERS, rejects=[3, 40, 41, 299])
        made.path.rename(template)
    return store.open(shutil.copytree(template, tmp_path / "copy.cache"))


def statistics(cache: Cache) -> dict[str, bytes]:
    """Every file that fit_stats wrote."""
    return {
        path.relative_to(cache.path).as_posix(): path.read_bytes()
        for part in ("moments", "normalizers")
        for path in sorted(cache.path.glob(f"teachers/*/{part}/**/*.safetensors"))
    }


def vectors(cache: Cache, teacher: str, kind: str, split: Any = "train") -> np.ndarray:
    values = cache.reader(teacher, kind).read(cache.rows([teacher], split=split))
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


@pytest.mark.parametrize("exact", [False, True])
def test_moments_are_those_of_the_accepted_training_rows(cache: Cache, exact: bool) -> None:
    fit_stats(cache, exact=exact)
    for teacher, kind in ARRAYS:
        x = vectors(cache, teacher, kind)
        moments = load_moments(cache, teacher, kind)
        scatter = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
        size = np.sqrt(np.outer(np.diagonal(scatter), np.diagonal(scatter)))
        assert moments.n == len(x)
        tolerance = 1e-12 if exact else 2e-6  # N1
        assert np.max(np.abs(moments.scatter - scatter) / size) < tolerance
        assert np.allclose(moments.mean, x.mean(axis=0), atol=1e-7)


def test_phi_s_is_exact_on_the_rows_it_was_fitted_on(cache: Cache) -> None:
    fit_stats(cache)
    for teacher, kind in ARRAYS:
        x = vectors(cache, teacher, kind).astype(np.float32)
        normalizer = fitted(cache, teacher, kind)
        variance = normalizer.transform(x).astype(np.float64).var(axis=0)
        assert np.max(np.abs(variance - 1)) < 1e-6  # N3


def test_held_out_and_rejected_rows_change_no_bit(make_cache: CacheFactory) -> None:
    rejects = [3, 40, 41, 299]
    plain = make_cache(num_rows=300, teachers=TEACHERS, rejects=rejects)
    heldout = set(plain.rows(split="heldout").tolist()) | set(rejects)

    def poison(_name: str, _kind: str, start: int, values: Any) -> Any:
        for slot in range(len(values)):
            if start + slot in heldout:
                values[slot] = np.nan
        return values

    other = make_cache(
        num_rows=300, teachers=TEACHERS, rejects=rejects, features=poison, name="poisoned.cache"
    )
    fit_stats(plain)
    fit_stats(other)
    for array in ARRAYS:
        one, two = load_moments(plain, *array), load_moments(other, *array)
        assert one.n == two.n
        assert one.scatter.tobytes() == two.scatter.tobytes()
        assert one.mean.tobytes() == two.mean.tobytes()


def copy_of(cache: Cache, name: str) -> Cache:
    path = cache.path.with_name(name)
    shutil.copytree(cache.path, path)
    return store.open(path)


def test_threads_processes_and_thread_counts_give_the_same_bits(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, single = copy_of(cache, "processes.cache"), copy_of(cache, "single.cache")
    rows = fit_stats(cache)
    assert fit_stats(other, workers=2) == rows
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert fit_stats(single) == rows
    assert statistics(other) == statistics(cache) == statistics(single)


_KILLED = """
import os, signal, sys
import phistill.cache as store
from phistill.stats import fit_stats
left = int(sys.argv[2])
def stop(progress):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
fit_stats(store.open(sys.argv[1]), progress=stop)
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
    assert fit_stats(cache, progress=calls.append) == rows == stored_rows(cache)
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
            images=record.images,
            reasons={},
            environment={},
        )
    both = fit_stats(cache)
    assert both[:3] == first
    assert both[3].teacher == "b"


def test_a_partial_is_extended_by_reading_only_what_is_new(cache: Cache) -> None:
    """What growing a cache costs: the first pieces are not read again, and no bit differs."""
    plan = plan_array(cache, "a", "patches", PassOptions())
    teacher = TeacherInfo(name="a", grid=(1, 4), widths={"patches": 12})
    assert len(plan.groups) > 3
    group = max(plan.groups, key=lambda group: len(group.pieces))
    assert teacher.num_tokens * len(group.pieces) >= 4
    at_once = compute_partial(cache.files, plan.spec, group)
    shutil.rmtree(cache.path / "teachers/a/moments")
    begun = Group(group.number, group.pieces[:-1])
    compute_partial(cache.files, plan.spec, begun)
    for piece in begun.pieces:
        for shard in {int(row) // 16 for row in piece.rows}:
            (cache.path / f"teachers/a/patches/c/{shard}/0/0").unlink()
    forget_readers()
    assert stored_pieces(cache.files, plan.spec, group) == len(begun.pieces)
    extended = compute_partial(cache.files, plan.spec, group)
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
    store.growth.remove_images(cache, [f"image-{row:05d}"])
    again = store.open(cache.path)
    with pytest.raises(StaleMoments, match="a patches"):
        load_moments(again, "a", "patches")
    fit_stats(again)
    assert (
        load_row(again, "a", "patches").num_rows == len(cache.rows(["a"])) == len(again.rows(["a"]))
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
    start = store.growth.next_row(cache.info)
    number = np.arange(start, start + num_rows)
    index = cache.index().slice(0, num_rows).set_column(0, "row", pa.array(number))
    ids = pa.array([f"new-{row}" for row in number])
    store.growth.add_segment(cache, index.set_column(1, "id", ids))
    for shard in range(start // 16, len(cache.info.shards())):
        first, stop = cache.info.shard_range(shard)
        facts = store.ImageFacts(
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
        images=record.images,
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


def test_statistics_that_were_never_taken_name_the_command(cache: Cache) -> None:
    with pytest.raises(MissingMoments, match=f"phistill fit-stats {cache.path}"):
        fitted(cache, "a", "patches")
    with pytest.raises(UsageError, match="it has: a, b"):
        load_moments(cache, "c", "patches")
    with pytest.raises(UsageError, match="has no summary"):
        load_moments(cache, "b", "summary")
    with pytest.raises(UsageError, match="it has: a, b"):
        fit_stats(cache, teachers=["c"])


def test_an_unfinished_cache_is_refused_with_the_command_that_finishes_it(cache: Cache) -> None:
    (cache.path / "commits/b/000004.json").unlink()
    unfinished = store.open(cache.path)
    with pytest.raises(IncompleteCache, match=r"b has 18 of 19 shards.*phistill extract"):
        fit_stats(unfinished)
    assert [row.teacher for row in fit_stats(unfinished, teachers=["a"])] == ["a"] * 3


def test_nan_names_teacher_shard_and_row(make_cache: CacheFactory) -> None:
    def poison(name: str, kind: str, start: int, values: Any) -> Any:
        if (name, kind) == ("a", "registers") and start == 64:
            values[5, 1, 3] = np.nan
        return values

    cache = make_cache(num_rows=300, teachers=TEACHERS, features=poison, holdout=0.0)
    with pytest.raises(DegenerateMoments, match=r"teacher a, registers: row 69 \(shard 4\).*NaN"):
        fit_stats(cache)
    assert fit_stats(cache, teachers=["b"])[0].teacher == "b"


def test_a_constant_teacher_is_an_error_that_names_it(make_cache: CacheFactory) -> None:
    def constant(name: str, _kind: str, _start: int, values: Any) -> Any:
        return np.full_like(values, 0.3) if name == "b" else values

    cache = make_cache(num_rows=100, teachers=TEACHERS, features=constant)
    with pytest.raises(
        DegenerateMoments, match=r"teacher b, patches, shards 0 to 6: All .* are the same"
    ):
        fit_stats(cache)


def test_a_single_summary_is_too_few(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=10, teachers=TEACHERS[:1], rejects=range(1, 10), holdout=0.0)
    with pytest.raises(DegenerateMoments, match="teacher a, summary, shards 0 to 0: n=1 vectors"):
        fit_stats(cache)


def test_a_cache_without_training_rows_is_an_error_that_says_so(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20, teachers=TEACHERS[1:], rejects=range(20))
    with pytest.raises(DegenerateMoments, match="teacher b, patches: no row is left"):
        fit_stats(cache)


def test_subsamples_are_seeded_nested_and_recorded(cache: Cache) -> None:
    rows = {}
    for count in (20, 50):
        plan = plan_array(cache, "a", "patches", PassOptions(max_images=count, seed=4))
        rows[count] = {int(r) for g in plan.groups for p in g.pieces for r in p.rows}
        assert len(rows[count]) == count
    assert rows[20] < rows[50] < set(cache.rows(["a"]).tolist())
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=4)
    row = load_row(cache, "a", "patches")
    assert (row.num_rows, row.num_vectors) == (50, 250)
    assert load_row(cache, "a", "summary").num_vectors == 50
    one = load_moments(cache, "a", "patches")
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=5)
    two = load_moments(cache, "a", "patches")
    assert not np.array_equal(one.mean, two.mean)
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=4)
    assert load_moments(cache, "a", "patches").scatter.tobytes() == one.scatter.tobytes()


def test_a_sample_of_all_tokens_and_rows_is_the_whole(cache: Cache) -> None:
    fit_stats(cache)
    whole = {array: load_moments(cache, *array).scatter.tobytes() for array in ARRAYS}
    fit_stats(cache, max_images=10**6, tokens_per_image=64)
    for array in ARRAYS:
        assert load_moments(cache, *array).scatter.tobytes() == whole[array]


def test_sampled_tokens_are_a_fair_choice(make_cache: CacheFactory) -> None:
    """Features equal to the token's number: the mean of a fair sample is near the middle."""

    def numbered(_name: str, _kind: str, _start: int, values: Any) -> Any:
        return np.broadcast_to(np.arange(64)[None, :, None], values.shape).astype(np.float16)

    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 4})
    cache = make_cache(num_rows=400, teachers=[teacher], features=numbered, holdout=0.0)
    fit_stats(cache, tokens_per_image=4)
    mean = load_moments(cache, "a", "patches").mean[0]
    # 1,600 draws from 0 .. 63 (std 18.5) have a standard error of 0.46; four of them
    assert abs(mean - 31.5) < 1.85


def test_every_method_is_fitted_from_the_stored_moments(cache: Cache) -> None:
    fit_stats(cache)
    moments = load_moments(cache, "a", "patches")
    for method in METHODS:
        normalizer = fitted(cache, "a", "patches", method)
        assert normalizer.method == method
        assert normalizer.width == moments.width
        assert normalizer.moments_digest == fitted(cache, "a", "patches").moments_digest
    shrunk = fitted(cache, "a", "patches", "zca", shrinkage=0.2)
    assert shrunk.options["shrinkage"] == 0.2


def test_a_normalizer_of_older_moments_is_not_used(cache: Cache) -> None:
    fit_stats(cache)
    name = "teachers/a/normalizers/patches/phi-s/normalizer.safetensors"
    old = (cache.path / name).read_bytes()
    fit_stats(cache, max_images=30)
    new = fitted(cache, "a", "patches")
    (cache.path / name).write_bytes(old)
    assert fitted(cache, "a", "patches").forward.tobytes() == new.forward.tobytes()


def test_progress_counts_every_byte_once(cache: Cache) -> None:
    calls: list[FitProgress] = []
    fit_stats(cache, progress=calls.append)
    num_rows = len(cache.rows(["a"]))
    total = num_rows * (64 * 12 * 2 + 6 * 4 + 2 * 12 * 2) + num_rows * 16 * 7 * 2
    assert calls[-1].done_bytes == calls[-1].total_bytes == total
    assert [call.done_bytes for call in calls] == sorted(call.done_bytes for call in calls)
    assert {call.array for call in calls} == {" ".join(array) for array in ARRAYS}


def test_partials_stay_below_one_percent_where_there_is_enough_data(
    make_cache: CacheFactory,
) -> None:
    teacher = TeacherInfo(name="a", grid=(16, 16), widths={"patches": 64})
    cache = make_cache(num_rows=512, teachers=[teacher])
    fit_stats(cache)
    plan = plan_array(cache, "a", "patches", PassOptions())
    triangle = 64 * 65 // 2 * 8
    assert len(plan.groups) > 1
    for group in plan.groups[:-1]:
        stored = group.num_rows * plan.spec.row_bytes
        # a fifth of the rows of a group is held out, so its share grows by as much
        assert triangle < 0.0135 * stored


def test_only_one_run_writes_at_a_time(cache: Cache) -> None:
    with cache.writing(), pytest.raises(LockHeld):
        fit_stats(cache)


def test_wrong_options_are_refused_before_any_work(cache: Cache) -> None:
    for options, message in (
        ({"max_images": 0}, "max_images=0"),
        ({"tokens_per_image": -1}, "tokens_per_image=-1"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=message):
            fit_stats(cache, **options)
    assert not statistics(cache)


def test_moments_of_the_cache_are_moments_of_the_array(cache: Cache) -> None:
    """The pass and the plain function agree where a single block holds everything."""
    fit_stats(cache, exact=True)
    x = vectors(cache, "a", "summary")
    plain = Moments.of(x, exact=True)
    moments = load_moments(cache, "a", "summary")
    assert np.allclose(moments.scatter, plain.scatter, rtol=1e-12, atol=1e-12 * len(x))
    assert Path(cache.path / "teachers/a/moments/summary").is_dir()


def test_few_partials_are_in_memory_at_a_time(make_cache: CacheFactory) -> None:
    """Memory grows with the logarithm of the cache: 64 groups, and a dozen summaries alive."""
    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 2})
    cache = make_cache(num_rows=64 * 64, shard_rows=64, teachers=[teacher], holdout=0.0)
    plan = plan_array(cache, "a", "patches", PassOptions())
    assert len(plan.groups) == 64
    alive = []

    def count(_progress: FitProgress) -> None:
        alive.append(sum(type(thing) is Summary for thing in gc.get_objects()))

    fit_stats(cache, progress=count)
    assert len(alive) == 64
    # one per level of the tree on both sides of it, and those being computed
    assert max(alive) <= 2 * 6 + len(os.sched_getaffinity(0))
