"""A cache as an object: its contents, and how teachers and shards get in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, UsageError

from .codes.codec import RowCodec
from .committed.packs import publish_facts, publish_records, whole_facts, whole_records
from .contents import Contents
from .format import names
from .format.arrays import array_document, group_document
from .format.facts import ImageFacts
from .format.info import CacheInfo, TeacherInfo
from .format.record import LOST_STEP, MAX_LOST, CommitRecord
from .format.split import decide_sides
from .shard_writer import ShardWriter
from .storage.files import Files


class Cache(Contents):
    """A cache. Cheap to open; picklable (opened again by its files)."""

    def _attach(self, files: Files) -> None:
        super()._attach(files)
        self._settling = Lock()

    @contextmanager
    def writing(self, shards: Sequence[int] | None = None) -> Iterator[None]:
        """Hold the cache for writing, or only ``shards`` of it; LockHeld names who has it."""
        with self.files.writing(shards):
            self.catalogue.look_again()  # at what was written before
            yield

    def add_teacher(
        self, teacher: TeacherInfo, codecs: Mapping[str, RowCodec] | None = None
    ) -> None:
        """Publish a teacher's group and arrays, then name it in the root. Rows come by shards.

        ``codecs`` are those that ``teacher.codecs`` names (``codes.coded_teacher``).
        """
        if teacher.name in self.teachers:
            raise UsageError(f"{self.location} already has a teacher {teacher.name!r}.")
        info = replace(self.info, teachers=(*self.teachers, teacher.name))
        for folder in names.folders_of(teacher.name):  # of one that was being removed
            self.files.delete(folder)
        for name, shape in teacher.arrays.items():
            document = array_document(self.info, name, shape)
            self.files.publish(names.metadata(names.array(teacher.name, name)), [document])
        self.publish_codecs(teacher, codecs or {})
        self.publish_teacher(teacher)
        self.publish_root(info)

    def publish_codecs(self, teacher: TeacherInfo, codecs: Mapping[str, RowCodec]) -> None:
        """Write the codecs that a teacher's group names."""
        if set(codecs) != set(teacher.codecs):
            raise ValueError(f"{teacher.name} needs the codecs {list(teacher.codecs)}.")
        for kind, codec in codecs.items():
            data = codec.to_bytes()
            if hashlib.sha256(data).hexdigest() != teacher.codecs[kind].sha256:
                raise ValueError(f"{teacher.name} was coded with another codec of {kind}.")
            self.files.publish(names.codec(teacher.name, kind), [data])

    def publish_teacher(self, teacher: TeacherInfo) -> None:
        """Write what a teacher's group says of it."""
        path = names.metadata(names.group(teacher.name))
        self.files.publish(path, [group_document(teacher)])
        self._teachers.pop(teacher.name, None)

    def commit_shard(
        self,
        owner: str,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        *,
        images: ImageFacts,
        reasons: Mapping[int, str],
        environment: Mapping[str, str],
        lost: Mapping[str, float] | None = None,
    ) -> CommitRecord:
        """Write a shard whole: every file, each durable before the next, the facts of its images
        unless they are there, then the commit record.

        ``arrays`` maps each array to (n, *row_shape), n the rows that exist in the shard. Features
        of a kind that is stored as codes are coded here; who brings codes says by array in
        ``lost`` which share of the variance they lose. The sides
        of ``images`` are those that the first commit of the shard gave or decided; CacheMismatch
        for other images than its.
        """
        writer = self.shard_writer(owner, shard)
        for file in writer.add(arrays, rejected=reasons, copy=False):
            writer.write(file)
        return self.commit(
            writer, images=images, reasons=reasons, environment=environment, lost=lost
        )

    def shard_writer(self, owner: str, shard: int) -> ShardWriter:
        """Takes the rows of a shard piece by piece, for ``commit``."""
        codecs = {} if owner == names.PIXELS else self.codecs(owner)
        return ShardWriter(self.files, self.info, owner, shard, self.layouts(owner), codecs)

    def commit(
        self,
        writer: ShardWriter,
        *,
        images: ImageFacts,
        reasons: Mapping[int, str],
        environment: Mapping[str, str],
        lost: Mapping[str, float] | None = None,
        before: Callable[[CommitRecord], None] | None = None,
    ) -> CommitRecord:
        """Commit a shard whose files are all written: facts and record as ``commit_shard``.
        ``before`` is called with the record just before it is published."""
        owner, shard = writer.owner, writer.shard
        paths, shares = self.paths(owner)(shard), {**(lost or {}), **writer.lost_shares}
        if not writer.is_full or set(paths) != set(writer.written):
            raise ValueError(
                f"{owner}, shard {shard}: not all of its {len(paths)} files are there."
            )
        if set(shares) != {n for n in self.shapes(owner) if names.kind_of(n) != n}:
            raise ValueError(f"{owner} needs what its codes lose; got lost={sorted(shares)}.")
        stored = self.settle_facts(owner, shard, images)
        record = CommitRecord(
            owner=owner,
            shard=shard,
            start=writer.start,
            num_rows=writer.num_rows,
            files={path: writer.written[path] for path in paths},
            facts=stored.digest,
            reasons=dict(sorted(reasons.items())),
            environment=dict(environment),
            lost={name: min(round(one / LOST_STEP), MAX_LOST) for name, one in shares.items()},
        )
        if before is not None:
            before(record)
        self.publish_record(record)
        return record

    def publish_record(self, record: CommitRecord) -> None:
        """Commit a shard whose facts and files are there."""
        self.files.create(names.commit(record.owner, record.shard), record.to_bytes())
        self.catalogue.learn_record(record)

    def settle_facts(self, owner: str, shard: int, images: ImageFacts) -> ImageFacts:
        """The facts that a shard's commits stand on: those that are there, or else ``images`` of
        ``owner``, with the side of each row.

        Facts that a killed writer left without a commit bind nobody.
        """
        with self._settling:  # owners of a shard are committed by several threads
            return self._settle_facts(owner, shard, images)

    def _settle_facts(self, owner: str, shard: int, images: ImageFacts) -> ImageFacts:
        self.catalogue.forget_facts([shard])  # another writer may have been here
        stored = self.facts_of(shard)
        if stored is not None and stored.shows_same(images):
            return stored
        others = (self.committed(other, shard) for other in self.owners if other != owner)
        standing = next((record for record in others if record is not None), None)
        start, _ = self.info.shard_range(shard)
        if standing is not None and stored is not None:
            stored.require_same(
                images,
                start=start,
                owners=(standing.owner, owner),
                image_of=self.image_id,
            )
        decided = self._with_sides(shard, images)
        if standing is not None and decided.digest != standing.facts:
            raise CacheMismatch(
                f"the images of shard {shard}, read for {owner}, are not those that "
                f"{standing.owner} in the cache came from, and what was known of these was lost. "
                "Put the old images back, or extract into a new cache."
            )
        self.files.publish(names.facts(shard), [decided.to_bytes()])
        self.catalogue.learn_facts(shard, decided)
        return decided

    def _with_sides(self, shard: int, images: ImageFacts) -> ImageFacts:
        if images.is_decided:
            return images
        sides = decide_sides(images.hashes(), self.given_split(shard), self.info)
        return images.decided(np.array(sides, bool))

    def forget_shard(self, owner: str, shard: int) -> None:
        """Take back a commit: the shard counts as missing and can be extracted again."""
        self.forget_shards(owner, [shard])

    def forget_shards(self, owner: str, shards: Collection[int]) -> None:
        """Take back commits. A pack that held one is made again without it, and without what of it
        is damaged; the caller holds all that the pack's range may have."""
        for number in sorted({shard // self.info.pack_shards for shard in shards}):
            whole = whole_records(self.files, number, owner, self.info, self.paths(owner))
            left = {s: record for s, record in whole.by_shard.items() if s not in shards}
            if whole.problem or whole.shards & set(shards):
                publish_records(self.files, number, owner, left)
        self.files.delete_all([names.commit(owner, shard) for shard in shards])
        self.catalogue.forget_records(owner, shards)
        self.catalogue.look_again()

    def forget_facts(self, shards: Collection[int]) -> None:
        """Take back what is known of shards' images: whoever commits them next says it again. Of
        packs as ``forget_shards``."""
        for number in sorted({shard // self.info.pack_shards for shard in shards}):
            whole = whole_facts(self.files, number, self.info)
            left = {s: facts for s, facts in whole.by_shard.items() if s not in shards}
            if whole.problem or whole.shards & set(shards):
                publish_facts(self.files, number, left)
        self.files.delete_all([names.facts(shard) for shard in shards])
        self.catalogue.forget_facts(shards)
        self.catalogue.look_again()

    def restore_metadata(self, owner: str) -> None:
        """Publish the zarr.json of an owner's arrays again, from the cache's settings."""
        for kind in self.shapes(owner):
            document = self.array_document(owner, kind)
            self.files.publish(names.metadata(names.array(owner, kind)), [document])

    def publish_root(self, info: CacheInfo) -> None:
        """Publish other settings: a teacher, a segment or removed rows more or less."""
        document = group_document(info)
        self._version = self.files.replace(names.ROOT, document, self._version)
        self.info = info
        self._teachers.clear()
        self.catalogue.keep_owners(self.owners)

    def write_small(self, relative: str, data: bytes) -> None:
        """Publish a small file below the cache (statistics, normalizers)."""
        self.files.publish(relative, [data])

    def digest(self) -> str:
        """sha256 (hex) over every file's path and content, the lock left out, and commit records
        and facts as if each had a file of its own: packing changes nothing."""
        content = dict(self._single_files())
        for relative in self.files.walk():
            folder = relative.partition("/")[0]
            if folder not in (*names.WRITERS, names.PACKS, names.COMMITS, names.FACTS):
                content[relative] = self.files.read(relative)
        total = hashlib.sha256()
        for relative, data in sorted(content.items()):
            total.update(f"{relative}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        return total.hexdigest()

    def _single_files(self) -> Iterator[tuple[str, bytes]]:
        """Each commit record and each shard's facts, as a file of its own."""
        for owner in self.owners:
            for shard, record in self.commits(owner).items():
                yield names.commit(owner, shard), record.to_bytes()
        facts = self.catalogue.facts(self.info)
        for shard in self.info.shards():
            if (known := facts.of_shard(shard)) is not None:
                yield names.facts(shard), known.to_bytes()
