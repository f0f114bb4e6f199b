"""A student that learns from codes: decoded on the device, everything else as from floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.cli import main
from phistill.compute.signals import Interrupted
from phistill.errors import RunMismatch
from phistill.stats import METHODS, compact_cache
from phistill.train import TrainConfig, cells, evaluate, load_run, sweep, train
from phistill.train import checkpoint as checkpoints
from phistill.train.data.loader import Loader
from phistill.train.data.source import Source
from phistill.train.loss.objective import Objective
from phistill.train.resolve import resolve_run
from tests.train.conftest import TINY

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")
_MADE: dict[float, Cache] = {}


def coded(cache: Cache, tmp_path: Path, bits: float = 4) -> Cache:
    """The cache with patches in codes; made once, training only reads it."""
    if bits not in _MADE:
        _MADE[bits] = compact_cache(cache, tmp_path / f"coded-{bits}", bits=bits).cache
    return _MADE[bits]


def tensors(run: Path, step: int = 20) -> Mapping[str, torch.Tensor]:
    return checkpoints.load(run, step).tensors


def same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", METHODS)
def test_targets_are_the_decoded_features_under_the_normalizer_of_the_floats(
    method: str, learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path)
    run = resolve_run(open_caches(cache), make_config(normalizer=method), CPU)
    plain = resolve_run(open_caches(learnable_cache), make_config(normalizer=method), CPU)
    objective = Objective(run.config, run.targets, run.normalizers, run.dispersions)
    source = Source(run.caches, run.targets)
    with Loader(source, run.plan, run.targets, start=0, stop=1, workers=0) as loader:
        batch = next(iter(loader))
    wanted = objective.normalised(batch)
    for target in run.targets:
        normalizer = run.normalizers[target.key]
        assert normalizer.to_bytes() == plain.normalizers[target.key].to_bytes()
        reader = cache.reader(target.teacher, target.kind, unbiased=True)
        features = reader.read(batch.rows)
        if target.kind == "patches":
            assert batch.values[target.key].dtype == torch.uint8
            expected = normalizer.transform(features.reshape(-1, target.width))
            found = wanted[target.key].reshape(-1, target.width).numpy()
            # float32 products of a few dozen terms, and a unit of 2^-14 phi
            np.testing.assert_allclose(found, expected, atol=1e-3 * float(np.abs(expected).max()))


def test_codes_in_memory_and_on_disk_and_in_parts_give_the_same_student(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path)
    for name, memory_bytes in (("memory", 2**30), ("codes", 2**16), ("streams", 0)):
        train(cache, tmp_path / name, make_config(memory_bytes=memory_bytes))
    assert same_bits(tensors(tmp_path / "memory"), tensors(tmp_path / "streams"))
    assert same_bits(tensors(tmp_path / "codes"), tensors(tmp_path / "streams"))


def test_a_batch_may_hold_no_row_of_a_teacher_whose_rows_are_codes(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    config = make_config(partition="one", batch_size=2, accumulate=2, memory_bytes=0)
    cache = coded(learnable_cache, tmp_path)
    assert train(cache, tmp_path / "run", config).num_steps == config.num_steps


def test_a_stopped_run_from_codes_ends_in_the_same_bits(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path)
    train(cache, tmp_path / "whole", make_config(memory_bytes=0))

    def stop(progress: Any) -> None:
        if progress.step == 9:
            raise KeyboardInterrupt

    config = make_config(memory_bytes=0, checkpoint_every=4)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(cache, tmp_path / "stopped", config, progress=stop)
    train(cache, tmp_path / "stopped", config)
    assert same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "stopped"))


def test_a_sweep_from_codes_ends_where_single_runs_do(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path)
    grid = cells({**TINY, "memory_bytes": 0}, {"normalizer": ["phi-s", "pca"], "seed": [0, 1]})
    sweep(cache, tmp_path / "sweep", grid)
    for cell in grid[1:]:
        train(cache, tmp_path / "alone" / cell.name, cell.config)
        together = tensors(tmp_path / "sweep" / cell.name)
        assert same_bits(tensors(tmp_path / "alone" / cell.name), together)


def test_many_bits_learn_what_floats_teach_and_few_bits_nearly(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    losses = {}
    for name, cache in (
        ("floats", learnable_cache),
        ("8 bits", coded(learnable_cache, tmp_path, 8)),
        ("2 bits", coded(learnable_cache, tmp_path, 2)),
    ):
        losses[name] = sum(train(cache, tmp_path / name, make_config()).losses.values())
    assert losses["8 bits"] == pytest.approx(losses["floats"], rel=2e-3)
    assert losses["2 bits"] == pytest.approx(losses["floats"], rel=0.2)


def test_coded_and_float_caches_are_learnt_from_together(
    learnable_cache: Cache,
    tmp_path: Path,
    make_config: Config,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = [learnable_cache, coded(learnable_cache, tmp_path)]
    caplog.set_level("DEBUG", "phistill.train.data.source")
    result = train(pair, tmp_path / "pair", make_config())
    assert all(map(np.isfinite, result.losses.values()))
    told = [text.split(":")[0] for text in caplog.messages if "decoded on the host" in text]
    assert told == ["a/patches", "b/patches"]
    source = Source(open_caches(pair), resolve_run(open_caches(pair), make_config(), CPU).targets)
    assert not source.codecs, "decoded while they are read"
    rows = np.flatnonzero(np.arange(source.caches.starts[1] + 9) >= source.caches.starts[1])
    expected = pair[1].reader("a", "patches", unbiased=True).read(rows - source.caches.starts[1])
    np.testing.assert_array_equal(source.read("a/patches", rows), expected)
    nearest = pair[1].reader("a", "patches").read(rows - source.caches.starts[1])
    np.testing.assert_array_equal(source.readers["a/patches"].read(rows), nearest)
    both = [pair[1], replace_location(pair[1], tmp_path / "other")]
    joined = open_caches(both)
    assert set(Source(joined, resolve_run(joined, make_config(), CPU).targets).codecs) == {
        "a/patches",
        "b/patches",
    }


def replace_location(cache: Cache, path: Path) -> Cache:
    """A copy elsewhere."""
    import shutil

    shutil.copytree(cache.path, path)
    return type(cache)(path)


def test_a_run_is_not_gone_on_with_on_other_codes(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    train(learnable_cache, tmp_path / "run", make_config())
    with pytest.raises(RunMismatch, match="stored otherwise"):
        train(coded(learnable_cache, tmp_path), tmp_path / "run", make_config())


def test_an_error_against_codes_is_of_rows_that_favour_no_shrunken_student(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path, 0.5)
    train(cache, tmp_path / "run", make_config())
    found = {row.column: row for row in evaluate(tmp_path / "run") if row.student == "trained"}
    rows = cache.rows(split="heldout")
    pixels = torch.from_numpy(cache.reader("pixels", "pixels").read(rows))
    predicted = load_run(tmp_path / "run", device="cpu").predict(pixels)["a"]["patches"]
    mse = {
        unbiased: np.square(
            predicted.numpy() - cache.reader("a", "patches", unbiased=unbiased).read(rows)
        ).mean()
        for unbiased in (False, True)
    }
    assert found["a/patches"].mse == pytest.approx(mse[True], rel=1e-4)
    assert abs(mse[True] - mse[False]) > 1e-3 * mse[True]


def test_an_evaluation_says_against_what_it_measured(
    learnable_cache: Cache, tmp_path: Path, make_config: Config
) -> None:
    cache = coded(learnable_cache, tmp_path, 2)
    train(cache, tmp_path / "run", make_config())
    codes = {row.column: row for row in evaluate(tmp_path / "run") if row.student == "trained"}
    floats = {
        row.column: row
        for row in evaluate(tmp_path / "run", learnable_cache)
        if row.student == "trained"
    }
    assert [row.of_codes for row in codes.values()] == [True, False, True]
    assert not any(row.of_codes for row in floats.values())
    assert codes["a/patches"].error != floats["a/patches"].error
    assert replace(codes["a/summary"], columns=None) == replace(floats["a/summary"], columns=None)

    def text(*more: str) -> str:
        result = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), *more])
        assert result.exit_code == 0, result.output
        return result.output

    assert "Measured against decoded codes: a/patches, b/patches." in text()
    assert "decoded codes" not in text("--against", str(learnable_cache.path))
    page = tmp_path / "page.html"
    result = CliRunner().invoke(
        main, ["report", str(cache.path), str(tmp_path / "run"), "--out", str(page)]
    )
    assert result.exit_code == 0, result.output
    assert "Of a/patches, b/patches the cache has codes" in page.read_text("utf-8")
