"""Channel variances of a cache's own features, normalised."""

from __future__ import annotations

import argparse

import numpy as np

import phistill.cache as store
from phistill.stats import fit_stats, load_normalizer
from phistill.stats.heldout import heldout_variances


def heldout(options: argparse.Namespace) -> list[str]:
    """Variances of normalised channels: on the rows they were fitted on, and on held-out ones."""
    cache = store.open(options.cache)
    fit_stats(cache)
    lines = [
        "| teacher, kind | method | own rows, max abs(var - 1) | held-out rows | min | mean | max "
        "| expected for so many images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).kinds:
            x = cache.reader(teacher, kind).read(cache.rows([teacher]))
            for row in heldout_variances(cache, teacher, kind):
                y = load_normalizer(cache, teacher, kind, row.method).transform(x)
                variance = y.reshape(-1, y.shape[-1]).var(axis=0, dtype=np.float64)
                lines.append(
                    f"| {teacher} {kind} | {row.method} | {np.max(np.abs(variance - 1)):.1e} "
                    f"| {row.num_rows} | {row.variance_min:.3f} | {row.variance_mean:.3f} "
                    f"| {row.variance_max:.3f} | {row.expected_min:.2f} .. {row.expected_max:.2f} |"
                )
    return lines
