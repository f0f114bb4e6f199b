"""The verb ``import_features``: a cache from features that somebody else computed.

What they are of is only stated, not checked, and the teacher's fingerprint says so. Rows are
matched by id; what has no features, or some that cannot be stored, is a reject with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace as replace_info

from phistill import cache as store
from phistill.cache import Cache, CommitRecord, TeacherInfo
from phistill.cache.format import names
from phistill.cache.format.info import IMPORTED
from phistill.cache.storage.files import Files
from phistill.cache.storage.open_files import open_files
from phistill.cache.upkeep.pack import pack
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CorruptCache, UsageError
from phistill.stats.coarse import CoarseArray, coarse_arrays

from ..decode.views import View
from ..images.listings import last_listing, listing
from ..images.local_files import in_a_thread
from ..images.open_source import opened
from ..images.source import DEFAULTS, ImageSource, SourceOptions, image_records
from ..images.splits import split_of_value
from ..index import build_index
from ..request import keep_out_of_the_way
from ..settings import CacheSettings
from .feature_files import FeatureFiles, grid_of, open_features
from .feature_lines import ImageLines
from .fields import PIXELS
from .import_pass import ImportPass, ImportProgress
from .layout import BITS, arranged


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    cache: Cache
    num_shards: int
    """Shards committed by this call; 0 means that everything was there."""
    num_rows: int
    num_rejects: int
    """Rows of the cache that an imported teacher has no value for."""
    num_unknown: int
    """Rows of the features whose images the cache does not have; nothing becomes of them."""
    num_repaired: int
    """Shards that were damaged and were imported again."""
    teachers: tuple[str, ...]
    """Those that were imported."""
    coarse: tuple[CoarseArray, ...]
    """Of them, arrays that float16 holds badly."""


def import_features(
    features: Path | str,
    cache: str | Path | Files,
    *,
    source: str = "",
    ids: Path | None = None,
    grids: Mapping[str, tuple[int, int]] | None = None,
    layouts: Mapping[str, str] | None = None,
    bfloat16: bool = False,
    images: Path | str | ImageSource | None = None,
    source_options: SourceOptions = DEFAULTS,
    settings: CacheSettings | None = None,
    max_reject_frac: float | None = None,
    repair: bool = False,
    progress: ImportProgress | None = None,
) -> ImportReport:
    """Make a cache of the features in a folder, or add them to one that has the same images.

    ``features`` is what ``feature_files`` describes. ``source`` states what computed them and
    becomes the teachers' identity; an export of phistill states it itself. ``grids`` gives (h, w)
    by teacher where the shape does not tell, ``layouts`` one of ``layout.LAYOUTS`` ("" for all)
    where channels come first or may; ``bfloat16`` reads uint16 as its bits. The student's pixels
    come from ``images``, matched by id, or from pixels.npy; without either the cache holds none. A
    call that was stopped goes on when repeated; ``repair`` checks every byte first and imports
    damaged shards again. Raises UsageError for shapes, dtypes and ids that do not fit,
    CacheMismatch where the cache holds something else, TooManyRejects beyond ``max_reject_frac``.
    """
    features_read = arranged(
        open_features(Path(features), ids), layouts or {}, grids or {}, bfloat16=bfloat16
    )
    lines = ImageLines(features_read.table)
    teachers = _teachers(features_read, source, grids or {})
    files = open_files(cache)
    if images is not None and PIXELS in features_read.arrays:
        raise UsageError(f"{features} has pixels of its own; leave --images out, or pixels.npy.")
    if not store.exists(files):
        keep_out_of_the_way(files)
    with ExitStack() as stack:
        image_source = None
        if images is not None:
            used = last_listing(files)
            image_source = stack.enter_context(opened(images, source_options, used))
        stack.enter_context(files.writing())
        if store.exists(files):
            target = store.open(files)
            (settings or CacheSettings()).check(target.info, target.location)
        else:
            target = _create(
                files, features_read, lines, teachers, image_source, settings or CacheSettings()
            )
        imported = [teacher.name for teacher in teachers]
        replaced = Replaced()
        if repair:
            ours = imported + (
                [names.PIXELS] if image_source or PIXELS in features_read.arrays else []
            )
            replaced = _discard_damaged(target, ours)
        work = ImportPass(target, features_read, lines, replaced.records, max_reject_frac, progress)
        for teacher in teachers:
            work.add(teacher)
        work.run(imported, image_source)
        pack(target)
    return ImportReport(
        cache=target,
        num_shards=work.num_shards,
        num_rows=target.info.num_real_rows,
        num_rejects=work.num_rejects,
        num_unknown=work.num_unknown,
        num_repaired=replaced.num_shards,
        teachers=tuple(imported),
        coarse=coarse_arrays(target, imported) if work.num_shards else (),
    )


@dataclass(frozen=True, slots=True)
class Replaced:
    """Damaged shards that are to be written again."""

    num_shards: int = 0
    records: Mapping[tuple[str, int], CommitRecord] = field(default_factory=dict)
    """What was committed, by owner and shard, where the record itself is whole."""


def _discard_damaged(cache: Cache, owners: Sequence[str]) -> Replaced:
    """Make damaged shards of these owners missing, and those of others whose record is damaged:
    with it a shard is lost to everybody."""
    report = verify(cache)
    damaged = [finding for finding in report.damaged if finding.shard is not None]
    records = {}
    for finding in damaged:
        assert finding.shard is not None
        with suppress(CorruptCache):
            record = cache.read_commit(finding.owner, finding.shard)
            records[finding.owner, finding.shard] = record
    lost = {f.path for f in damaged if (f.owner, f.shard) not in records}
    ours = tuple(f for f in report.damaged if f.owner in ("", *owners) or f.path in lost)
    return Replaced(discard(cache, replace(report, findings=ours)), records)


def _teachers(
    features: FeatureFiles, source: str, grids: Mapping[str, tuple[int, int]]
) -> list[TeacherInfo]:
    """What each teacher is: shapes from the arrays, identity from what is stated."""
    if not features.teachers:
        raise UsageError(
            f"{features.path} holds pixels alone; a teacher's features are NAME.patches."
        )
    if unknown := sorted(set(grids) - set(features.teachers)):
        raise UsageError(
            f"--grid names {unknown[0]!r}; the features are of {', '.join(features.teachers)}."
        )
    infos = []
    for name, kinds in features.teachers.items():
        names.check_teacher_name(name)
        facts = features.facts.get("teachers", {}).get(name, {})
        stated = source or _spelt(facts.get("identity", {})) or (name if facts else "")
        if not stated:
            raise UsageError(
                f"say what computed the features of {name!r}: --source 'MODEL, layer, revision'. "
                "It becomes part of the teacher's fingerprint."
            )
        if "patches" not in kinds:
            raise UsageError(f"{name} has {', '.join(kinds)} and no patches; a teacher needs them.")
        shapes = {kind: features.arrays[name, kind].row_shape for kind in kinds}
        for kind, shape in shapes.items():
            _check_array(features, name, kind, shape)
        exported = facts.get("grid")
        grid = grids.get(name) or (tuple(exported) if exported else None)
        registers = shapes.get("registers", (0,))
        stated_identity = facts.get("identity", {})
        identity = {"source": IMPORTED, "model": stated}
        if not source and stated_identity.get("source") == IMPORTED:
            identity = dict(
                stated_identity
            )  # the export of an import says of itself what the import did
        elif not source:
            identity["stated"] = stated_identity
        infos.append(
            TeacherInfo(
                name=name,
                grid=grid_of(shapes["patches"], grid, f"{name}.patches"),
                widths={kind: shape[-1] for kind, shape in shapes.items()},
                num_registers=registers[0],
                identity=identity,
            )
        )
    return infos


def _spelt(identity: Mapping[str, Any]) -> str:
    return ":".join(str(identity[key]) for key in ("source", "model") if identity.get(key))


def _check_array(features: FeatureFiles, name: str, kind: str, shape: tuple[int, ...]) -> None:
    dims = {"patches": (2, 3), "summary": (1,), "registers": (2,)}[kind]
    dtype = features.arrays[name, kind].dtype
    if len(shape) not in dims or 0 in shape:
        wanted = {"patches": "(T, C) or (h, w, C)", "summary": "(D,)", "registers": "(G, C)"}[kind]
        raise UsageError(f"{name}.{kind} has rows of shape {shape}; wanted {wanted}.")
    if dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise UsageError(
            f"{name}.{kind} is {dtype}; wanted float16 or float32, little-endian. "
            + (
                "These may be the bits of bfloat16, which NumPy does not know: if they are, import "
                "them with --bfloat16."
                if dtype in BITS
                else "Convert it with array.astype('float32')."
            )
        )


def _create(
    files: Files,
    features: FeatureFiles,
    lines: ImageLines,
    teachers: Sequence[TeacherInfo],
    images: ImageSource | None,
    settings: CacheSettings,
) -> Cache:
    """A cache whose rows are the images of the table; an export's own settings are its defaults."""
    settings = _with_facts(settings, features)
    side = _pixel_size(features, images, settings)
    views = settings.views or (View(),)
    if lines.num_views != len(views):
        raise UsageError(
            f"the features show {lines.num_views} views of an image, and {len(views)} are "
            "described. Describe each with --view, in the order of their numbers."
        )
    records = _records(features, lines, images)
    settings = replace(settings, pixel_size=side)
    info = settings.new_cache(num_rows=records.num_rows * len(views))
    if images is not None:
        info = replace_info(info, sources=(listing(images, records.num_rows),))
    mixed = features.facts.get("order") == "random"
    index = build_index(
        records, num_views=len(views), seed=info.seed, source=images, shuffle=not mixed
    )
    return store.create(files, info, index)


