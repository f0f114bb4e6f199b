"""A cache as an object: its contents, and how teachers and shards get in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import UsageError

from .contents import Contents
from .format import names
from .format.arrays import array_document, group_document
from .format.compression import encode_compressed
from .format.index import image_id
from .format.info import DTYPES, CacheInfo, TeacherInfo
from .format.record import CommitRecord, ImageFacts
from .format.shard import encode_shard, sha256_of
from .format.split import decide_sides


class Cache(Contents):
    """A cache. Cheap to open; picklable (opened again by its files)."""

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Hold the cache for writing, or only ``shards`` of it; LockHeld names who has it."""
        return self.files.writing(shards)

    def add_teacher(self, teacher: TeacherInfo) -> None:
        """Publish a teacher's group and arrays, then name it in the root. Rows come by shards."""
        if teacher.name in self.teachers:
            raise UsageError(f"{self.location} already has a teacher {teacher.name!r}.")
        info = replace(self.info, teachers=(*self.teachers, teacher.name))
        self.files.delete(names.commits(teacher.name))  # of one that was being removed
        self.files.delete(names.group(teacher.name))
        for kind in teacher.kinds:
            document = array_document(self.info, kind, teacher.row_shape(kind))
            self.files.publish(names.metadata(names.array(teacher.name, kind)), [document])
        self.publish_teacher(teacher)
        self.publish_root(info)

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
    ) -> CommitRecord:
        """Write a shard whole: every file, each durable before the next, then the commit record.

        ``arrays`` maps each kind to (n, *row_shape), n the rows that exist in the shard. ``images``
        without sides take those of the owner who committed first; the first has them decided.
        """
        start, stop = self.info.shard_range(shard)
        shapes = self.shapes(owner)
        if set(arrays) != set(shapes):
            raise ValueError(f"{owner} needs {sorted(shapes)}, got {sorted(arrays)}.")
        images = self._decided(owner, shard, images)
        paths = self.shard_paths(owner, shard)
        files: dict[str, tuple[int, str]] = {}
        for kind, values in arrays.items():
            expected = (stop - start, *shapes[kind])
            if values.shape != expected or values.dtype != DTYPES[kind]:
                raise ValueError(
                    f"{owner}/{kind}, shard {shard}: got {values.dtype} {values.shape}, "
                    f"must be {DTYPES[kind]} {expected}."
                )
            encoded = self._encode(owner, kind, values)
            with ThreadPoolExecutor(1, "sha256") as hashing:  # as slow as a disk: beside, not after
                digest = hashing.submit(sha256_of, encoded)
                self.files.publish(paths[kind], encoded)
            files[paths[kind]] = (sum(buffer.nbytes for buffer in encoded), digest.result())
        record = CommitRecord(
            owner=owner,
            shard=shard,
            start=start,
            num_rows=stop - start,
            files=files,
            images=images,
            reasons=dict(sorted(reasons.items())),
            environment=dict(environment),
        )
        self.files.create(names.commit(owner, shard), record.to_bytes())
        self._commits.setdefault(owner, {})[shard] = record
        return record

    def _decided(self, owner: str, shard: int, images: ImageFacts) -> ImageFacts:
        """``images`` with the side of each row, the same for every owner of the shard."""
        for other in self.owners:
            if other != owner and (record := self.committed(other, shard)) is not None:
                record.require_images(images, owner, lambda row: image_id(self.index(), row))
                images = replace(images, heldout=record.images.heldout)
        if images.heldout:
            return images
        sides = decide_sides(images.sha256, self.given_split(shard), self.info)
        return replace(images, heldout=sides)

    def _encode(self, owner: str, kind: str, values: NDArray[Any]) -> list[memoryview]:
        if not self.info.compression:
            return encode_shard(values, self.info.shard_rows)
        return [encode_compressed(values, self.array_document(owner, kind, len(values))).data]

    def forget_shard(self, owner: str, shard: int) -> None:
        """Take back a commit: the shard counts as missing and can be extracted again."""
        self.files.delete(names.commit(owner, shard))
        self._commits.get(owner, {}).pop(shard, None)

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
        self._commits = {o: known for o, known in self._commits.items() if o in self.owners}

    def write_small(self, relative: str, data: bytes) -> None:
        """Publish a small file below the cache (statistics, normalizers)."""
        self.files.publish(relative, [data])

    def digest(self) -> str:
        """sha256 (hex) over every file's path and content, the lock left out."""
        total = hashlib.sha256()
        for relative in self.files.walk():
            if relative.partition("/")[0] not in names.WRITERS:
                content = hashlib.sha256(self.files.read(relative)).hexdigest()
                total.update(f"{relative}\0{content}\n".encode())
        return total.hexdigest()
