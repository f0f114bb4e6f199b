"""The numbers a report says about a cache: read, computed, never drawn.

For the moments (mean m, population covariance S) of c channels and a normalizer W:
    channel variances       v = diag(W S W^T)
    error of the mean       e = mean(v), the MSE of a student that has learnt the means alone
    share of a teacher      e_t / sum of e over teachers, patch terms weighted 1 each
Held-out channel variances take S from held-out rows and W from training rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from phistill.cache import Cache
from phistill.cache.format.info import DTYPES
from phistill.errors import UsageError
from phistill.stats import (
    METHODS,
    Description,
    Moments,
    Normalizer,
    load_description,
    load_moments,
    load_normalizer,
)
from phistill.stats.heldout import heldout_variances
from phistill.stats.normalizer.methods import eigenbasis

PATCHES = "patches"
BEFORE = "none"
AFTER = "phi-s"
BATCH_ROWS = 32
MAP_AXES = 3
"""Principal components of a map: red, green, blue."""

Note = Callable[[str], None]
"""Told what is being worked on."""


@dataclass(frozen=True, kw_only=True)
class ArrayFacts:
    """One array of a teacher: its statistics and its size."""

    stats: Description
    num_tokens: int
    grid: tuple[int, int] | None
    """Of patches; None for other kinds."""

    row_bytes: int
    """Bytes of one image's features in the cache."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchFacts:
    """What is drawn of a teacher's patches."""

    teacher: str
    grid: tuple[int, int]
    mean: Float[np.ndarray, " c"]
    eigenvalues: Float[np.ndarray, " c"]
    """Of the training covariance, descending."""

    axes: Float[np.ndarray, "c 3"]
    """Leading eigenvectors; fewer columns when the width is below 3."""

    train: Mapping[str, Float[np.ndarray, " c"]]
    """Channel variances on training rows, by method."""

    heldout: Mapping[str, Float[np.ndarray, " c"]]
    """The same on held-out rows; empty when there are none."""

    chance: tuple[float, float] | None
    """Where all held-out channel variances after PHI-S lie if only chance is at work (see
    stats/heldout.py); None where that was not measured."""

    @property
    def width(self) -> int:
        """c."""
        return len(self.mean)

    @property
    def phi(self) -> float:
        """sqrt(mean eigenvalue)."""
        return float(np.sqrt(np.mean(self.eigenvalues)))


@dataclass(frozen=True, eq=False, kw_only=True)
class CacheFacts:
    """Everything a report says about a cache."""

    path: str
    num_images: int
    num_rows: int
    num_train: int
    num_heldout: int
    num_measured: int
    """Held-out rows that were read for the channel variances."""

    arrays: tuple[ArrayFacts, ...]
    patches: tuple[PatchFacts, ...]
    methods: tuple[str, ...]
    shares: Mapping[str, Mapping[str, float]]
    """By method, then teacher; each method's shares add up to 1."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """In the order of the cache."""
        return tuple(facts.teacher for facts in self.patches)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's features, all teachers together."""
        return sum(array.row_bytes for array in self.arrays)


@dataclass(frozen=True, kw_only=True)
class ShareExtremes:
    """Who would own an unweighted sum of raw patch errors."""

    largest: str
    largest_share: float
    smallest: str
    smallest_share: float

    @property
    def ratio(self) -> float:
        """Largest over smallest share."""
        return self.largest_share / self.smallest_share if self.smallest_share else math.inf


def gather_cache(
    cache: Cache,
    *,
    methods: Sequence[str],
    max_heldout_rows: int,
    note: Note = lambda text: None,
) -> CacheFacts:
    """Read a cache's statistics and measure its held-out rows under every method.

    Raises UsageError for an unknown method, IncompleteCache, MissingMoments and StaleMoments as the
    rooms below do.
    """
    chosen = check_methods(methods)
    cache.require_complete()
    heldout = cache.rows(split="heldout")
    measured = heldout[:max_heldout_rows]
    index = cache.index()
    patches = []
    for name in cache.teachers:
        note(f"{name}: channel variances")
        # chance_range reads every held-out row of the teacher, so only where those are few.
        few = 1 < heldout.size <= max_heldout_rows
        chance = chance_range(cache, name) if few else None
        patches.append(gather_patches(cache, name, chosen, measured, chance))
    return CacheFacts(
        path=cache.location,
        num_images=len(set(index["id"].to_pylist())),
        num_rows=index.num_rows,
        num_train=cache.rows(split="train").size,
        num_heldout=heldout.size,
        num_measured=measured.size,
        arrays=tuple(gather_arrays(cache)),
        patches=tuple(patches),
        methods=chosen,
        shares={method: loss_shares(patches, method) for method in chosen},
    )


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods in the order of METHODS, none and phi-s always among them."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise UsageError(
            f"normalizers={list(methods)}: {', '.join(unknown)} is not one of {', '.join(METHODS)}."
        )
    return tuple(method for method in METHODS if method in {*methods, BEFORE, AFTER})


