"""A config resolved against its caches: everything fixed before the first step."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import timm
import torch
from numpy.typing import NDArray

from phistill import __version__, plugins
from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.compute.precision import FLOAT32_PRODUCTS, resolve_precision
from phistill.compute.ranks import Ranks
from phistill.errors import RunMismatch, UsageError
from phistill.stats import METHODS, Moments, Normalizer
from phistill.stats.fit.mixture import fitted_to_mixture, mixed_dispersion, mixed_moments

from .config import TrainConfig
from .data.plan import RowPlan, make_plan
from .data.source import PIXELS, Part, parts_of, require_pixels
from .evaluation.validation import shared_labels
from .metrics import refuse_missing_loggers
from .student.predict import stored_normalizers
from .targets import PATCHES, SUMMARY, Target, chosen_teachers, learns_direction, targets_of


@dataclass(frozen=True, eq=False, kw_only=True)
class ResolvedRun:
    """What a run is: its rows, targets, normalizers and precision."""

    caches: JoinedCaches
    config: TrainConfig
    targets: tuple[Target, ...]
    normalizers: Mapping[str, Normalizer]
    means: Mapping[str, NDArray[np.float64]]
    """Training mean by target key, float64."""

    norms: Mapping[str, float]
    """By target key, of summaries learnt by direction: root mean square of the teacher's norm on
    training rows."""

    dispersions: Mapping[str, float]
    """By target key, in rad^2: of the summaries whose loss is divided by it."""

    image_size: int
    plan: RowPlan
    heldout: tuple[Part, ...]
    """Rows of each cache that nothing is learnt from."""

    precision: str

    @property
    def num_steps(self) -> int:
        return self.plan.num_steps

    @property
    def teachers(self) -> list[str]:
        return list(dict.fromkeys(target.teacher for target in self.targets))

    @property
    def num_heldout(self) -> int:
        return sum(len(part.rows) for part in self.heldout)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says beside tensors and mutable state."""
        plan, caches = self.plan, self.caches.caches
        return {
            "phistill": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "num_threads": torch.get_num_threads(),
            "config": self.config.to_dict(),
            "caches": [
                {
                    "path": cache.files.absolute,
                    "pixel_size": cache.info.pixel_size,
                    "views": list(cache.info.views),
                    "decode": dict(cache.info.decode),
                    "codecs": codecs_of(cache, self.teachers),
                    "share": share,
                    "num_images": stream.num_images,
                    "rows_per_epoch": rows,
                }
                for cache, share, stream, rows in zip(
                    caches, plan.shares, plan.streams, plan.rows_per_epoch, strict=True
                )
            ],
            "teachers": {name: self.caches.teacher(name).fingerprint for name in self.teachers},
            "specs": {name: self.caches.teacher(name).spec for name in self.teachers},
            "licences": {name: self.caches.teacher(name).licence for name in self.teachers},
            "targets": msgspec.to_builtins(self.targets),
            "normalizers": {key: n.metadata() for key, n in self.normalizers.items()},
            "means": {key: mean.tolist() for key, mean in self.means.items()},
            "norms": dict(self.norms),
            "dispersions": dict(self.dispersions),
            "image_size": self.image_size,
            "num_rows": plan.num_images,
            "num_steps": plan.num_steps,
            "order_digest": plan.digest,
            "images_digest": plan.images,
            "precision": self.precision,
            "float32_products": FLOAT32_PRODUCTS,
        }

    def as_stored(
        self, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> ResolvedRun:
        """With a checkpoint's normalizers and precision, which are never resolved again."""
        return replace(
            self,
            targets=msgspec.convert(facts["targets"], tuple[Target, ...]),
            normalizers=stored_normalizers(facts, tensors),
            means={key: np.asarray(value) for key, value in facts["means"].items()},
            norms=facts["norms"],
            dispersions=facts["dispersions"],
            image_size=int(facts["image_size"]),
            precision=str(facts["precision"]),
        )


def codecs_of(cache: Cache, teachers: Sequence[str]) -> dict[str, dict[str, str]]:
    """By teacher and kind, the sha256 of the codec of those that a cache stores as codes."""
    found = {
        name: {kind: codec.sha256 for kind, codec in cache.teacher(name).codecs.items()}
        for name in teachers
    }
    return {name: codecs for name, codecs in found.items() if codecs}


def _root_mean_square_norm(moments: Moments) -> float:
    """sqrt(E |x|^2) = sqrt(trace(S) + |m|^2)."""
    square = np.trace(moments.covariance) + moments.mean @ moments.mean
    return float(np.sqrt(square))


LOCAL_KEYS = frozenset(
    {"device", "loader_workers", "read_ahead", "memory_bytes", "tensorboard", "loggers"}
)
"""Settings in which the processes of one run may differ."""


def require_agreement(run: ResolvedRun, ranks: Ranks) -> None:
    """RunMismatch, on every rank and before the first step, where they would not train one student:
    other settings, another cache, other code."""
    if ranks.world == 1:
        return
    facts = run.facts()
    config = facts.pop("config")
    del facts["caches"], facts["num_threads"]  # paths and cores may differ
    facts |= {f"setting {key}": value for key, value in config.items() if key not in LOCAL_KEYS}
    facts["code"] = _code_digest(run.config)
    hosts, all_facts = zip(*ranks.gathered_objects((socket.gethostname(), facts)), strict=True)
    for rank, other in enumerate(all_facts):
        differing = [key for key in all_facts[0] if other.get(key) != all_facts[0][key]]
        if differing:
            lines = "".join(
                f"\n  {key}: {_brief(all_facts[0][key])} -> {_brief(other.get(key))}"
                for key in differing
            )
            raise RunMismatch(
                f"process {rank} on {hosts[rank]} would not train what process 0 on {hosts[0]} "
                f"does:{lines}\nStart every process with the same command, version and cache, or "
                "copies of it."
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({sha256(text.encode()).hexdigest()[:8]})"


def _code_digest(config: TrainConfig) -> str:
    """sha256 (hex) of the source of what decides a step, plug-ins included."""
    root = Path(__file__).parent.parent
    rooms = ("cache", "compute", "plugins", "stats", "train")
    files = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    for what in ("student", "head", "patch_loss", "summary_loss", "row_filter"):
        if ":" in (name := getattr(config, what)):
            plugins.load(name, what)
            files.append(Path(str(sys.modules[name.partition(":")[0]].__file__)))
    digest = sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def resolve_run(caches: JoinedCaches, config: TrainConfig, device: torch.device) -> ResolvedRun:
    """Resolve a config against caches; whatever can be refused is refused here."""
    if config.normalizer not in METHODS:
        raise UsageError(f"normalizer={config.normalizer!r} is not one of {', '.join(METHODS)}.")
    refuse_missing_loggers(config)
    teachers = chosen_teachers(caches, config.teachers)
    caches.require_alike(teachers)
    require_pixels(caches)
    caches.require_complete(teachers)
    targets = targets_of(caches, config.teachers, summaries=config.summary_loss != "none")
    # The default loss is simply not used where no teacher has a summary; another was asked for.
    if config.summary_loss not in ("cosine", "none") and SUMMARY not in {t.kind for t in targets}:
        raise UsageError(
            f"summary_loss={config.summary_loss!r} has nothing to act on: none of "
            f"{', '.join(teachers)} has a summary. "
            "Take summary_loss='none', or teachers that have one."
        )
    plan = make_plan(caches, config)
    heldout = tuple(parts_of(caches, teachers, "heldout"))
    if config.best_by == "knn":
        _refuse_unlabelled(caches, config, plan, heldout)
    normalizers, means, norms, dispersions = {}, {}, {}, {}
    for target in targets:
        drawn = caches.caches, plan.shares, target.teacher, target.kind
        by_value = target.kind == PATCHES or config.summary_loss == "mse"
        method = config.normalizer if by_value else "none"
        options = config.normalizer_options if by_value else {}
        moments = mixed_moments(*drawn)
        normalizers[target.key] = fitted_to_mixture(*drawn, method, moments=moments, **options)
        means[target.key] = moments.mean
        if learns_direction(target, config.summary_loss):
            norms[target.key] = _root_mean_square_norm(moments)
        # Over several caches it takes a pass over their summaries, so only where it is used.
        if target.kind == SUMMARY and config.summary_loss == "balanced-angle":
            dispersions[target.key] = mixed_dispersion(*drawn)
    return ResolvedRun(
        caches=caches,
        config=config,
        targets=targets,
        normalizers=normalizers,
        means=means,
        norms=norms,
        dispersions=dispersions,
        image_size=config.image_size or caches.shapes(PIXELS)[PIXELS][0],
        plan=plan,
        heldout=heldout,
        precision=resolve_precision(config.precision, device),
    )


def _refuse_unlabelled(
    caches: JoinedCaches, config: TrainConfig, plan: RowPlan, heldout: Sequence[Part]
) -> None:
    """UsageError where a validation would have no kNN accuracy."""
    asked = [part.rows[: config.validate_rows] for part in heldout]
    if not asked or not shared_labels(caches, plan.rows, np.concatenate(asked)).any():
        raise UsageError(
            "best_by='knn' wants two labels among the training images, and held-out images of "
            f"them; {caches.location} has none such. Extract with --labels, or leave best_by out."
        )
