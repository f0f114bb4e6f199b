"""Memory that stays with the process between steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from phistill.compute.allocator import keeping_freed_memory

FAULTS = textwrap.dedent("""
    import contextlib, resource, sys
    import torch
    from phistill.compute.allocator import keeping_freed_memory

    def step():
        big = [torch.ones(2_000_000 * (n + 1)) for n in range(6)]  # 8 to 48 MB

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep = keeping_freed_memory if sys.argv[1] == "kept" else contextlib.nullcontext
    with keep(torch.device("cpu")):
        for _ in range(3):  # the heap finds its size
            step()
        before = faults()
        for _ in range(5):
            step()
        print(faults() - before)
""")


def faults(how: str, **environment: str) -> int:
    """Page faults of five equal steps after the first three."""
    found = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True,
        text=True,
        check=True,
        env={**_plain_environment(), **environment},
    )
    return int(found.stdout)


def _plain_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_equal_steps_reuse_the_pages_of_the_first() -> None:
    # 168 MB a step are 41,000 pages. A heap that has not found its size after three steps may still
    # grow by the pages of one: not in every process.
    assert faults("returned") > 40_000
    assert min(faults("kept") for _ in range(4)) < 15_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_the_environment_says_about_malloc_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with keeping_freed_memory(torch.device("cpu")) as kept:
        assert not kept


def test_elsewhere_nothing_is_touched() -> None:
    with keeping_freed_memory(torch.device("meta")) as kept:
        assert not kept
