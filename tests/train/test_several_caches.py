"""Several caches are drawn from at once, with weights, in one order that nothing else changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.joined import JoinedCaches, open_caches
from phistill.cli import main
from phistill.errors import CacheMismatch, RunMismatch, UsageError
from phistill.stats import fit_stats
from phistill.train import TrainConfig, cells, evaluate, sweep, train
from phistill.train import checkpoint as checkpoints
from phistill.train.data.loader import Loader
from phistill.train.data.plan import make_plan
from phistill.train.data.source import PIXELS, Source
from phistill.train.targets import targets_of

Config = Callable[..., TrainConfig]
MakeCache = Callable[..., Cache]

ONE = TeacherInfo(name="a", grid=(2, 2), widths={"patches": 12, "summary": 6})


def shifted(owner: str, kind: str, start: int, values: Any) -> Any:
    """Features of another place and spread, so that the caches' statistics differ."""
    return (values * 3 + 5).astype(values.dtype)


@pytest.fixture
def pair(make_cache: MakeCache) -> JoinedCaches:
    """Two caches of different size and features, without statistics."""
    first = make_cache(num_rows=60, teachers=(ONE,), name="first.cache")
    second = make_cache(num_rows=30, teachers=(ONE,), features=shifted, name="second.cache")
    return JoinedCaches([first, second])


@pytest.fixture
def fitted_pair(pair: JoinedCaches) -> JoinedCaches:
    for cache in pair.caches:
        fit_stats(cache)
    return pair


def cache_of(joined: JoinedCaches, rows: Any) -> Any:
    return np.searchsorted(np.array(joined.starts), rows, side="right") - 1


def own_rows(joined: JoinedCaches, rows: Any, number: int) -> list[int]:
    mine = rows[cache_of(joined, rows) == number]
    return (mine - joined.starts[number]).tolist()


def test_without_weights_every_training_image_comes_once_an_epoch(
    pair: JoinedCaches, make_config: Config
) -> None:
    plan = make_plan(pair, make_config())
    for epoch in (0, 1, 5):
        rows = plan.epoch(epoch)
        for number, cache in enumerate(pair.caches):
            assert sorted(own_rows(pair, rows, number)) == cache.rows(None, "train").tolist()


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 9.0), (5.0, 5.0)])
def test_rows_are_drawn_in_the_share_of_the_weights(
    weights: tuple[float, ...], pair: JoinedCaches, make_config: Config
) -> None:
    plan = make_plan(pair, make_config(cache_weights=weights))
    share = weights[1] / sum(weights)
    per_epoch = [int((cache_of(pair, plan.epoch(e)) == 1).sum()) for e in range(4)]
    assert len(set(per_epoch)) == 1
    # Whole rows: the nearest count to the share of an epoch.
    assert abs(per_epoch[0] - share * plan.num_images) < 1
    for step in range(40):
        drawn = int((cache_of(pair, plan.step(step)) == 1).sum())
        assert abs(drawn - share * 8) <= 2, "a batch holds each cache's share to two rows"


def test_no_image_of_a_cache_comes_again_before_all_of_it_have_come(
    pair: JoinedCaches, make_config: Config
) -> None:
    plan = make_plan(pair, make_config(cache_weights=(0.2, 0.8)))
    rows = np.concatenate([plan.epoch(epoch) for epoch in range(5)])
    for number, cache in enumerate(pair.caches):
        own, size = own_rows(pair, rows, number), cache.rows(None, "train").size
        passes = [own[at : at + size] for at in range(0, len(own), size)]
        assert len(passes) > 1
        assert all(len(set(one)) == len(one) for one in passes)
        assert passes[0] != passes[1][: len(passes[0])]


def test_equal_caches_come_in_unrelated_orders(make_cache: MakeCache, make_config: Config) -> None:
    pair = JoinedCaches([make_cache(name=name, teachers=(ONE,)) for name in ("x", "y")])
    rows = make_plan(pair, make_config()).epoch(0)
    first, second = own_rows(pair, rows, 0), own_rows(pair, rows, 1)
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("order", ["full", "block"])
@pytest.mark.parametrize("partition", ["all", "one"])
def test_ranks_and_workers_share_the_one_order(
    order: str, partition: str, pair: JoinedCaches, make_config: Config
) -> None:
    config = make_config(cache_weights=(0.4, 0.6), order=order, partition=partition, num_steps=12)
    targets = targets_of(pair, (), summaries=True)
    source, plan = Source(pair, targets), make_plan(pair, config)
    whole = [plan.step(step).tolist() for step in range(12)]
    for workers in (0, 3):
        ranks = []
        for rank in range(2):
            loader = Loader(
                source, plan, targets, start=0, stop=12, rank=rank, world=2, workers=workers
            )
            with loader:
                ranks.append([batch.rows.tolist() for batch in loader])
        assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    again = make_plan(JoinedCaches([store.open(c.path) for c in pair.caches]), config)
    assert [again.step(step).tolist() for step in reversed(range(12))] == whole[::-1]


