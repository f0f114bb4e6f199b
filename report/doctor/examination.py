"""All checks, one after the other. Nothing touches the network unless asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from phistill.errors import PhistillError

from .findings import Finding
from .installation import extras, hub, teacher_sources, torch_fits, versions
from .machine import cores, decoding, devices, disks, system
from .stored import cache_state, run_state


def doctor(
    cache: Path | str | None = None, run: Path | None = None, *, network: bool = False
) -> tuple[Finding, ...]:
    """Look at versions, devices, disks, decoding, the hub's cache, and a cache and a run if given.

    ``network`` asks the hub whether it answers. A check that fails by itself is a finding too.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions, extras, system, torch_fits, devices, cores, lambda: disks(cache), decoding,
        teacher_sources,
        lambda: hub(network=network),
    ]  # fmt: skip
    if cache is not None:
        checks.append(lambda: cache_state(cache))
    if run is not None:
        checks.append(lambda: run_state(run, cache))
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except PhistillError as error:
            findings.append(Finding("doctor", "problem", str(error)))
        except Exception as error:  # a broken installation may raise anything; say so and go on
            findings.append(
                Finding("doctor", "problem", f"a check failed: {type(error).__name__}: {error}",
                        "Install phistill anew; if it stays, report it with this line.")
            )  # fmt: skip
    return tuple(findings)
