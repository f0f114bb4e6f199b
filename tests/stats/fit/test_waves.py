"""Waves of tasks: bounded in number, and the sums are those of one tree over all groups."""

from __future__ import annotations

import shutil
from typing import Any

import dask.callbacks
import msgspec
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.cache.storage.files import Files
from phistill.stats.fit.dask_graph import partial_task, run_passes
from phistill.stats.fit.partials import sharing_readers
from phistill.stats.fit.pieces import ArrayPlan, ArraySpec, PassOptions, plan_array
from phistill.stats.moments.pass_result import PassResult
from tests.conftest import build_cache

_dask: Any = dask


class NoFacts(msgspec.Struct, frozen=True):
    """Nothing beside a result."""


def as_bytes(_files: Files, _spec: ArraySpec, result: PassResult) -> bytes:
    return result.to_bytes(NoFacts())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Sixty groups of "a", and not a power of two; fewer of "b"."""
    teachers = [
        TeacherInfo(name="a", grid=(4, 8), widths={"patches": 4, "summary": 3}),
        TeacherInfo(name="b", grid=(1, 2), widths={"patches": 24}),
    ]
    path = tmp_path_factory.mktemp("waves") / "small.cache"
    return build_cache(path, num_rows=119 * 16, teachers=teachers, rejects=[3, 40])


def plans_of(cache: Cache) -> list[ArrayPlan]:
    return [
        plan_array(cache, teacher, kind, PassOptions())
        for teacher in cache.teachers
        for kind in cache.teacher(teacher).kinds
    ]


def one_tree(cache: Cache, plan: ArrayPlan) -> bytes:
    """Blocks of groups 0, 1, 2-3, 4-7, ..., each added pair by pair."""
    with sharing_readers(cache):
        parts: list[Any] = [
            partial_task(cache.files, plan.spec, group, "token", lambda *_: None).compute(
                scheduler="synchronous"
            )
            for group in plan.groups
        ]
    total, start = parts[0], 1
    while start < len(parts):
        block = parts[start : 2 * start]
        while len(block) > 1:
            pairs = [block[i : i + 2] for i in range(0, len(block), 2)]
            block = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
        total = total.sketched() + block[0]
        start *= 2
    return as_bytes(cache.files, plan.spec, total)


@pytest.mark.parametrize("max_tasks", [1, 12, 50, 4096])
def test_any_size_of_waves_gives_the_sums_of_one_tree(max_tasks: int, cache: Cache) -> None:
    plans = plans_of(cache)
    assert len(plans[0].groups) > 40
    wanted = [one_tree(cache, plan) for plan in plans]
    for teacher in cache.teachers:  # what was stored would be used again
        shutil.rmtree(cache.path / f"teachers/{teacher}/moments")
    with sharing_readers(cache):
        found = run_passes(
            cache.files,
            plans,
            finish=as_bytes,
            scheduler=None,
            progress=None,
            max_tasks=max_tasks,
        )
    assert found == wanted


def test_a_wave_holds_few_tasks(cache: Cache) -> None:
    sizes: list[int] = []
    plans = plans_of(cache)

    def count(graph: dict[object, object]) -> None:
        sizes.append(len(graph))

    with sharing_readers(cache), _dask.callbacks.Callback(start=count):
        run_passes(cache.files, plans, finish=as_bytes, scheduler=None, progress=None, max_tasks=20)
    every_task = sum(len(plan.groups) * plan.groups.tasks_per_group for plan in plans)
    assert every_task > 200
    assert len(sizes) > every_task / 20
    assert max(sizes) < 50, "with the additions between groups"


def test_a_plan_keeps_no_object_of_a_shard(cache: Cache) -> None:
    """Groups are made when they are asked for, and are the same each time."""
    groups = plans_of(cache)[0].groups
    first, again = groups[5], groups[5]
    assert first is not again
    assert [piece.key for piece in first.pieces] == [piece.key for piece in again.pieces]
    assert groups[-1].number == groups[len(groups) - 1].number
    assert sum(group.num_rows for group in groups) == groups.num_rows
