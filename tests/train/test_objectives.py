"""Every objective in training: combinations, gradients, what happens to NaN, a golden curve."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.errors import Diverged
from phistill.stats import METHODS, Moments, Normalizer, fit_stats
from phistill.train import Progress, TrainConfig, train
from phistill.train.config import PATCH_LOSSES, SUMMARY_LOSSES
from phistill.train.data.batch import Batch
from phistill.train.data.loader import Loader
from phistill.train.data.source import open_source
from phistill.train.loss.objective import TargetTransform
from phistill.train.metrics import read_metrics
from phistill.train.resolve import resolve_run
from phistill.train.step.state import TrainState
from phistill.train.step.values import StepValues

Config = Callable[..., TrainConfig]
ALONE = Ranks(device=torch.device("cpu"))

BALANCES = ("equal", "fixed", "adaloss")

GOLDEN = Path(__file__).parent / "golden_losses.json"
"""Unweighted terms of 20 steps, written by ``write_golden`` below on x86-64."""


def begun(cache: Cache, config: TrainConfig) -> tuple[TrainState, Loader]:
    run = resolve_run(open_caches(cache), config, ALONE.device)
    source = open_source(run.caches, run.targets, run.plan)
    loader = Loader(source, run.plan, run.targets, start=0, stop=run.num_steps, workers=0)
    return TrainState(run, ALONE), loader


def stepped(state: TrainState, batch: Batch) -> StepValues:
    """What one step measured."""
    state.train_step(batch)
    values = state.look()
    assert values is not None
    return values


def curve(cache: Cache, config: TrainConfig) -> list[dict[str, float]]:
    """The unweighted terms of every step."""
    state, loader = begun(cache, config)
    return [stepped(state, batch).losses for batch in loader]


class PatchEmbedding(torch.nn.Module):
    """A student of one layer: 384 runs of any other would take minutes."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 4, stride=4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.embed(images)
        return found


def patch_embedding(image_size: int) -> PatchEmbedding:
    return PatchEmbedding()


SMALLEST: dict[str, Any] = {
    "student": f"{__name__}:patch_embedding",
    "student_options": {},
    "head": "linear",
    "batch_size": 4,
    "teachers": ("a",),
}
"""One teacher with patches and a summary holds every term."""


@pytest.mark.parametrize("normalizer", METHODS)
def test_every_normalizer_both_losses_and_balance_train_20_steps(
    normalizer: str, fitted_cache: Cache, make_config: Config
) -> None:
    combinations = itertools.product(PATCH_LOSSES, SUMMARY_LOSSES, BALANCES)
    for patch_loss, summary_loss, balance in combinations:
        config = make_config(
            normalizer=normalizer,
            patch_loss=patch_loss,
            summary_loss=summary_loss,
            balance=balance,
            weights={"a/patches": 0.5} if balance == "fixed" else {},
            **SMALLEST,
        )
        losses = curve(fitted_cache, config)
        assert len(losses) == 20
        assert len(losses[0]) == (1 if summary_loss == "none" else 2)
        assert all(math.isfinite(value) for step in losses for value in step.values())
        assert losses[0] != losses[-1]


def test_the_loss_curve_is_the_golden_one(fitted_cache: Cache, make_config: Config) -> None:
    golden = json.loads(GOLDEN.read_text())
    for name, config in golden_configs(make_config).items():
        found = curve(fitted_cache, config)
        for step, (ours, stored) in enumerate(zip(found, golden[name], strict=True)):
            # Float32 sums may be ordered otherwise on another CPU; 20 steps let that grow.
            assert ours == pytest.approx(stored, rel=1e-3), (name, step)


def golden_configs(make_config: Config) -> dict[str, TrainConfig]:
    return {
        "phi-s, mse, equal": make_config(),
        "none, hybrid-smooth-l1, adaloss": make_config(
            normalizer="none", patch_loss="hybrid-smooth-l1", balance="adaloss"
        ),
    }


