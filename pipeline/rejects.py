"""Rows that were left out, why, and how many a run may have."""

from __future__ import annotations

from collections import Counter

import numpy as np

from phistill.cache import Cache, CommitRecord
from phistill.errors import TooManyRejects

MAX_REJECT_FRAC = 0.01
"""Share of the rows that may be rejected when the caller does not say."""

FREE_REJECTS = 10
"""Rejects that are always allowed then: one bad file of twenty stops nothing."""


LOOK_AGAIN = 1.1
"""What others rejected is counted again when ours grew by this factor: the work stays linear."""


def rejects(cache: Cache) -> tuple[tuple[str, str], ...]:
    """(id, reason) of every rejected row, each row once."""
    reasons = sorted(_reasons(cache).items())
    rows = np.array([row for row, _ in reasons], np.int64)
    ids = cache.lines(rows, ["id"])["id"].to_pylist() if reasons else []
    return tuple((name, reason) for name, (_, reason) in zip(ids, reasons, strict=True))


class RejectBudget:
    """How many rows are rejected, and how many may be."""

    def __init__(self, cache: Cache, max_frac: float | None) -> None:
        """``max_frac`` of all rows; None: MAX_REJECT_FRAC, but never fewer than FREE_REJECTS."""
        self._cache = cache
        self._reasons: dict[int, str] = {}
        self._look_again_at = 0.0
        self.count_again()
        self._total = sum(segment.num_rows for segment in cache.info.segments)
        self._allowed = (
            max(MAX_REJECT_FRAC * self._total, FREE_REJECTS)
            if max_frac is None
            else max_frac * self._total
        )

    @property
    def num_rejects(self) -> int:
        return len(self._reasons)

    def spend(self, record: CommitRecord) -> None:
        """Count the rejects of a shard that was committed; errors as check."""
        if not record.reasons:
            return
        for slot, reason in record.reasons.items():
            self._reasons.setdefault(record.start + slot, reason)
        if self.num_rejects >= self._look_again_at:
            self.count_again()
        self.check()

    def count_again(self) -> None:
        """Count what other workers rejected in the meantime too."""
        self._reasons = _reasons(self._cache)
        self._look_again_at = LOOK_AGAIN * self.num_rejects + 1

    def check(self) -> None:
        """TooManyRejects when there are more than allowed, whichever run met them: a queue that
        repeats the command must not turn a refusal into a success."""
        if self.num_rejects > self._allowed:
            common = Counter(self._reasons.values()).most_common(3)
            listed = "; ".join(f"{reason} ({count})" for reason, count in common)
            raise TooManyRejects(
                f"{self.num_rejects} of {self._total} rows were rejected, more than the allowed "
                f"{self._allowed:.0f}: {listed}. Allow more with --max-reject-frac; the work so "
                "far is kept. Or mend them and begin a new cache (imported features: "
                "remove-teacher, and import again): a rejected row stays rejected."
            )


def _reasons(cache: Cache) -> dict[int, str]:
    """Why a row was rejected, by row; the first owner's word where several rejected it."""
    reasons: dict[int, str] = {}
    for owner in reversed(cache.owners):
        reasons.update(cache.commits(owner).reasons())
    return reasons
