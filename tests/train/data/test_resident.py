"""Rows in memory are normalised once, and nobody can tell from the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from phistill.cache import Cache
from phistill.cache.codes import RowCodec
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.train import TrainConfig, train, trainer
from phistill.train import checkpoint as checkpoints
from phistill.train.data.source import Source, open_source
from phistill.train.loss.objective import TargetTransform
from phistill.train.resolve import ResolvedRun, resolve_run

Config = Callable[..., TrainConfig]


def resolved(cache: Cache, config: TrainConfig) -> ResolvedRun:
    return resolve_run(open_caches(cache), config, Ranks(device=torch.device("cpu")).device)


def opened(run: ResolvedRun, memory_bytes: int) -> Source:
    config = msgspec.structs.replace(run.config, memory_bytes=memory_bytes)
    transforms = {key: TargetTransform(n) for key, n in run.normalizers.items()}
    plan = replace(run.plan, config=config)
    return open_source(run.caches, run.targets, plan, transforms=transforms)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": "standardize"},
        {"normalizer": "pca", "summary_loss": "mse"},
        {"accumulate": 3},
        {"partition": "one"},
        {"normalizer": "none"},
    ],
)
def test_a_run_from_memory_ends_in_the_bits_of_one_that_streams(
    changes: dict[str, Any],
    fitted_cache: Cache,
    make_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources: list[Source] = []
    source_of = trainer.source_of

    def seen(*arguments: Any) -> Source:
        sources.append(source_of(*arguments))
        return sources[-1]

    monkeypatch.setattr(trainer, "source_of", seen)
    for name, memory_bytes in (("memory", 2**30), ("streams", 0)):
        train(fitted_cache, tmp_path / name, make_config(memory_bytes=memory_bytes, **changes))
    assert sources[0].is_resident
    assert not sources[1].is_resident
    wanted = {"a/patches", "b/patches", "c/patches"} if "none" not in changes.values() else set()
    assert wanted <= set(sources[0].normalised)
    one, two = (checkpoints.load(tmp_path / name, 20) for name in ("memory", "streams"))
    assert one.facts["losses"] == two.facts["losses"]
    assert all(torch.equal(value, two.tensors[key]) for key, value in one.tensors.items())


def test_what_is_kept_fits_the_memory_allowed(fitted_cache: Cache, make_config: Config) -> None:
    run = resolved(fitted_cache, make_config())
    bare = Source(run.caches, run.targets)
    stored = run.plan.num_rows * bare.row_bytes
    wide = run.plan.num_rows * bare.normalised_row_bytes(["a/patches", "b/patches", "c/patches"])
    assert stored < wide
    assert set(opened(run, wide).normalised) == {"a/patches", "b/patches", "c/patches"}
    held = sum(array.nbytes for array in opened(run, wide)._resident.values())
    assert held == wide
    assert opened(run, wide - 1).is_resident
    assert not opened(run, wide - 1).normalised
    assert opened(run, stored).is_resident
    assert not opened(run, stored - 1).is_resident


class DependsOnTheBatch:
    """A product that is summed otherwise in a batch of other size."""

    digest, is_identity = b"x", False

    def __call__(self, x: Tensor) -> Tensor:
        return x.float() * (1 + len(x) * 1e-6)

    def of_codes(self, codec: RowCodec) -> DependsOnTheBatch:
        return self


def test_bits_that_depend_on_the_batch_are_computed_with_it(
    fitted_cache: Cache, make_config: Config
) -> None:
    run = resolved(fitted_cache, make_config())
    transforms = {"a/patches": DependsOnTheBatch()}
    source = open_source(run.caches, run.targets, run.plan, transforms=transforms)
    assert source.is_resident
    assert not source.normalised
    rows = run.plan.rows[:3]
    stored = fitted_cache.reader("a", "patches").read(rows)
    np.testing.assert_array_equal(source.read("a/patches", rows), stored)
