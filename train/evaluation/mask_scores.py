"""A dense probe: what tokens say of the label maps (masks, segmentations) of images.

Per kind of features a logistic regression of single tokens, taught by the share of each class among
the pixels under a token; its logits are interpolated to the map, and the largest names the pixel.

n images, (s, s) pixels of a map, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.errors import UsageError
from phistill.stats.intervals import Interval, by_image, interval

from ..checkpoint import caches_of_run
from ..data.source import Source, parts_of
from ..data.stream import Rows
from ..student.predict import load_run
from .features import FeatureReader
from .fidelity import BATCH_ROWS
from .index import images_of
from .probes import PENALTIES, fitted
from .tasks import CONSTANT, TaskScore, in_order
from .teacher_tools import mean_iou, overlaps

ReadMaps = Callable[[JoinedCaches, Rows], Int[np.ndarray, "n s s"]]
"""The class of every pixel of the view that a row shows, int16; below 0 where it is not counted."""

MAX_TAUGHT_TOKENS = 50_000
"""Tokens of one kind that a probe learns from."""

MAX_ASKED = 2000
"""Images whose maps are wanted."""

LOGIT_BYTES = 2**28
"""Of interpolated logits at once."""

TASK = "mean IoU"


def mask_scores(
    run: Path | str,
    maps: ReadMaps,
    cache: CacheArgument | None = None,
    *,
    which: str = "latest",
    split: Split = "heldout",
    device: str = "auto",
) -> list[TaskScore]:
    """Mean intersection over union of teachers, student, untrained student, pixels and constant.

    Taught by training rows that ``split`` does not have. The constant is the class that most
    pixels have. UsageError where too few maps are there.
    """
    student = load_run(run, which=which, device=device)
    untrained = load_run(run, which=which, untrained=True, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    reader = FeatureReader(Source(caches, student.targets), student, untrained)
    teachers = list(student.facts["teachers"])
    asked = np.concatenate([part.rows for part in parts_of(caches, teachers, split, MAX_ASKED)])
    taught = np.setdiff1d(caches.rows(teachers, "train"), asked)
    taught = taught[np.random.default_rng(0).permutation(len(taught))]
    num_tokens = max((t.grid[0] * t.grid[1] for t in student.targets if t.grid), default=1)
    taught, known = _with_map(caches, maps, taught[: MAX_TAUGHT_TOKENS // num_tokens])
    asked, wanted = _with_map(caches, maps, asked)
    num_classes = 1 + max(int(known.max(initial=0)), int(wanted.max(initial=0)))
    if len(taught) < len(PENALTIES) or not len(asked) or num_classes < 2:
        raise UsageError(
            f"{len(taught)} training images and {len(asked)} {split} ones have a label map, of "
            f"{num_classes} classes: a probe needs some of both, and two classes."
        )
    given = reader.grids(taught)
    probes = {name: _taught(values, known, num_classes) for name, values in given.items()}
    commonest = int(np.bincount(known[known >= 0]).argmax())
    sums: dict[str, list[Float[np.ndarray, "b k2"]]] = {}
    for start in range(0, len(asked), BATCH_ROWS):
        truth = torch.from_numpy(wanted[start : start + BATCH_ROWS]).to(student.device)
        for name, values in reader.grids(asked[start : start + BATCH_ROWS]).items():
            named = _drawn(values, probes[name], truth.shape[-1], num_classes)
            sums.setdefault(name, []).append(overlaps(named, truth, num_classes))
        same = torch.full_like(truth, commonest)
        sums.setdefault(CONSTANT, []).append(overlaps(same, truth, num_classes))
    images = images_of(caches, asked)
    return [
        TaskScore(
            task=TASK,
            features=name,
            score=_iou(np.concatenate(sums[name]), images),
            num_classes=num_classes,
        )
        for name in in_order(list(sums))
    ]


def _with_map(
    caches: JoinedCaches, maps: ReadMaps, rows: Rows
) -> tuple[Rows, Int[np.ndarray, "n s s"]]:
    found = maps(caches, rows)
    has = (found >= 0).any(axis=(1, 2))
    return rows[has], found[has]


def _taught(
    tokens: Float[Tensor, "n h w c"], maps: Int[np.ndarray, "n s s"], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Weight (k, c) and bias (k,) on tokens as they are. The penalty is chosen on a fifth of the
    images, by cross entropy."""
    share = _shares(torch.from_numpy(maps).to(tokens.device), tokens.shape[1:3], num_classes)
    mean, std = tokens.mean((0, 1, 2)), tokens.std((0, 1, 2))
    std = torch.where(std > 0, std, 1.0)
    inputs = (tokens - mean) / std
    num_aside = len(tokens) // len(PENALTIES)

    def part(images: slice) -> tuple[Tensor, Tensor]:
        x, y = inputs[images].flatten(0, 2), share[images].flatten(0, 2)
        counted = y.sum(1) > 0
        return x[counted], y[counted] / y[counted].sum(1, keepdim=True)

    aside, kept = part(slice(num_aside)), part(slice(num_aside, None))
    losses = [
        float(F.cross_entropy(F.linear(aside[0], *fitted(*kept, num_classes, penalty)), aside[1]))
        for penalty in PENALTIES
    ]
    best = PENALTIES[int(np.nanargmin(losses))]
    weight, bias = fitted(*part(slice(None)), num_classes, best)
    return weight / std, bias - (weight / std) @ mean


def _shares(
    maps: Int[Tensor, "n s s"], grid: tuple[int, ...], num_classes: int
) -> Float[Tensor, "n h w k"]:
    """Of the pixels under each token; what is not counted is missing from the sum."""
    size = (int(grid[0]), int(grid[1]))
    each = [F.adaptive_avg_pool2d((maps == one).float(), size) for one in range(num_classes)]
    return torch.stack(each, -1)


def _drawn(
    tokens: Float[Tensor, "n h w c"], probe: tuple[Tensor, Tensor], side: int, num_classes: int
) -> Int[Tensor, "n s s"]:
    logits = F.linear(tokens, *probe).permute(0, 3, 1, 2)
    step = max(1, LOGIT_BYTES // (4 * num_classes * side * side))
    parts = [
        F.interpolate(some, (side, side), mode="bilinear").argmax(1) for some in logits.split(step)
    ]
    return torch.cat(parts)


def _iou(sums: Float[np.ndarray, "n k2"], images: NDArray[Any]) -> Interval:
    return interval(by_image(sums, images), mean_iou)
