"""Prints the largest anonymous memory, in MiB, that fit-stats of one cache takes in a process."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

from machine import Peak

import phistill.cache as store
from phistill.stats import fit_stats

if __name__ == "__main__":
    cache = store.open(sys.argv[1])
    with Peak(every_s=0.005) as peak:
        fit_stats(cache)
    print(peak.megabytes)