def _with_facts(settings: CacheSettings, features: FeatureFiles) -> CacheSettings:
    facts = features.facts
    try:
        return replace(
            settings,
            seed=settings.seed if settings.seed is not None else facts.get("seed"),
            holdout=settings.holdout if settings.holdout is not None else facts.get("holdout"),
            views=settings.views
            or tuple(View.from_dict(view) for view in facts.get("views", ()))
            or None,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{features.path / 'features.json'} holds other settings: {error}."
        ) from error


def _pixel_size(features: FeatureFiles, images: ImageSource | None, settings: CacheSettings) -> int:
    if PIXELS in features.arrays:
        values = features.arrays[PIXELS]
        side = values.row_shape[0] if values.row_shape else 0
        if values.row_shape != (side, side, 3) or values.dtype != np.uint8:
            raise UsageError(
                f"pixels are {values.dtype} {values.row_shape}; wanted uint8 (S, S, 3)."
            )
        if settings.pixel_size not in (None, side):
            raise UsageError(f"pixel_size={settings.pixel_size}, but pixels have side {side}.")
        return side
    if images is not None:
        return 224 if settings.pixel_size is None else settings.pixel_size
    if settings.pixel_size:
        raise UsageError("pixels need --images, or pixels.npy beside the features.")
    return 0


