"""The verb ``export_features``: a cache's features as npy arrays or WebDataset tars.

The values are those of the cache, bit for bit; ``import_features`` makes a cache of them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache import Cache
from phistill.cache.format import names
from phistill.cache.format.split import HELDOUT, TRAIN, Split
from phistill.cache.storage import publish
from phistill.cache.storage.new_folder import MARK, filling
from phistill.cache.upkeep.place import require_outside
from phistill.errors import IncompleteCache, UsageError

from .feature_writing import ExportProgress, Selection, write_npy, write_tars
from .fields import FACTS, PIXELS, Field

FORMATS = ("npy", "webdataset")
ROWS_PER_TAR = 1000


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    path: Path
    num_rows: int
    files: tuple[str, ...]


def export_features(
    cache: Cache,
    out: Path | str,
    *,
    format: str = "npy",
    teachers: Sequence[str] = (),
    split: Split = "all",
    pixels: bool = False,
    unbiased: bool = False,
    rows_per_tar: int = ROWS_PER_TAR,
    progress: ExportProgress | None = None,
) -> ExportReport:
    """Write the rows that every chosen teacher has into a new folder, in the cache's order.

    ``pixels`` adds the student's pixels. Codes are written as the float32 rows nearest to the
    features, with ``unbiased`` as rows to learn from (RowCodec.decode). What a stopped call
    left in the folder is written again. Raises IncompleteCache when there is no such row,
    UsageError for a folder with other things and for ``unbiased`` where there are no codes.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r} is not one of {', '.join(FORMATS)}.")
    if rows_per_tar < 1:
        raise UsageError(f"rows_per_tar={rows_per_tar} must be at least 1.")
    chosen = list(teachers or cache.teachers)
    if not chosen:
        raise UsageError(f"{cache.location} has no teacher whose features could be exported.")
    fields: list[Field] = [(name, kind) for name in chosen for kind in cache.teacher(name).kinds]
    if pixels:
        cache.shapes(names.PIXELS)  # UsageError when none are stored
        fields.append(PIXELS)
    if unbiased and not any(cache.teacher(name).codecs for name in chosen):
        raise UsageError(
            f"unbiased is a way to decode codes, and {', '.join(chosen)} of {cache.location} "
            "have none: their features are written as they are."
        )
    rows = cache.rows(chosen, split)
    if not rows.size:
        raise IncompleteCache(
            f"{cache.location} has no {'' if split == 'all' else split + ' '}row that every one of "
            f"{', '.join(chosen)} committed and nobody removed."
        )
    folder = Path(out)
    require_outside(str(folder.resolve()), cache)
    if (folder / FACTS).exists() and not (folder / MARK).exists():
        raise UsageError(f"{folder} holds exported features already. Choose another folder.")
    table = _table(cache, chosen, rows)
    selection = Selection(
        cache=cache, fields=fields, rows=rows, table=table, unbiased=unbiased, progress=progress
    )
    with filling(folder):
        if format == "npy":
            files = write_npy(selection, folder)
        else:
            files = write_tars(selection, folder, rows_per_tar)
        facts = json.dumps(_facts(cache, chosen, len(rows), unbiased), indent=1, sort_keys=True)
        publish.publish_bytes(folder / FACTS, facts.encode())
    return ExportReport(folder, len(rows), (*files, FACTS))


def _facts(cache: Cache, teachers: Sequence[str], num_rows: int, unbiased: bool) -> dict[str, Any]:
    info = cache.info
    decoded = "unbiased" if unbiased else "nearest"
    has_split = "split" in cache.index_columns()
    return {
        "format": 1,
        "num_rows": num_rows,
        "order": "random",
        "seed": info.seed,
        "holdout": info.holdout,
        "split": "given" if has_split else "hash",
        "views": list(info.views),
        "teachers": {
            name: {
                "grid": list(teacher.grid),
                "identity": teacher.identity,
                "decoded": dict.fromkeys(teacher.codecs, decoded),
            }
            for name in teachers
            for teacher in [cache.teacher(name)]
        },
    }


def _table(cache: Cache, teachers: Sequence[str], rows: NDArray[np.int64]) -> pa.Table:
    """A line per row: id, view, label?, split, and what the commit records say of the image."""
    part = cache.lines(rows)
    columns = {"row": pa.array(rows), "id": part["id"], "view": part["view"]}
    if "label" in part.column_names:
        columns["label"] = part["label"]
    heldout = np.isin(rows, cache.rows(teachers, HELDOUT))
    columns["split"] = pa.array([HELDOUT if held else TRAIN for held in heldout])
    facts = cache.facts().take(rows)
    columns["sha256"] = pa.array(facts.hashes(), pa.string())
    columns["size"] = pa.array(facts.sizes(), pa.list_(pa.int64()))
    columns["box"] = pa.array(facts.boxes(), pa.list_(pa.int64()))
    return pa.table(columns)