def gather_arrays(cache: Cache) -> list[ArrayFacts]:
    """One entry per teacher and kind, in the cache's order."""
    arrays = []
    for name in cache.teachers:
        teacher = cache.teacher(name)
        for kind in teacher.kinds:
            shape, stored = teacher.row_shape(kind), teacher.array_of(kind)
            arrays.append(
                ArrayFacts(
                    stats=load_description(cache, name, kind),
                    num_tokens=math.prod(shape[:-1]),
                    grid=teacher.grid if kind == PATCHES else None,
                    row_bytes=math.prod(teacher.arrays[stored]) * DTYPES[stored].itemsize,
                )
            )
    return arrays


def gather_patches(
    cache: Cache,
    teacher: str,
    methods: Sequence[str],
    heldout: Int[np.ndarray, " n"],
    chance: tuple[float, float] | None,
) -> PatchFacts:
    """Spectrum, leading axes and channel variances of one teacher's patches."""
    moments = load_moments(cache, teacher, PATCHES)
    eigenvalues, axes = eigenbasis(moments)
    normalizers = {method: load_normalizer(cache, teacher, PATCHES, method) for method in methods}
    unseen = moments_of_rows(cache, teacher, heldout)
    return PatchFacts(
        teacher=teacher,
        grid=cache.teacher(teacher).grid,
        mean=moments.mean,
        eigenvalues=eigenvalues,
        axes=axes[:, :MAP_AXES],
        train={m: channel_variances(moments, n) for m, n in normalizers.items()},
        heldout={m: channel_variances(unseen, n) for m, n in normalizers.items() if unseen.n},
        chance=chance,
    )


def chance_range(cache: Cache, teacher: str) -> tuple[float, float]:
    """The range of PatchFacts.chance, from the teacher's held-out rows."""
    (row,) = heldout_variances(cache, teacher, PATCHES, (AFTER,))
    return row.expected_min, row.expected_max


def moments_of_rows(cache: Cache, teacher: str, rows: Int[np.ndarray, " n"]) -> Moments:
    """Moments of the patches of some rows, read in batches."""
    reader = cache.reader(teacher, PATCHES)
    total = Moments.zero(reader.row_shape[-1])
    for start in range(0, len(rows), BATCH_ROWS):
        total = total + Moments.of(reader.read(rows[start : start + BATCH_ROWS]))
    return total


def channel_variances(moments: Moments, normalizer: Normalizer) -> Float[np.ndarray, " c"]:
    """diag(W S W^T), float64: the variance of every channel of W (x - mean)."""
    w = normalizer.forward
    return np.asarray(np.einsum("ij,ij->i", w @ moments.covariance, w))


def loss_shares(patches: Sequence[PatchFacts], method: str) -> dict[str, float]:
    """Each teacher's share of the summed errors of the mean, training rows."""
    errors = {facts.teacher: float(np.mean(facts.train[method])) for facts in patches}
    total = sum(errors.values())
    return {teacher: error / total for teacher, error in errors.items()}


def share_extremes(shares: Mapping[str, float]) -> ShareExtremes | None:
    """The teachers with the largest and the smallest share; None for fewer than two teachers."""
    if len(shares) < 2:
        return None
    largest = max(shares, key=lambda name: shares[name])
    smallest = min(shares, key=lambda name: shares[name])
    return ShareExtremes(
        largest=largest,
        largest_share=shares[largest],
        smallest=smallest,
        smallest_share=shares[smallest],
    )
