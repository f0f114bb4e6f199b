"""What a config learns from a cache: everything fixed before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from phistill import __version__
from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.compute.precision import FLOAT32_PRODUCTS, resolve_precision
from phistill.compute.ranks import Ranks
from phistill.errors import UsageError
from phistill.stats import METHODS, Normalizer, load_description, load_moments, load_normalizer
from phistill.stats.fit.mixture import fitted_to_mixture, mixed_dispersion, mixed_moments

from .config import TrainConfig
from .data.advice import advice
from .data.loader import PIXELS, Source
from .data.mixing import MixedPlan, plan_of
from .data.sequence import RowPlan
from .metrics import refuse_missing_wandb
from .state import Trainee
from .targets import PATCHES, SUMMARY, Target, chosen_teachers, targets_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """A config resolved against a cache."""

    cache: Cache | JoinedCaches
    config: TrainConfig
    targets: tuple[Target, ...]
    normalizers: Mapping[str, Normalizer]
    means: Mapping[str, NDArray[np.float64]]
    """Training mean by target key, float64."""

    dispersions: Mapping[str, float]
    image_size: int
    plan: RowPlan | MixedPlan
    precision: str

    @property
    def num_heldout(self) -> int:
        """Rows that nothing is learnt from."""
        teachers = list(dict.fromkeys(target.teacher for target in self.targets))
        return len(self.cache.rows(teachers, "heldout"))

    def new_trainee(self, ranks: Ranks) -> Trainee:
        """A student, its heads and optimizer at the first step."""
        return Trainee(
            self.config,
            self.targets,
            self.normalizers,
            dispersions=self.dispersions,
            image_size=self.image_size,
            num_steps=self.plan.num_steps,
            precision=self.precision,
            ranks=ranks,
        )

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says beside tensors and mutable state."""
        teachers = dict.fromkeys(target.teacher for target in self.targets)
        several = {}
        if isinstance(self.plan, MixedPlan):
            several = {"caches": _drawn(self.cache, self.plan)}
        return several | {
            "phistill": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "num_threads": torch.get_num_threads(),
            "config": self.config.to_dict(),
            "cache": _caches(self.cache)[0].files.absolute,
            "teachers": {name: self.cache.teacher(name).fingerprint for name in teachers},
            "targets": [target.to_dict() for target in self.targets],
            "normalizers": {key: n.metadata() for key, n in self.normalizers.items()},
            "means": {key: mean.tolist() for key, mean in self.means.items()},
            "dispersions": dict(self.dispersions),
            "image_size": self.image_size,
            "num_rows": self.plan.num_images,
            "num_steps": self.plan.num_steps,
            "order_digest": self.plan.digest,
            "images_digest": self.plan.images,
            "precision": self.precision,
            "float32_products": FLOAT32_PRODUCTS,
        }


def _caches(cache: Cache | JoinedCaches) -> tuple[Cache, ...]:
    return cache.caches if isinstance(cache, JoinedCaches) else (cache,)


def _drawn(cache: Cache | JoinedCaches, plan: MixedPlan) -> list[dict[str, Any]]:
    """Which caches a run is on, and what it draws from each."""
    rows = np.bincount(plan.turns, minlength=len(plan.parts)).tolist()
    return [
        {
            "path": one.files.absolute,
            "share": share,
            "num_images": part.num_images,
            "rows_per_epoch": count,
        }
        for one, share, part, count in zip(
            _caches(cache), plan.shares, plan.parts, rows, strict=True
        )
    ]