def test_a_batch_holds_what_each_cache_stores(pair: JoinedCaches, make_config: Config) -> None:
    config = make_config(num_steps=6)
    targets = targets_of(pair, (), summaries=True)
    plan = make_plan(pair, config)
    resident = Source(pair, targets)
    resident.keep_in_memory(plan.rows)
    for source in (Source(pair, targets), resident):
        with Loader(source, plan, targets, start=0, stop=6, workers=0) as loader:
            for batch in loader:
                for place, row in enumerate(batch.rows.tolist()):
                    number = int(cache_of(pair, row))
                    cache, own = pair.caches[number], np.array([row - pair.starts[number]])
                    for owner, kind, value in [
                        (PIXELS, PIXELS, batch.pixels),
                        ("a", "patches", batch.values["a/patches"]),
                        ("a", "summary", batch.values["a/summary"]),
                    ]:
                        stored = cache.reader(owner, kind).read(own)[0]
                        np.testing.assert_array_equal(value[place].numpy(), stored)


def test_one_cache_in_a_list_is_the_run_on_that_cache(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=3)
    alone = train(fitted_cache, tmp_path / "alone", config)
    listed = train([fitted_cache.path], tmp_path / "listed", config)
    assert listed.losses == alone.losses
    facts = [checkpoints.load(tmp_path / name, 3).facts for name in ("alone", "listed")]
    assert facts[0]["order_digest"] == facts[1]["order_digest"]
    assert facts[0]["caches"] == facts[1]["caches"]


def test_a_stopped_run_on_two_caches_ends_in_the_same_bits(
    fitted_pair: JoinedCaches, make_config: Config, tmp_path: Path
) -> None:
    paths = [cache.path for cache in fitted_pair.caches]
    config = make_config(cache_weights=(0.7, 0.3), num_steps=20, checkpoint_every=7)
    train(paths, tmp_path / "whole", config)

    class Stop(Exception):
        pass

    def stop_at_11(at: Any) -> None:
        if at.step == 11:
            raise Stop

    with pytest.raises(Stop):
        train(paths, tmp_path / "cut", config, progress=stop_at_11)
    assert train(paths, tmp_path / "cut", config).resumed_from == 7
    whole, cut = (checkpoints.load(tmp_path / name, 20) for name in ("whole", "cut"))
    assert whole.facts["order_digest"] == cut.facts["order_digest"]
    assert whole.tensors.keys() == cut.tensors.keys()
    assert all(whole.tensors[key].equal(cut.tensors[key]) for key in whole.tensors)


def test_a_run_is_not_gone_on_with_under_other_weights_or_caches(
    fitted_pair: JoinedCaches, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(cache_weights=(0.7, 0.3), num_steps=2)
    train(fitted_pair, tmp_path / "run", config)
    with pytest.raises(RunMismatch, match="cache_weights"):
        train(fitted_pair, tmp_path / "run", make_config(cache_weights=(0.6, 0.4), num_steps=2))
    swapped = JoinedCaches(fitted_pair.caches[::-1])
    with pytest.raises(RunMismatch, match="orders them differently"):
        train(swapped, tmp_path / "run", config)


def test_other_teachers_under_one_name_are_refused_field_by_field(
    make_cache: MakeCache, make_config: Config, tmp_path: Path
) -> None:
    from msgspec.structs import replace

    one = replace(ONE, identity={"model": "vit", "weights_sha256": "12"})
    two = replace(ONE, identity={"model": "vit", "weights_sha256": "34"})
    caches = [make_cache(name=t.identity["weights_sha256"], teachers=(t,)) for t in (one, two)]
    with pytest.raises(CacheMismatch, match="weights_sha256: '12' -> '34'") as caught:
        train(caches, tmp_path / "run", make_config())
    assert "model" not in str(caught.value)


def test_a_teacher_that_one_cache_lacks_is_named_with_the_common_ones(
    make_cache: MakeCache, make_config: Config, tmp_path: Path
) -> None:
    extra = TeacherInfo(name="b", grid=(1, 1), widths={"patches": 3})
    caches = [
        make_cache(name="both", teachers=(ONE, extra)),
        make_cache(name="only-a", teachers=(ONE,)),
    ]
    with pytest.raises(UsageError, match=r"only-a has no teacher 'b'. .*--teachers a,"):
        train(caches, tmp_path / "run", make_config())
    for cache in caches:
        fit_stats(cache, teachers=["a"])
    assert train(caches, tmp_path / "run", make_config(teachers=("a",), num_steps=1)).losses


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"cache_weights": (1.0,)}, "1 weight for 2 caches"),
        ({"cache_weights": (1.0, 1e-9)}, "no row in an epoch"),
        ({"labels": ("nothing",)}, "leave no training row of .*first.cache"),
    ],
)
def test_weights_and_filters_that_do_not_fit_are_refused(
    changes: dict[str, Any], what: str, pair: JoinedCaches, make_config: Config
) -> None:
    with pytest.raises(UsageError, match=what):
        make_plan(pair, make_config(**changes))


def test_a_weight_that_is_not_above_zero_is_refused() -> None:
    for weights in ((0.0, 1.0), (-1.0, 2.0), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="above 0"):
            TrainConfig(cache_weights=weights)


