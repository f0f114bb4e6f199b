"""Whether a cache and a run are in order, by sizes and documents: no feature is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from phistill.cache import Cache, CommitRecord
from phistill.cache import open as open_cache
from phistill.cache.joined import open_caches
from phistill.cache.storage.local_files import LocalFiles
from phistill.errors import PhistillError, counted

from .findings import Finding


def cache_state(location: Path | str) -> Iterator[Finding]:
    """Takes no lock and writes nothing; a part that cannot be read hides no other."""
    try:
        cache = open_cache(location)
    except PhistillError as error:
        yield Finding("cache", "problem", str(error))
        return
    for look in (_contents, _writers, _shards, _moments):
        try:
            yield from look(cache)
        except PhistillError as error:
            advice = f"`phistill verify {location}` lists all of it."
            yield Finding("cache", "problem", str(error), advice)
    yield Finding(
        "cache", "ok", "sizes only were compared", f"phistill verify {location} reads it all."
    )


def _contents(cache: Cache) -> Iterator[Finding]:
    cache.index_columns()  # CorruptCache for an index that was changed at its end, or cut
    num_rows = counted(cache.info.num_real_rows, "row")
    teachers = ", ".join(cache.teachers) or "none"
    yield Finding("cache", "ok", f"{cache.location}: {num_rows}, teachers {teachers}")


def _writers(cache: Cache) -> Iterator[Finding]:
    for holder in cache.files.holders():
        yield Finding("cache", "note", f"it is being written by {holder}")
    if isinstance(cache.files, LocalFiles) and not os.access(cache.files.root, os.W_OK):
        yield Finding("cache", "note", f"{cache.location} cannot be written", "Reading works.")


def _shards(cache: Cache) -> Iterator[Finding]:
    rejected: set[int] = set()
    for owner in cache.owners:
        commits = cache.commits(owner)
        if missing := cache.missing_shards(owner):
            yield Finding(
                "cache", "problem",
                f"{owner}: {len(missing)} of {cache.info.num_shards} shards are missing",
                cache.finishing(owner),
            )  # fmt: skip
        if wrong := sorted(_wrong_sizes(cache, commits.values())):
            yield Finding(
                "cache", "problem",
                f"{owner}: gone or cut: {counted(len(wrong), 'file')}, {wrong[0]} first",
                f"phistill extract IMAGES --cache {cache.location} --repair",
            )  # fmt: skip
        rejected |= set(commits.rejected.tolist())
    if rejected:
        yield Finding(
            "cache", "note", f"rejected rows: {len(rejected):,}",
            f"phistill inspect {cache.location} --rejects",
        )  # fmt: skip


def _wrong_sizes(cache: Cache, records: Iterable[CommitRecord]) -> list[str]:
    committed = {name: size for record in records for name, (size, _) in record.files.items()}
    sizes: dict[str, int | None] = {}

    def look(name: str) -> None:
        sizes[name] = cache.files.size(name)

    cache.files.each(look, list(committed))
    return [name for name, size in committed.items() if sizes[name] != size]


def _moments(cache: Cache) -> Iterator[Finding]:
    from phistill.stats import load_moments

    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).kinds:
            if kind == "registers":
                continue
            try:
                load_moments(cache, teacher, kind)
            except PhistillError as error:
                yield Finding("cache", "problem", str(error))
            else:
                yield Finding("cache", "ok", f"{teacher}/{kind} has its statistics")


def run_state(path: Path, cache_path: Path | str | None) -> Iterator[Finding]:
    try:
        facts: Any = json.loads((path / "config.json").read_bytes())
        teachers = facts["teachers"]
        names = sorted(teachers.keys())
    except FileNotFoundError:
        yield Finding("run", "problem", f"{path} holds no config.json, so it is no run",
                      "Give the folder that `phistill train --out` made.")  # fmt: skip
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding("run", "problem", f"{path}/config.json cannot be read: {error}")
        return
    steps = sorted((path / "checkpoints").glob("*.safetensors"))
    yield Finding(
        "run", "ok", f"{path}: teachers {', '.join(names)}, {counted(len(steps), 'checkpoint')}"
    )
    if cache_path is None:
        return
    try:
        caches = open_caches(cache_path)
    except PhistillError:
        return  # said above
    from phistill.train.evaluation import refuse_other_teachers

    try:
        refuse_other_teachers(caches, teachers, path)
    except PhistillError as error:
        yield Finding("run", "problem", str(error))
    else:
        yield Finding("run", "ok", f"{cache_path} holds the teachers it was trained on")
