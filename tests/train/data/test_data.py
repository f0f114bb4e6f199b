"""Which rows a step takes, and that they arrive unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.errors import UsageError
from phistill.train import TrainConfig
from phistill.train.data import plan as plans
from phistill.train.data.batch import Batch
from phistill.train.data.loader import Loader
from phistill.train.data.plan import RowPlan
from phistill.train.data.source import PIXELS, Source
from phistill.train.data.to_device import one_ahead
from phistill.train.targets import targets_of

Config = Callable[..., TrainConfig]
MakeCache = Callable[..., Cache]


def make_plan(cache: Cache, config: TrainConfig) -> RowPlan:
    return plans.make_plan(open_caches(cache), config)


def batches(cache: Cache, config: TrainConfig, **options: Any) -> list[Batch]:
    """Every batch of a run, copied out of the ring."""
    caches = open_caches(cache)
    targets = targets_of(caches, config.teachers, summaries=True)
    source = Source(caches, targets)
    plan = make_plan(cache, config)
    if options.pop("resident", False):
        source.keep_in_memory(plan.rows)
    found = []
    with Loader(source, plan, targets, start=0, stop=plan.num_steps, **options) as loader:
        for batch in loader:
            values = {key: value.clone() for key, value in batch.values.items()}
            found.append(replace(batch, pixels=batch.pixels.clone(), values=values))
    return found


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.rows, b.rows)
        assert torch.equal(a.pixels, b.pixels)
        assert a.values.keys() == b.values.keys()
        for key, value in a.values.items():
            assert torch.equal(value, b.values[key])


@pytest.mark.parametrize(
    "options",
    [{"workers": 1}, {"workers": 3, "read_ahead": 2}, {"workers": 0, "resident": True}],
)
@pytest.mark.parametrize("partition", ["all", "one"])
def test_batches_are_the_same_however_they_are_read(
    options: dict[str, Any], partition: str, fitted_cache: Cache, make_config: Config
) -> None:
    config = make_config(partition=partition, num_steps=17)
    plain = batches(fitted_cache, config, workers=0)
    assert_same(plain, batches(fitted_cache, config, **options))


def test_batches_sent_one_ahead_are_the_batches_read(
    fitted_cache: Cache, make_config: Config
) -> None:
    """The order of hand-over on a GPU, with plain copies: a buffer is not written too early."""
    config = make_config(num_steps=17, memory_bytes=0)
    caches = open_caches(fitted_cache)
    targets = targets_of(caches, (), summaries=True)
    plan = make_plan(fitted_cache, config)
    for workers in (0, 2):
        options: dict[str, Any] = {"start": 0, "stop": 17, "workers": workers, "read_ahead": 1}
        sent: list[int] = []

        def send(batch: Batch) -> Batch:
            sent.append(batch.step)  # noqa: B023 - used within the turn
            values = {key: value.clone() for key, value in batch.values.items()}
            return replace(batch, pixels=batch.pixels.clone(), values=values)

        with Loader(Source(caches, targets), plan, targets, **options) as loader:
            found = []
            for batch in one_ahead(loader, send=send, take=lambda batch: batch):
                assert sent[-1] == min(16, batch.step + 1)
                found.append(batch)
        assert_same(found, batches(fitted_cache, config, workers=0))


@pytest.mark.cuda
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_on_the_host(
    workers: int, fitted_cache: Cache, make_config: Config
) -> None:
    config = make_config(num_steps=17)
    device = torch.device("cuda")
    moved = batches(fitted_cache, config, workers=workers, device=device)
    assert all(batch.pixels.is_cuda for batch in moved)
    host = [
        replace(b, pixels=b.pixels.cpu(), values={k: v.cpu() for k, v in b.values.items()})
        for b in moved
    ]
    assert_same(host, batches(fitted_cache, config, workers=0))


def test_another_order_takes_the_same_rows(fitted_cache: Cache, make_config: Config) -> None:
    full, block = (
        make_plan(fitted_cache, make_config(order=mode)).epoch(0) for mode in ("full", "block")
    )
    assert sorted(full) == sorted(block)
    assert full.tolist() != block.tolist()
    with pytest.raises(UsageError, match="block"):
        make_config(order="sorted")


def test_a_batch_holds_what_the_cache_stores(fitted_cache: Cache, make_config: Config) -> None:
    for batch in batches(fitted_cache, make_config(num_steps=3), workers=1):
        pixels = fitted_cache.reader(PIXELS, PIXELS).read(batch.rows)
        assert np.array_equal(batch.pixels.numpy(), pixels)
        stored = fitted_cache.reader("b", "patches").read(batch.rows)
        assert np.array_equal(batch.values["b/patches"].numpy(), stored)


def test_an_epoch_takes_every_training_row_once_and_no_held_out_row(
    fitted_cache: Cache, make_config: Config
) -> None:
    plan = make_plan(fitted_cache, make_config(num_steps=0, epochs=2.0))
    first, second = plan.epoch(0), plan.epoch(1)
    assert sorted(first) == sorted(second) == fitted_cache.rows(None, "train").tolist()
    assert first.tolist() != second.tolist()
    assert plan.num_steps == -(-2 * len(first) // 8)
    steps = np.concatenate([plan.step(n) for n in range(plan.num_steps)])
    assert steps[: 2 * len(first)].tolist() == [*first, *second]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_one_order(world: int, fitted_cache: Cache, make_config: Config) -> None:
    config = make_config(num_steps=5, partition="one")
    whole = batches(fitted_cache, config, workers=0)
    shares = [
        batches(fitted_cache, config, workers=0, rank=rank, world=world) for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        joined = np.concatenate([share[step].rows for share in shares])
        assert np.array_equal(joined, batch.rows)
        assert all(share[step].counts == batch.counts for share in shares)
        assert [share[step].first for share in shares] == [8 // world * r for r in range(world)]


def test_parts_of_a_batch_hold_its_rows_in_order(fitted_cache: Cache, make_config: Config) -> None:
    for batch in batches(fitted_cache, make_config(num_steps=4, partition="one"), workers=0):
        parts = [batch.part(number, 4) for number in range(4)]
        assert np.array_equal(np.concatenate([part.rows for part in parts]), batch.rows)
        for key, value in batch.values.items():
            assert torch.equal(torch.cat([part.values[key] for part in parts]), value)


def test_with_a_partition_each_image_has_one_teacher_for_ever(
    fitted_cache: Cache, make_config: Config
) -> None:
    plan = make_plan(fitted_cache, make_config(partition="one"))
    slots = plan.teachers_of(plan.rows)
    assert slots is not None
    assert set(slots.tolist()) == {0, 1, 2}
    for batch in batches(fitted_cache, make_config(partition="one", num_steps=3), workers=0):
        for teacher in ("a", "b", "c"):
            positions = batch.positions(f"{teacher}/patches")
            if not positions.size:
                continue
            stored = fitted_cache.reader(teacher, "patches").read(batch.rows[positions])
            assert np.array_equal(batch.values[f"{teacher}/patches"].numpy(), stored)
        assert sum(batch.counts[f"{name}/patches"] for name in "abc") == len(batch.rows)


def several_views(cache: Cache, num_views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the cache's index as if its rows were ``num_views`` views of fewer images."""
    index = cache.index()
    rows = index["row"].to_numpy()
    changed = {
        "id": pa.array([f"image-{row % (len(rows) // num_views)}" for row in rows]),
        "view": pa.array(rows // (len(rows) // num_views)),
    }
    for name, column in changed.items():
        index = index.set_column(index.column_names.index(name), name, column)
    monkeypatch.setattr(Cache, "index", lambda self, columns=None: index)
    cache.info = msgspec.structs.replace(cache.info, views=cache.info.views * num_views)


def test_an_epoch_takes_one_view_per_image_and_all_views_in_turn(
    make_cache: MakeCache, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(num_rows=60, holdout=0.0)
    several_views(cache, 3, monkeypatch)
    plan = make_plan(cache, make_config())
    epochs = [plan.epoch(number) for number in range(4)]
    assert plan.num_images == 20
    for rows in epochs:
        assert sorted(rows % 20) == list(range(20))
    assert sorted(np.concatenate(epochs[:3])) == list(range(60))
    assert sorted(epochs[3]) == sorted(epochs[0])
    # Neighbouring images are not all on the same view.
    assert len(set((epochs[0] // 20).tolist())) == 3


def test_views_are_taken_in_turn_where_some_were_rejected(
    make_cache: MakeCache, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(num_rows=60, holdout=0.0, rejects=[3, 25])
    several_views(cache, 3, monkeypatch)
    usable = set(cache.rows(None, "train").tolist())
    plan = make_plan(cache, make_config(order="block", max_rows=10))
    shown: dict[int, list[int]] = {}
    for epoch in range(6):
        rows = plan.epoch(epoch)
        assert len(rows) == plan.num_images == 10
        for row in rows.tolist():
            shown.setdefault(row % 20, []).append(row)
    for image, seen in shown.items():
        views = sorted(usable & {image, image + 20, image + 40})
        assert sorted(seen) == sorted(views * (6 // len(views))), "each view equally often"
    assert len(shown) == 10


def keep_even(index: pa.Table) -> Any:
    return index["row"].to_numpy() % 2 == 0


def test_filters_choose_rows(fitted_cache: Cache, make_config: Config) -> None:
    everything = make_plan(fitted_cache, make_config()).rows

    def chosen(**changes: Any) -> RowPlan:
        return make_plan(fitted_cache, make_config(**changes))

    assert chosen(max_rows=10).rows.tolist() == everything[:10].tolist()
    labelled = chosen(labels=("class-1",)).rows
    assert labelled.tolist() == [row for row in everything if row % 3 == 1]
    even = chosen(row_filter=f"{__name__}:keep_even").rows
    assert even.tolist() == [row for row in everything if row % 2 == 0]
    with pytest.raises(UsageError, match="there is no module"):
        chosen(row_filter="no_such_module_anywhere:f")
    assert chosen(max_rows=10).digest != chosen().digest


def test_a_cache_without_pixels_is_refused(make_cache: MakeCache) -> None:
    cache = make_cache()
    cache.info = msgspec.structs.replace(cache.info, pixel_size=0)
    with pytest.raises(UsageError, match="stores no pixels"):
        Source(open_caches(cache), ())