def _records(features: FeatureFiles, lines: ImageLines, images: ImageSource | None) -> pa.Table:
    """One per image, in the order of the table: from the source of images, or as far as known."""
    ids = list(dict.fromkeys(lines.ids))
    known = image_records(ids)
    if images is not None:
        listed = in_a_thread(images.records)
        position: Any = pc.index_in(pa.array(ids, pa.string()), value_set=listed["id"])
        if position.null_count:
            unknown = ids[pc.index(position.is_null(), True).as_py()]
            raise UsageError(
                f"the images have no {unknown!r} ({position.null_count} of {len(ids)} ids "
                f"unknown); an id of theirs looks like {listed['id'][0].as_py()!r}."
            )
        known = listed.take(position)
    split = "split" in lines.columns and features.facts.get("split") != "hash"
    first = [
        next(lines.line[name, v] for v in range(lines.num_views) if (name, v) in lines.line)
        for name in ids
    ]
    labels = [lines.get("label", line) for line in first]
    try:
        splits = [split_of_value(lines.get("split", line)) if split else None for line in first]
    except ValueError as error:
        raise UsageError(f"{features.path}: {error}.") from error
    return image_records(
        known["id"], known["uri"], offsets=known["offset"], lengths=known["length"],
        labels=[None if label is None else str(label) for label in labels], splits=splits,
    )  # fmt: skip
