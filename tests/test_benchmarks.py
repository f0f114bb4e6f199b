"""The benchmarks are plain scripts: each starts from the root of the repository and says how it is
used. Their figures are in benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("run.py"))


@pytest.mark.parametrize("script", [*SCRIPTS, Path("benchmarks/teachers.py")], ids=str)
def test_a_benchmark_starts_as_a_plain_script(script: Path) -> None:
    """All its modules are imported, so that what was moved or renamed shows here."""
    ended = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage" in ended.stdout


def test_every_benchmark_is_found() -> None:
    assert {path.parent.name for path in SCRIPTS} >= {"cache", "extract", "scale", "stats", "train"}
