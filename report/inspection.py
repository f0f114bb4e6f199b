"""What a cache holds, without reading a feature: from its root, commit records and statistics."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.committed.commits import Commits
from phistill.cache.format import names
from phistill.cache.format.info import DTYPES
from phistill.display import table_text
from phistill.errors import CorruptCache, MissingMoments, StaleMoments, counted, percent
from phistill.pipeline.images.source import USED, left_out_text
from phistill.stats import PassOptions, load_description, load_options
from phistill.stats.compacting import SUSPICIOUS

from .terminal import UNKNOWN_LICENCE, bytes_text

READY, STALE, MISSING, DAMAGED = "ready", "stale", "missing", "damaged"
"""State of an array's statistics: usable, of other rows than now, never taken, or unreadable."""

_USUAL = msgspec.to_builtins(PassOptions())


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedRow:
    """A row that one owner or all of them left out, and why."""

    row: int
    id: str
    owners: tuple[str, ...]
    """``pixels`` and teachers that rejected it."""

    reason: str


def describe(cache: Cache | Path | str) -> dict[str, Any]:
    """Everything about a cache that is not a feature, as JSON values.

    path, format, rows, images, shards, shard_rows; finish: the commands that make missing shards;
    splits: usable train and heldout rows; owners: by name committed and total shards, bytes, kinds
    with shapes, rejected rows; rejects: number of rows and count by reason; sources: per listing of
    images how many were listed, taken, known before and, by kind, left out; settings; teachers:
    spec, fingerprint, statistics by kind. An unfinished cache is described as far as it is.
    """
    opened = cache if isinstance(cache, Cache) else store.open(cache)
    commits = {owner: opened.commits(owner) for owner in opened.owners}
    shards = opened.info.shards()
    rejected = rejected_rows(opened)
    settings = msgspec.json.decode(msgspec.json.encode(opened.info))
    for name in ("segments", "teachers", "format", "sources"):
        settings.pop(name)
    return {
        "path": opened.location,
        "format": opened.info.format,
        "rows": opened.info.num_real_rows,
        "images": opened.num_images(),
        "segments": len(opened.info.segments),
        "shards": len(shards),
        "bytes": sum(int(records.shard_bytes.sum()) for records in commits.values()),
        "complete": all(len(records) == len(shards) for records in commits.values()),
        "finish": sorted(
            {opened.finishing(o) for o, records in commits.items() if len(records) < len(shards)}
        ),
        "splits": {name: int(opened.rows(split=name).size) for name in ("train", "heldout")},
        "owners": {
            owner: _owner(opened, owner, records, len(shards)) for owner, records in commits.items()
        },
        "rejects": {
            "rows": len(rejected),
            "reasons": dict(Counter(entry.reason for entry in rejected).most_common()),
        },
        "sources": [_source(listing) for listing in opened.info.sources],
        "settings": settings,
        "teachers": {name: _teacher(opened, name) for name in opened.teachers},
    }


def describe_codes(cache: Cache, name: str) -> dict[str, Any]:
    """By kind that a teacher has as codes: bits per channel, bytes of a row, how many times smaller
    than the floats, the share of variance lost by the pilot, by the shards on average and at most,
    and the shards that lose SUSPICIOUS times the pilot's."""
    teacher, found = cache.teacher(name), {}
    for kind, stored in teacher.codecs.items():
        commits = cache.commits(name)
        lost = commits.lost(names.codes(kind))
        num_values = math.prod(teacher.row_shape(kind))
        found[kind] = {
            "bits": 8 * stored.num_bytes / num_values,
            "row_bytes": stored.num_bytes,
            "times_smaller": num_values * DTYPES[kind].itemsize / stored.num_bytes,
            "lost_pilot": stored.lost_share,
            "lost_mean": float(lost.mean()) if lost.size else None,
            "lost_most": float(lost.max()) if lost.size else None,
            "shards_unlike_pilot": commits.shards[lost > SUSPICIOUS * stored.lost_share].tolist(),
        }
    return found


def codes_text(cache: Cache) -> str:
    """A line for each array of codes; empty where there is none."""
    return "\n".join(
        f"{name} {_codes_line(kind, facts)}"
        for name in cache.teachers
        for kind, facts in describe_codes(cache, name).items()
    )


def _codes_line(kind: str, facts: Mapping[str, Any]) -> str:
    lost = facts["lost_mean"]
    told = "" if lost is None else f"; they lose {percent(lost)} of the variance, at most "
    told += "" if lost is None else f"{percent(facts['lost_most'])} in a shard"
    return (
        f"{kind} as codes: {counted(facts['bits'], 'bit')} per channel, "
        f"{bytes_text(facts['row_bytes'])} a row, 1/{facts['times_smaller']:.3g} of "
        f"{DTYPES[kind].name}{told} (pilot {percent(facts['lost_pilot'])})"
    )


def rejected_rows(cache: Cache) -> list[RejectedRow]:
    """Every row that somebody rejected, ascending, with the first reason given."""
    commits = {owner: cache.commits(owner) for owner in cache.owners}
    every = [np.empty(0, np.int64), *(one.rejected for one in commits.values())]
    rows = np.unique(np.concatenate(every))
    names = cache.lines(rows, ["id"])["id"].to_pylist() if rows.size else []
    ids = dict(zip(rows.tolist(), names, strict=True))
    by_row: dict[int, RejectedRow] = {}
    for owner in cache.owners:
        for row, reason in commits[owner].reasons():
            before = by_row.get(row)
            by_row[row] = RejectedRow(
                row=row,
                id=str(ids[row]),
                owners=(*(before.owners if before else ()), owner),
                reason=before.reason if before else reason,
            )
    return [by_row[row] for row in sorted(by_row)]