def test_weights_for_one_cache_and_a_cache_named_twice_are_refused(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="2 weights for 1 cache"):
        train(fitted_cache, tmp_path / "run", make_config(cache_weights=(1.0, 2.0)))


@pytest.mark.parametrize("spelt", ["alike", "relative", "link", "url", "trailing"])
def test_a_cache_given_twice_is_refused_however_it_is_spelt(
    spelt: str, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    path = fitted_cache.path.resolve()
    (tmp_path / "link").symlink_to(path)
    other = {
        "alike": str(path),
        "relative": os.path.relpath(path),
        "link": str(tmp_path / "link"),
        "url": path.as_uri(),
        "trailing": f"{path}/.",
    }[spelt]
    with pytest.raises(UsageError, match="given twice"):
        train([path, other], tmp_path / "run", make_config())


def test_pixels_of_another_side_are_refused(make_cache: MakeCache) -> None:
    caches = [make_cache(name=str(side), pixel_size=side, teachers=(ONE,)) for side in (8, 16)]
    with pytest.raises(CacheMismatch, match="side 16"):
        JoinedCaches(caches).require_alike(["a"])


def test_an_image_that_one_cache_holds_out_is_not_learnt_from_another(
    make_cache: MakeCache, make_config: Config
) -> None:
    first = make_cache(name="first", num_rows=60, teachers=(ONE,), seed=1)
    second = make_cache(name="second", num_rows=60, teachers=(ONE,), seed=2)  # the same images
    heldout = set(first.rows(None, "heldout")) | set(second.rows(None, "heldout"))
    assert set(make_plan(open_caches(second), make_config()).rows) & heldout, (
        "alone it would be learnt"
    )
    with pytest.warns(UserWarning, match="another of the caches holds out"):
        plan = make_plan(JoinedCaches([first, second]), make_config())
    for stream in plan.streams:
        assert not set(stream.rows.to_array()) & heldout
    same = [make_cache(name=name, num_rows=60, teachers=(ONE,)) for name in ("x", "y")]
    make_plan(JoinedCaches(same), make_config())  # agrees, so nothing is said


def test_evaluation_says_what_holds_on_each_cache(
    fitted_pair: JoinedCaches, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_pair, tmp_path / "run", make_config(cache_weights=(0.5, 0.5), num_steps=4))
    lines = evaluate(tmp_path / "run", untrained=False)
    assert {line.cache for line in lines} == {"first.cache", "second.cache"}
    for line in lines:
        cache = next(c for c in fitted_pair.caches if c.path.name == line.cache)
        assert line.num_rows == cache.rows(None, "heldout").size
        (alone,) = [
            other
            for other in evaluate(tmp_path / "run", cache, untrained=False)
            if other.kind == line.kind
        ]
        assert (alone.mse, alone.cosine, alone.cache) == (line.mse, line.cosine, "")


def test_the_command_line_takes_caches_and_weights(
    fitted_pair: JoinedCaches, make_config: Config, tmp_path: Path
) -> None:
    paths = [str(cache.path) for cache in fitted_pair.caches]
    settings = {**make_config(num_steps=2).to_dict()}
    toml = tmp_path / "run.toml"
    lines = [f"{k} = {json.dumps(v)}" for k, v in settings.items() if not isinstance(v, dict)]
    options = ", ".join(f"{k} = {v}" for k, v in settings["student_options"].items())
    toml.write_text("\n".join([*lines, f"student_options = {{ {options} }}"]), "utf-8")
    run = ["train", *paths, "--out", str(tmp_path / "run"), "--config", str(toml)]
    result = CliRunner().invoke(main, [*run, "--cache-weights", "3,1"])
    assert result.exit_code == 0, result.output
    caches = json.loads((tmp_path / "run" / "config.json").read_bytes())["caches"]
    assert [entry["share"] for entry in caches] == [0.75, 0.25]
    shown = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run")])
    assert "first.cache" in shown.output
    assert "second.cache" in shown.output
    wrong = CliRunner().invoke(main, [*run, "--cache-weights", "a,b"])
    assert wrong.exit_code == 2
    assert "--cache-weights': 'a,b'" in wrong.output


def test_a_sweep_over_several_caches_ends_where_separate_runs_do(
    fitted_pair: JoinedCaches, make_config: Config, tmp_path: Path
) -> None:
    base = {**make_config(num_steps=3).to_dict(), "cache_weights": [0.7, 0.3]}
    del base["normalizer"]
    grid = cells(base, {"normalizer": ["phi-s", "standardize"]})
    sweep([cache.path for cache in fitted_pair.caches], tmp_path / "sweep", grid)
    for cell in grid:
        alone = train(fitted_pair, tmp_path / "alone" / cell.name, cell.config)
        one = checkpoints.load(alone.path, 3).tensors
        two = checkpoints.load(tmp_path / "sweep" / cell.name, 3).tensors
        assert all(one[key].equal(two[key]) for key in one)
    table = (tmp_path / "sweep" / "table.md").read_text("utf-8")
    assert "a/patches@first.cache" in table
    assert "a/patches@second.cache" in table