def prepare(cache: Cache | JoinedCaches, config: TrainConfig, device: torch.device) -> Lesson:
    """Resolve a config against a cache, or several; whatever can be refused is refused here."""
    if config.normalizer not in METHODS:
        raise UsageError(f"normalizer={config.normalizer!r} is not one of {', '.join(METHODS)}.")
    refuse_missing_wandb(config.wandb)
    if isinstance(cache, JoinedCaches):
        cache.require_alike(chosen_teachers(cache, config.teachers))
    if PIXELS not in cache.owners:
        raise UsageError(
            f"{cache.location} stores no pixels, so no student can learn from it. "
            "Extract with a pixel size."
        )
    cache.require_complete(chosen_teachers(cache, config.teachers))
    targets = targets_of(cache, config.teachers, summaries=config.summary_loss != "none")
    # The default loss is simply not used where no teacher has a summary; another was asked for.
    if config.summary_loss not in ("cosine", "none") and SUMMARY not in {t.kind for t in targets}:
        raise UsageError(
            f"summary_loss={config.summary_loss!r} has nothing to act on: none of "
            f"{', '.join(chosen_teachers(cache, config.teachers))} has a summary. "
            "Take summary_loss='none', or teachers that have one."
        )
    plan = plan_of(cache, config)
    normalizers, means, dispersions = {}, {}, {}
    for target in targets:
        learnt_by_value = target.kind == PATCHES or config.summary_loss == "mse"
        method = config.normalizer if learnt_by_value else "none"
        options = config.normalizer_options if learnt_by_value else {}
        statistics = _Statistics(cache, plan, target)
        normalizers[target.key] = statistics.normalizer(method, options)
        means[target.key] = statistics.mean()
        # Over several caches it takes a pass over their summaries, so only where it is used.
        if target.kind == SUMMARY and (
            isinstance(cache, Cache) or config.summary_loss == "balanced-angle"
        ):
            dispersions[target.key] = statistics.dispersion()
    return Lesson(
        cache=cache,
        config=config,
        targets=targets,
        normalizers=normalizers,
        means=means,
        dispersions=dispersions,
        image_size=config.image_size or cache.shapes(PIXELS)[PIXELS][0],
        plan=plan,
        precision=resolve_precision(config.precision, device),
    )


@dataclass(frozen=True, slots=True)
class _Statistics:
    """The statistics of one target over the rows a run draws: of the cache, or of the mixture."""

    cache: Cache | JoinedCaches
    plan: RowPlan | MixedPlan
    target: Target

    @property
    def _array(self) -> tuple[str, str]:
        return self.target.teacher, self.target.kind

    def normalizer(self, method: str, options: Mapping[str, Any]) -> Normalizer:
        if isinstance(self.cache, Cache):
            return load_normalizer(self.cache, *self._array, method, **options)
        return fitted_to_mixture(self.cache.caches, self._shares, *self._array, method, **options)

    def mean(self) -> NDArray[np.float64]:
        if isinstance(self.cache, Cache):
            return load_moments(self.cache, *self._array).mean
        return mixed_moments(self.cache.caches, self._shares, *self._array).mean

    def dispersion(self) -> float:
        if isinstance(self.cache, Cache):
            value = load_description(self.cache, *self._array).dispersion
            assert value is not None, "fit_stats measures it for every summary"
            return value
        return mixed_dispersion(self.cache.caches, self._shares, *self._array)

    @property
    def _shares(self) -> tuple[float, ...]:
        assert isinstance(self.plan, MixedPlan), "several caches have a plan that says their shares"
        return self.plan.shares


def make_source(lesson: Lesson, ranks: Ranks, near: Cache | JoinedCaches | None = None) -> Source:
    """Where batches come from; in memory when the training rows fit the config's budget.

    ``near`` is a copy of the lesson's cache with the same rows, to read from instead.
    """
    source = Source(near or lesson.cache, lesson.targets)
    budget = lesson.config.memory_bytes // ranks.world
    if len(lesson.plan.rows) * source.row_bytes <= budget:
        source.keep_in_memory(lesson.plan.rows)
    elif text := advice(
        source.cache,
        order=lesson.config.order,
        num_rows=len(lesson.plan.rows),
        row_bytes=source.row_bytes,
        num_arrays=len(source.readers),
    ):
        warnings.warn(text, stacklevel=2)
    return source