def render(description: Mapping[str, Any]) -> str:
    """The description for a terminal, no trailing newline."""
    facts, splits = description, description["splits"]
    shape = "" if facts["rows"] == facts["images"] else f" in {counted(facts['rows'], 'view')}"
    state = "complete" if facts["complete"] else "unfinished"
    lines = [
        f"{facts['path']}: {state}, {counted(facts['images'], 'image')}{shape}, "
        f"{bytes_text(facts['bytes'])} in {counted(facts['shards'], 'shard')}, "
        f"format {facts['format']}",
        f"usable rows: {splits['train']:,} for training, {splits['heldout']:,} held out",
        "",
        table_text(
            ("owner", "shards", "bytes", "rejected", "arrays"),
            [
                (
                    name,
                    f"{owner['committed']}/{owner['shards']}",
                    bytes_text(owner["bytes"]),
                    str(owner["rejected"]),
                    ", ".join(f"{k} {_shape(v)}" for k, v in owner["arrays"].items()),
                )
                for name, owner in facts["owners"].items()
            ],
            words=(0, 4),
        ),
    ]
    if not facts["complete"]:
        lines += ["", *(f"Finish it with `{command}`." for command in facts["finish"])]
    if facts["rejects"]["rows"]:
        lines += ["", f"{facts['rejects']['rows']:,} rejected rows:"]
        lines += [f"  {count:,} x {why}" for why, count in facts["rejects"]["reasons"].items()]
    if facts["sources"]:
        lines += ["", *map(_source_text, facts["sources"])]
    for name, teacher in facts["teachers"].items():
        lines += ["", f"{name}: {teacher['spec'] or 'no spec stored'}"]
        lines.append(f"  licence: {teacher['licence'] or UNKNOWN_LICENCE}")
        fingerprint = {k: v for k, v in teacher["fingerprint"].items() if k != "widths"}
        lines += [f"  {key}: {_plain(value)}" for key, value in sorted(fingerprint.items())]
        lines += [f"  {_codes_line(*item)}" for item in teacher["codes"].items()]
        lines += [f"  statistics of {_statistics(*item)}" for item in teacher["statistics"].items()]
    lines += ["", "settings"]
    lines += [f"  {key}: {_plain(value)}" for key, value in sorted(facts["settings"].items())]
    return "\n".join(lines)


def _source(listing: Mapping[str, Any]) -> dict[str, Any]:
    """A listing with the number of all files that it saw: taken, known before or left out."""
    left_out = sum(listing["left_out"].values())
    return {**listing, "num_listed": listing["num_images"] + listing["num_known"] + left_out}


def _source_text(listing: Mapping[str, Any]) -> str:
    options = [f"--{key.replace('_', '-')} {listing[key]}" for key in USED[1:] if listing.get(key)]
    known = f" + {listing['num_known']:,} here before" if listing["num_known"] else ""
    num_left_out = sum(listing["left_out"].values())
    kinds = left_out_text(listing["left_out"], num_named=len(listing["left_out"]))
    return (
        f"images, read as {' '.join([listing['kind'], *options])}: {listing['num_listed']:,} "
        f"listed = {listing['num_images']:,} taken{known} + {num_left_out:,} left out"
        + (f" ({kinds.removeprefix('left out: ').rstrip('.')})" if kinds else "")
    )


def _owner(cache: Cache, owner: str, commits: Commits, num_shards: int) -> dict[str, Any]:
    return {
        "committed": len(commits),
        "shards": num_shards,
        "bytes": int(commits.shard_bytes.sum()),
        "rejected": len(commits.rejected),
        "arrays": {kind: list(shape) for kind, shape in cache.shapes(owner).items()},
    }


def _teacher(cache: Cache, name: str) -> dict[str, Any]:
    teacher = cache.teacher(name)
    return {
        "spec": teacher.spec,
        "rows_per_forward": teacher.rows_per_forward,
        "licence": teacher.licence or None,
        "fingerprint": teacher.fingerprint,
        "codes": describe_codes(cache, name),
        "statistics": {kind: _state(cache, name, kind) for kind in teacher.kinds},
    }


def _state(cache: Cache, teacher: str, kind: str) -> dict[str, Any]:
    try:
        row = load_description(cache, teacher, kind)
    except MissingMoments:
        return {"state": MISSING}
    except StaleMoments:
        return {"state": STALE}
    except CorruptCache:
        return {"state": DAMAGED}
    options = msgspec.to_builtins(load_options(cache, teacher, kind))
    return {
        "state": READY,
        "phi": row.phi,
        "rows": row.num_rows,
        "rotation": row.rotation,
        "options": {name: value for name, value in options.items() if value != _USUAL[name]},
    }


def _statistics(kind: str, state: Mapping[str, Any]) -> str:
    if state["state"] != READY:
        return f"{kind}: {state['state']}"
    taken = "".join(f", {name} {_plain(value)}" for name, value in state["options"].items())
    return (
        f"{kind}: phi {state['phi']:.4g} from {counted(state['rows'], 'row')}, {state['rotation']}"
        f"{taken}"
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _plain(value: Any) -> str:
    return (value or "none") if isinstance(value, str) else json.dumps(value, default=str)
