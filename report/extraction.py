"""What an extraction says at its end; the live line is `ExtractProgress.note`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phistill.cache.storage.lock import Holder
from phistill.errors import counted
from phistill.pipeline import ExtractProgress, ExtractReport
from phistill.pipeline.images.source import left_out_text
from phistill.pipeline.settings import WorkerShards

from .terminal import bytes_text, duration_text, licences_text

MAX_NAMED = 5
"""Shards of a worker that are named, of those that are left."""


def summary_text(
    report: ExtractReport, images: str, worker: WorkerShards | None, last: ExtractProgress | None
) -> str:
    """What was done, what the cache holds now, and what it lacks; ``last`` is the last progress."""
    return "\n".join(_summary(report, images, worker, last))


def rejects_text(rejects: Sequence[tuple[str, str]]) -> str:
    """A line per rejected image: its id and why."""
    return "\n".join(f"  {name}: {reason}" for name, reason in rejects)


def _summary(
    report: ExtractReport, images: str, worker: WorkerShards | None, last: ExtractProgress | None
) -> Iterator[str]:
    cache, location = report.cache, report.cache.location
    who = f"{location}, worker {worker}" if worker else location
    if report.num_shards:
        yield (
            f"{who}: {bytes_text(report.written_bytes)} written in "
            f"{duration_text(report.elapsed_s)}{_speed(last)}."
        )
    elif not report.out_of_time:
        yield f"{who}: nothing to do." if worker else f"{location} is complete: nothing to do."
    if worker and report.missing_shards and not report.out_of_time:
        command = f"phistill extract {images} --cache {location}"
        yield from who_misses(report.missing_shards, worker, cache.files.holders(), command)
        return
    yield f"{counted(cache.info.num_real_rows, 'row')}, teachers {', '.join(cache.teachers)}."
    yield licences_text({name: cache.teacher(name).licence for name in cache.teachers})
    if report.rejects:
        yield f"{len(report.rejects)} rejected:"
        yield rejects_text(report.rejects[:10])
    if len(report.rejects) > 10:
        yield f"  and {len(report.rejects) - 10} more: phistill inspect {location} --rejects"
    if left_out := left_out_text(report.left_out):
        yield left_out[:1].upper() + left_out[1:]
    yield from map(str, report.coarse)
    yield from report.unlike_pilot
    if report.num_repaired:
        yield f"Damaged, and extracted again: {counted(report.num_repaired, 'shard')}."
    if report.num_new_images:
        new = counted(report.num_new_images, "image")
        yield f"Not in it: {new} of {images}. Add what is new with --append."


def _speed(last: ExtractProgress | None) -> str:
    """How fast it was, for the line at the end; nothing where nothing was computed."""
    if last is None or not last.computed_rows:
        return ""
    known = "" if last.busy is None else f", with the teachers busy {last.busy:.0%} of the time"
    return f" (once the teachers ran, {last.images_per_s:,.1f} images/s{known})"


def who_misses(
    missing: Sequence[int], worker: WorkerShards, writing: Sequence[Holder], command: str
) -> list[str]:
    """A line for each worker that has not finished: which shards are left, and who extracts them
    or how ``command`` does."""
    lines = []
    for index in sorted({shard % worker.count for shard in missing}):
        other = WorkerShards(index, worker.count)
        theirs = other.of(missing)
        them = "it" if len(theirs) == 1 else "them"
        who = " and ".join(str(holder) for holder in writing if any(map(holder.may_hold, theirs)))
        todo = (
            f"{who} is extracting {them}."
            if who
            else (f"nobody is extracting {them}; run `{command} --worker {other}`.")
        )
        named = ", ".join(map(str, theirs[:MAX_NAMED])) + (", ..." if theirs[MAX_NAMED:] else "")
        lines.append(f"{counted(len(theirs), 'shard')} left of worker {other} ({named}): {todo}")
    return lines