def write_golden(cache: Cache, make_config: Config) -> None:
    """Run by hand when the numbers are meant to change; say why in the commit."""
    found = {name: curve(cache, config) for name, config in golden_configs(make_config).items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("method", METHODS)
def test_targets_are_normalised_as_the_normalizer_says(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((50, 6)) * np.arange(1, 7) + 3
    normalizer = Normalizer.fit(Moments.of(x), method)
    ours = TargetTransform(normalizer)(torch.from_numpy(x).float())
    # Float32 products of 6 terms of size up to 30.
    assert ours.numpy() == pytest.approx(normalizer.transform(x), rel=1e-4, abs=1e-4)


def test_fixed_weights_and_adaloss_change_the_shares(
    fitted_cache: Cache, make_config: Config
) -> None:
    def shares(**changes: Any) -> dict[str, float]:
        state, loader = begun(fitted_cache, make_config(normalizer="none", **changes))
        return [stepped(state, batch).shares for batch in loader][-1]

    zero = shares(balance="fixed", weights={"b": 0.0, "a/summary": 3.0})
    assert zero["b/patches"] == 0
    assert sum(zero.values()) == pytest.approx(1)
    even = shares(balance="adaloss")
    # Five terms, each about its own running mean.
    assert all(0.1 < share < 0.35 for share in even.values())


def test_gradients_at_the_shared_features_are_measured_without_touching_the_run(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    watched = make_config(num_steps=4, gradient_norm_every=2)
    train(fitted_cache, tmp_path / "watched", watched)
    train(fitted_cache, tmp_path / "plain", make_config(num_steps=4))
    lines = read_metrics(tmp_path / "watched", "train")
    assert ["feature_gradients" in line for line in lines] == [True, False, True, False]
    assert set(lines[0]["feature_gradients"]) == set(lines[0]["losses"])
    assert all(value > 0 for value in lines[0]["feature_gradients"].values())
    plain = read_metrics(tmp_path / "plain", "train")
    assert [line["losses"] for line in lines] == [line["losses"] for line in plain]


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(
    fitted_cache: Cache, make_config: Config
) -> None:
    """Also where each image has one teacher, so that parts hold unequal numbers of its rows."""
    for partition in ("all", "one"):
        whole = curve(fitted_cache, make_config(partition=partition))
        parts = curve(fitted_cache, make_config(partition=partition, accumulate=4))
        for one, two in zip(whole, parts, strict=True):
            assert one == pytest.approx(two, rel=1e-4)  # float32 sums in another order


def test_a_value_that_is_not_finite_stops_the_run_with_its_rows(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=40)
    fit_stats(cache)
    config = make_config(num_steps=50, batch_size=4, patch_loss=f"{__name__}:poisoned")
    seen: list[int] = []

    def tell(progress: Progress) -> None:
        seen.append(progress.step)

    with pytest.raises(Diverged, match=r"step 3 is not finite.*diverged\.json"):
        train(cache, tmp_path / "run", config, progress=tell)
    facts = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert facts["step"] == 3
    assert len(facts["rows"]) == 4
    assert len(facts["rows_not_finite"]) == 1
    assert set(facts["rows_not_finite"]) < set(facts["rows"])
    assert seen == [1, 2]
    train(cache, tmp_path / "run", config)  # now without a NaN
    assert not (tmp_path / "run" / "diverged.json").exists(), "it did not diverge in the end"


CALLS = itertools.count()


def poisoned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """MSE, with one NaN at the third step (two terms per step)."""
    loss = (x - y).square().mean((1, 2))
    if next(CALLS) // 2 == 2:
        loss = loss * torch.tensor([1, 1, float("nan"), 1])
    return loss


@pytest.mark.slow
def test_a_compiled_student_has_the_gradients_of_an_eager_one(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """Taken behind one compiled call, every gradient at the shared features was 0."""
    changes: dict[str, Any] = {"num_steps": 2, "gradient_norm_every": 1, "teachers": ("a",)}
    for name, compiled in (("eager", False), ("compiled", True)):
        train(fitted_cache, tmp_path / name, make_config(compile=compiled, **changes))
    eager, ours = (read_metrics(tmp_path / name, "train") for name in ("eager", "compiled"))
    for one, two in zip(eager, ours, strict=True):
        assert one["feature_gradients"]["a/patches"] > 0
        # Fused kernels add in another order.
        assert two["feature_gradients"] == pytest.approx(one["feature_gradients"], rel=1e-4)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


WITHOUT_COMPILER = """
import json, sys
from phistill.train import TrainConfig, train
train(sys.argv[1], sys.argv[2], TrainConfig.from_dict(json.loads(sys.argv[3])))
"""


def test_a_machine_without_a_compiler_is_told_so_in_one_line(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """In a process of its own: torch keeps what an earlier test compiled."""
    config = make_config(compile=True, num_steps=1, teachers=("b",))
    arguments = [str(fitted_cache.path), str(tmp_path / "run"), json.dumps(config.to_dict())]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, *arguments],
        env={
            **os.environ,
            "CXX": "no-such-compiler",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
        },
        capture_output=True,
        text=True,
    )
    last = found.stderr.strip().splitlines()[-1]
    assert re.match(
        r"phistill\.errors\.UsageError: compile=true, but torch.compile fails: .*g\+\+", last
    ), found.stderr
