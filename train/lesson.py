"""What a config learns from a cache: everything fixed before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from .. import __version__
from ..cache import Cache
from ..cache.errors import UsageError
from ..stats import METHODS, Normalizer, fitted, load_moments, load_row
from .config import TrainConfig
from .data import Source
from .plan import RowPlan, make_plan
from .ranks import Ranks, resolve_precision
from .targets import PATCHES, SUMMARY, Target, chosen_teachers, targets_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """A config resolved against a cache."""

    cache: Cache
    config: TrainConfig
    targets: tuple[Target, ...]
    normalizers: Mapping[str, Normalizer]
    means: Mapping[str, NDArray[np.float64]]
    """Training mean by target key, float64."""

    dispersions: Mapping[str, float]
    image_size: int
    plan: RowPlan
    precision: str

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says beside tensors and mutable state."""
        teachers = dict.fromkeys(target.teacher for target in self.targets)
        return {
            "phistill": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "num_threads": torch.get_num_threads(),
            "config": self.config.to_dict(),
            "cache": self.cache.files.absolute,
            "teachers": {name: self.cache.teacher(name).fingerprint for name in teachers},
            "targets": [target.to_dict() for target in self.targets],
            "normalizers": {key: n.metadata() for key, n in self.normalizers.items()},
            "means": {key: mean.tolist() for key, mean in self.means.items()},
            "dispersions": dict(self.dispersions),
            "image_size": self.image_size,
            "num_rows": self.plan.num_images,
            "num_steps": self.plan.num_steps,
            "order_digest": self.plan.digest,
            "precision": self.precision,
        }


def prepare(cache: Cache, config: TrainConfig, device: torch.device) -> Lesson:
    """Resolve a config against a cache; every question that can be refused is asked here."""
    if config.normalizer not in METHODS:
        raise UsageError(f"normalizer={config.normalizer!r} is not one of {', '.join(METHODS)}.")
    if not cache.info.pixel_size:
        raise UsageError(
            f"{cache.location} stores no pixels, so no student can learn from it. "
            "Extract with a pixel size."
        )
    cache.require_complete(chosen_teachers(cache, config.teachers))
    targets = targets_of(cache, config.teachers, summaries=config.summary_loss != "none")
    normalizers, means, dispersions = {}, {}, {}
    for target in targets:
        learnt_by_value = target.kind == PATCHES or config.summary_loss == "mse"
        method = config.normalizer if learnt_by_value else "none"
        options = config.normalizer_options if learnt_by_value else {}
        normalizers[target.key] = fitted(cache, target.teacher, target.kind, method, **options)
        means[target.key] = load_moments(cache, target.teacher, target.kind).mean
        if target.kind == SUMMARY:
            value = load_row(cache, target.teacher, target.kind).dispersion
            assert value is not None, "fit_stats measures it for every summary"
            dispersions[target.key] = value
    return Lesson(
        cache=cache,
        config=config,
        targets=targets,
        normalizers=normalizers,
        means=means,
        dispersions=dispersions,
        image_size=config.image_size or cache.info.pixel_size,
        plan=make_plan(cache, config),
        precision=resolve_precision(config.precision, device),
    )


def make_source(lesson: Lesson, ranks: Ranks) -> Source:
    """Where batches come from; in memory when the training rows fit the config's budget."""
    source = Source(lesson.cache, lesson.targets)
    budget = lesson.config.memory_bytes // ranks.world
    if len(lesson.plan.rows) * source.row_bytes <= budget:
        source.keep_in_memory(lesson.plan.rows)
    return source
