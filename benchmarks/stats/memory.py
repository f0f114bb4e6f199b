"""Peak memory of fit-stats against the number of rows."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from features import ROW_BYTES, make_cache, num_rows_of

ONE_FIT = Path(__file__).with_name("peak.py")


def memory(options: argparse.Namespace) -> list[str]:
    """Peak anonymous memory of a fresh process over growing caches, looked at every 5 ms."""
    lines = ["| rows | features | peak RssAnon |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for part in (8, 4, 2, 1):
            num_rows = num_rows_of(options.gib) // part
            cache = make_cache(Path(folder) / f"{num_rows}.cache", num_rows)
            output = subprocess.run(
                [sys.executable, str(ONE_FIT), str(cache.path)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            size = num_rows * ROW_BYTES / 2**30
            lines.append(f"| {num_rows:,} | {size:.2f} GiB | {float(output):,.0f} MiB |")
            shutil.rmtree(cache.path)
    return lines
