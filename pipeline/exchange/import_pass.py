"""One pass of an import over the shards of a cache that miss something."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill.cache import Cache, CommitRecord, ImageFacts, TeacherInfo
from phistill.cache.format import names
from phistill.cache.format.info import DTYPES
from phistill.compute.devices import choose_device
from phistill.errors import CacheMismatch, UsageError

from ..images.source import ImageSource
from ..rejects import RejectBudget
from ..settings import ExtractOptions
from ..shard_pass import ShardPass
from ..teachers.same_teacher import add_or_require
from ..teachers.to_host import stored_as
from .feature_files import FeatureFiles
from .feature_lines import ImageLines
from .fields import PIXELS

MISSING = "not among the imported features"

ImportProgress = Callable[[int, int], None]
"""Called with the rows done and the rows there are, over all owners."""


class ImportPass:
    """One pass over the shards that miss something."""

    def __init__(
        self,
        cache: Cache,
        features: FeatureFiles,
        lines: ImageLines,
        replaced: Mapping[tuple[str, int], CommitRecord],
        max_reject_frac: float | None,
        progress: ImportProgress | None,
    ) -> None:
        """``replaced`` are the records of damaged shards, which must be imported as they were."""
        self._cache, self._features, self._lines = cache, features, lines
        self._replaced = replaced
        self._max_reject_frac, self._progress = max_reject_frac, progress
        self._budget = RejectBudget(cache, max_reject_frac)
        self.num_shards = self.num_rejects = 0
        index: Any = cache.index()
        self._rows = index["row"].to_numpy()
        self._ids, self._views = index["id"].to_pylist(), index["view"].to_pylist()
        known = zip(self._ids, self._views, strict=True)
        self._position = np.array([lines.line.get(pair, -1) for pair in known], np.int64)
        self.num_unknown = len(lines.ids) - len(np.unique(self._position[self._position >= 0]))
        if (self._position < 0).all():
            raise CacheMismatch(
                f"none of the ids is in {cache.location}, whose ids look like {self._ids[0]!r}; "
                f"the features have {lines.ids[0]!r}."
            )

    def add(self, teacher: TeacherInfo) -> None:
        """Add a teacher; refuse another one under its name."""
        add_or_require(
            self._cache, teacher, "Name the files differently, or import into another cache."
        )

    def run(self, teachers: Sequence[str], images: ImageSource | None) -> None:
        """Pixels first, because they say what the images are; then each teacher."""
        self._budget.check()
        cache = self._cache
        owners = [owner for owner in cache.owners if owner == names.PIXELS or owner in teachers]
        missing = {owner: cache.missing_shards(owner) for owner in owners}
        for name in teachers:
            self._require_same(name)
        if missing.get(names.PIXELS):
            if images is not None:
                self._decode(images)
            elif PIXELS in self._features.arrays:
                for shard in missing[names.PIXELS]:
                    self._commit(names.PIXELS, (names.PIXELS,), shard)
            else:
                raise UsageError(
                    f"{cache.location} misses pixels of {len(missing[names.PIXELS])} shards. "
                    "Finish it with --images, or with `phistill extract`."
                )
        total = sum(map(len, missing.values())) * cache.info.shard_rows
        for name in teachers:
            for shard in missing[name]:
                self._commit(name, cache.teacher(name).kinds, shard)
                if self._progress is not None:
                    self._progress(min(total, self.num_shards * cache.info.shard_rows), total)

    def _require_same(self, teacher: str) -> None:
        """CacheMismatch when a row of what was imported before has other values now. One row of
        each shard is looked at."""
        rows = self._cache.rows([teacher], "all")
        lines = np.searchsorted(self._rows, rows)
        there = self._position[lines] >= 0
        rows, lines = rows[there], lines[there]
        _, firsts = np.unique(rows // self._cache.info.shard_rows, return_index=True)
        rows, lines = rows[firsts], lines[firsts]
        if not rows.size:
            return
        info = self._cache.teacher(teacher)
        for kind in info.kinds:
            before = self._cache.array_reader(teacher, info.array_of(kind)).read(rows)
            imported = self._features.arrays[teacher, kind].read(self._position[lines])
            now, _ = stored_as(imported.reshape(rows.size, *info.row_shape(kind)), DTYPES[kind])
            if codec := self._cache.codec(teacher, kind):
                now = codec.encode(now)
            same = np.array(
                [one.tobytes() == two.tobytes() for one, two in zip(before, now, strict=True)]
            )
            if not same.all():
                other = lines[~same][0]
                raise CacheMismatch(
                    f"{self._cache.location} holds other {kind} of {teacher} than these: those of "
                    f"image {self._ids[other]!r} differ. Import into another cache, or run "
                    f"`phistill remove-teacher {self._cache.location} {teacher}` first."
                )

    def _decode(self, images: ImageSource) -> None:
        options, device = (
            ExtractOptions(max_reject_frac=self._max_reject_frac),
            choose_device("cpu"),
        )
        shards = set(self._cache.info.shards())
        work = ShardPass(self._cache, images, {}, device, options, None, None, shards)
        work.run()
        self.num_shards += work.num_shards

    def _commit(self, owner: str, kinds: Sequence[str], shard: int) -> None:
        start, stop = self._cache.info.shard_range(shard)
        place = int(np.searchsorted(self._rows, start))
        writer = self._cache.shard_writer(owner, shard)
        step = min(layout.file_rows for layout in self._cache.layouts(owner).values())
        reasons: dict[int, str] = {}
        for first in range(0, stop - start, step):
            part = slice(place + first, place + min(first + step, stop - start))
            arrays, why = self._stored(owner, kinds, self._position[part])
            for file in writer.add(arrays, rejected=why, copy=False):
                writer.write(file)
            reasons |= {first + slot: reason for slot, reason in why.items()}
        record = self._cache.commit(
            writer, images=self._facts(shard), reasons=reasons, environment={}
        )
        before = self._replaced.get((owner, shard))
        if before and before.files != record.files and not self._cache.info.compression:
            self._cache.forget_shard(owner, shard)
            raise CacheMismatch(
                f"shard {shard} of {owner} was damaged, and these are not the features that it was "
                "imported from: the bytes would differ. It is missing now; import the right ones."
            )
        self.num_shards += 1
        self.num_rejects += len(reasons)
        self._budget.spend(record)

    def _shape(self, owner: str, kind: str) -> tuple[int, ...]:
        if owner == names.PIXELS:
            return self._cache.shapes(owner)[kind]
        return self._cache.teacher(owner).row_shape(kind)

    def _stored(
        self, owner: str, kinds: Sequence[str], positions: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """What is stored of the rows (n,) at these positions of the features, -1 where they have
        none, and why a row cannot be, by its place among the n."""
        reasons = dict.fromkeys(np.flatnonzero(positions < 0).tolist(), MISSING)
        arrays = {}
        for kind in kinds:
            shape = self._shape(owner, kind)
            values = np.zeros((len(positions), *shape), self._features.arrays[owner, kind].dtype)
            there = np.flatnonzero(positions >= 0)
            if there.size:
                read = self._features.arrays[owner, kind].read(positions[there])
                values[there] = read.reshape(there.size, *shape)
            arrays[kind], bad = stored_as(values, DTYPES[kind])
            for slot, why in bad.items():
                reasons.setdefault(slot, f"{owner}/{kind} {why}")
        for values in arrays.values():
            values[list(reasons)] = np.nan if values.dtype.kind == "f" else 0
        return arrays, reasons

    def _facts(self, shard: int) -> ImageFacts:
        """What the shard's images are: as another owner says, or as the table does."""
        stated = [self._lines.image(int(self._position[line])) for line in self._shard_lines(shard)]
        owners = self._cache.owners
        standing = (self._cache.committed(owner, shard) for owner in owners)
        record = next(filter(None, standing), None)
        if record is not None and (facts := self._cache.facts_of(shard)) is not None:
            for slot, (known, (sha256, _, _)) in enumerate(
                zip(facts.hashes(), stated, strict=True)
            ):
                if sha256 is not None and known is not None and sha256 != known:
                    raise CacheMismatch(
                        f"row {record.start + slot}: the features are of an image with sha256 "
                        f"{sha256}, {record.owner} was extracted from {known}."
                    )
            return facts
        lines = self._shard_lines(shard)
        return ImageFacts.of(
            sha256=[
                sha256 or hashlib.sha256(self._ids[line].encode()).hexdigest()
                for (sha256, _, _), line in zip(stated, lines, strict=True)
            ],
            size=[size for _, size, _ in stated],
            box=[box for _, _, box in stated],
        )

    def _shard_lines(self, shard: int) -> range:
        start, stop = self._cache.info.shard_range(shard)
        first = int(np.searchsorted(self._rows, start))
        return range(first, first + stop - start)
