"""What a check of a whole cache found, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phistill.cache import Cache
from phistill.cache.upkeep.verify import VerifyReport
from phistill.errors import counted

from .terminal import bytes_text


def render(report: VerifyReport, cache: Cache, notes: Sequence[str] = ()) -> str:
    """A line per finding, then what to do, then what else there is to know."""
    findings = map(str, report.findings)
    return "\n".join([*findings, *_verdict(report, cache), *notes])


def _verdict(report: VerifyReport, cache: Cache) -> Iterator[str]:
    checked = f"{counted(report.num_files, 'file')}, {bytes_text(report.num_bytes)} checked"
    if not report.findings:
        yield f"{cache.location} is whole: {checked}."
    elif not report.damaged:
        unfinished = counted(len(report.findings), "shard")
        yield f"Nothing is damaged; unfinished: {unfinished}. {checked}."
        for command in dict.fromkeys(cache.finishing(f.owner) for f in report.findings):
            yield f"Finish with: {command}"
    elif any(not finding.owner for finding in report.damaged):
        yield (
            f"{len(report.damaged)} damaged; {checked}. What concerns the cache as a whole cannot "
            "be extracted again: restore that file from a copy, or make a new cache."
        )
    else:
        yield f"{len(report.damaged)} damaged; {checked}."
        features = {finding.owner for finding in report.damaged if not finding.statistics}
        imported = {name for name in cache.teachers if cache.teacher(name).is_imported}
        if features - imported:
            yield f"Mend it with: phistill extract IMAGES --cache {cache.location} --repair"
        if features & imported:
            yield (
                f"Mend {', '.join(sorted(features & imported))} with: phistill import-features "
                f"FEATURES --cache {cache.location} --repair"
            )
        if any(found.statistics and not found.irreplaceable for found in report.damaged):
            yield f"Mend statistics with: phistill fit-stats {cache.location} --repair"
