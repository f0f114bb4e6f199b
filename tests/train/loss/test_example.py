"""The loss of examples/ is found beside the caller and trained with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phistill.cache import Cache
from phistill.train import TrainConfig, train

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_a_loss_with_an_option_is_one_file(
    fitted_cache: Cache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    losses = {
        epsilon: train(
            fitted_cache,
            tmp_path / str(epsilon),
            make_config(
                num_steps=1,
                teachers=("b",),
                patch_loss="charbonnier:loss",
                patch_loss_options={"epsilon": epsilon},
            ),
        ).losses["b/patches"]
        for epsilon in (1e-3, 100.0)
    }
    # Far above every difference, epsilon is the loss itself.
    assert losses[1e-3] < 10
    assert losses[100.0] == pytest.approx(100.0, rel=1e-3)
