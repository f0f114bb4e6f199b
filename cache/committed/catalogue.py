"""Which shards are committed and what their records and facts say, looked up and remembered.

Both lie in packs of thousands of shards, and in a file for each shard where they are not packed
yet; of a shard that is in both, the file counts. A name is enough to know that a shard is
committed; what a file or a column says is read when somebody asks. What was read is believed as
long as its file is there.

Files are looked up before packs: a file goes when the pack that has it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache, remedy, repair_text

from ..format import names
from ..format.arrays import ShardFiles
from ..format.columns import Columns
from ..format.facts import DIGEST_BYTES, ROW_BYTES, ImageFacts
from ..format.info import CacheInfo
from ..format.json_document import MAX_DOCUMENT_BYTES
from ..format.record import CommitRecord
from ..storage.files import Files
from .commits import Commits
from .fact_table import FactTable
from .record_table import RecordTable, place_of
from .row_facts import RowFacts

Table = TypeVar("Table", RecordTable, FactTable)

RESTORE = "Restore it from a copy."
"""What helps with any document."""


class Catalogue:
    """The commit records and facts below one root."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._records: dict[str, dict[int, CommitRecord]] = {}
        self._loose_tables: dict[str, tuple[set[int], RecordTable]] = {}
        self._facts: dict[int, ImageFacts] = {}
        self._packs: dict[str, tuple[object, RecordTable | FactTable]] = {}
        self._listed: dict[str, dict[str, object]] | None = None

    def look_again(self) -> None:
        """Remember no listing: others may have written. Near by, every look is a new one."""
        self._listed = None

    def forget(self) -> None:
        """Believe nothing that was read."""
        self.look_again()
        self._records.clear()
        self._loose_tables.clear()
        self._facts.clear()
        self._packs.clear()

    def keep_owners(self, owners: Collection[str]) -> None:
        """Forget the records of all others."""
        for owner in set(self._records) - set(owners):
            self._records.pop(owner)
            self._loose_tables.pop(owner, None)

    def shards(self, owner: str, info: CacheInfo, paths: ShardFiles) -> NDArray[np.int64]:
        """Committed shards of an owner, ascending, by their names alone."""
        return np.intersect1d(self.stored_shards(owner, info, paths), info.shard_numbers)

    def stored_shards(self, owner: str, info: CacheInfo, paths: ShardFiles) -> NDArray[np.int64]:
        """The same, and those that the cache does not have."""
        loose = self.loose_shards(names.commits(owner))
        tables = self.record_tables(owner, info, paths)
        return _united(loose, [table.shards for table in tables])

    def stored_facts(self, info: CacheInfo) -> NDArray[np.int64]:
        """Shards that have facts, by their names, and those that the cache does not have."""
        loose = self.loose_shards(names.FACTS)
        return _united(loose, [table.shards for table in self.fact_tables(info)])

    def commits(self, owner: str, info: CacheInfo, paths: ShardFiles) -> Commits:
        """The records of an owner. Those of segments that were added since the root was read are
        for who reads it again."""
        loose = self.loose_records(owner, info, paths)
        of, table = self._loose_tables.get(owner, (None, None))
        if table is None or of != loose.keys():
            table = RecordTable.of(owner, list(loose.values()))
            self._loose_tables[owner] = (set(loose), table)
        return Commits(info, paths, [*self.record_tables(owner, info, paths), table])

    def loose_records(
        self, owner: str, info: CacheInfo, paths: ShardFiles
    ) -> dict[int, CommitRecord]:
        """The records of an owner that have a file of their own."""
        exist = self.loose_shards(names.commits(owner)) & set(info.shards())
        before = self._records.get(owner, {})
        known = {shard: before[shard] for shard in exist if shard in before}

        def learn(shard: int) -> None:
            try:
                known[shard] = self.read_record(owner, shard, info, paths(shard))
            except FileNotFoundError:
                self._look_for_packs(names.commit(owner, shard))

        self._files.each(learn, sorted(exist - known.keys()))
        self._records[owner] = known
        return known

    def committed(
        self, owner: str, shard: int, info: CacheInfo, paths: ShardFiles
    ) -> CommitRecord | None:
        """The record of one shard as it is now, None when there is none."""
        known = self._records.setdefault(owner, {})
        try:
            if shard not in known:
                known[shard] = self.read_record(owner, shard, info, paths(shard))
            elif not self._files.exists(names.commit(owner, shard)):  # packed, or taken back
                self.forget_records(owner, [shard])
                self.look_again()
        except FileNotFoundError:
            self._look_for_packs(names.commit(owner, shard))
        if (record := self._records.get(owner, {}).get(shard)) is not None:
            return record
        for table in self.record_tables(owner, info, paths, shard // info.pack_shards):
            if (place := place_of(table.shards, shard)) is not None:
                return table.record(place, info.shard_range(shard), paths(shard))
        return None

    def read_record(
        self, owner: str, shard: int, info: CacheInfo, paths: Iterable[str]
    ) -> CommitRecord:
        """One record from its file; CorruptCache when it is damaged or another shard's."""
        path = names.commit(owner, shard)
        data = self._files.read(path, max_bytes=MAX_DOCUMENT_BYTES)
        where = self._files.where(path)
        with remedy(f"{RESTORE} {repair_text(self._files.location)}", CorruptCache):
            record = CommitRecord.from_bytes(data, where)
            start, stop = info.shard_range(shard)
            expected = (owner, shard, start, stop - start)
            if (record.owner, record.shard, record.start, record.num_rows) != expected:
                raise CorruptCache(f"{where} is the record of another shard.")
            if set(record.files) != set(paths):
                raise CorruptCache(f"{where} names other files than its shard has.")
        return record

    def learn_record(self, record: CommitRecord) -> None:
        """A record that was just written."""
        self._records.setdefault(record.owner, {})[record.shard] = record
        self._loose_tables.pop(record.owner, None)
        self._learn_name(names.commit(record.owner, record.shard))

    def forget_records(self, owner: str, shards: Iterable[int]) -> None:
        """Records that are to be read again, or that were just deleted."""
        for shard in shards:
            self._records.get(owner, {}).pop(shard, None)
        self._loose_tables.pop(owner, None)

    def facts(self, info: CacheInfo) -> RowFacts:
        """What is known of the images of all shards that have facts."""
        loose = self.loose_facts(info)
        return RowFacts(info, self.fact_tables(info), loose)

    def loose_facts(self, info: CacheInfo) -> dict[int, ImageFacts]:
        """The facts that have a file of their own, by ascending shard."""
        exist = self.loose_shards(names.FACTS) & set(info.shards())
        known = {s: facts for s, facts in self._facts.items() if s in exist}

        def learn(shard: int) -> None:
            try:
                known[shard] = self.read_facts(shard, info)
            except FileNotFoundError:
                self._look_for_packs(names.facts(shard))

        self._files.each(learn, sorted(exist - known.keys()))
        self._facts = known
        return dict(sorted(known.items()))

    def facts_of(self, shard: int, info: CacheInfo) -> ImageFacts | None:
        """What is known of the images of one shard, None when they were not read yet."""
        if shard not in self._facts:
            try:
                self._facts[shard] = self.read_facts(shard, info)
            except FileNotFoundError:
                self._look_for_packs(names.facts(shard))
                for table in self.fact_tables(info, shard // info.pack_shards):
                    if (place := place_of(table.shards, shard)) is not None:
                        return table.facts(place)
                return None
        return self._facts[shard]

    def read_facts(self, shard: int, info: CacheInfo) -> ImageFacts:
        """The facts of a shard from their file; CorruptCache when it is damaged."""
        path, (start, stop) = names.facts(shard), info.shard_range(shard)
        data = self._files.read(path, max_bytes=info.shard_rows * ROW_BYTES + DIGEST_BYTES)
        with remedy(f"{RESTORE} {repair_text(self._files.location)}", CorruptCache):
            return ImageFacts.from_bytes(data, stop - start, self._files.where(path))

    def learn_facts(self, shard: int, facts: ImageFacts) -> None:
        """Facts that were just written."""
        self._facts[shard] = facts
        self._learn_name(names.facts(shard))

    def forget_facts(self, shards: Iterable[int]) -> None:
        """Facts that are to be read again."""
        for shard in shards:
            self._facts.pop(shard, None)

    def record_tables(
        self, owner: str, info: CacheInfo, paths: ShardFiles, number: int | None = None
    ) -> list[RecordTable]:
        """The packs of an owner's records, or the one of a range."""

        def of(content: Columns, number: int) -> RecordTable:
            return RecordTable.of_columns(content, owner, info.pack_range(number), paths)

        return self._tables(names.record_packs(owner), number, of)

    def fact_tables(self, info: CacheInfo, number: int | None = None) -> list[FactTable]:
        """The packs of facts, or the one of a range."""

        def of(content: Columns, number: int) -> FactTable:
            return FactTable.of_columns(content, info, number)

        return self._tables(names.FACT_PACKS, number, of)

    def loose_shards(self, folder: str) -> set[int]:
        """Shards that have a file of their own in a folder."""
        stems = (name.partition(".") for name in self._names(folder))
        return {int(stem) for stem, _, end in stems if stem.isdigit() and end in ("json", "bin")}

    def pack_numbers(self, folder: str) -> list[int]:
        """Ranges that have a pack in a folder."""
        stems = (name.partition(".") for name in self._names(folder))
        return [int(stem) for stem, _, end in stems if stem.isdigit() and end == "safetensors"]

    def _names(self, folder: str) -> list[str]:
        if self._files.is_far:
            return list(self._listing().get(folder, ()))
        return self._files.names_in(folder)

    def _version(self, path: str) -> object:
        if self._files.is_far:
            folder, name = _folder_and_name(path)
            return self._listing().get(folder, {}).get(name)
        return self._files.version(path)

    def _listing(self) -> dict[str, dict[str, object]]:
        """Name to version by folder, of all that says what is committed."""
        if self._listed is None:
            listed: dict[str, dict[str, object]] = {}
            for top in (names.FACTS, names.COMMITS, names.PACKS):
                for path, version in self._files.versions(top).items():
                    folder, name = _folder_and_name(path)
                    listed.setdefault(folder, {})[name] = version
            self._listed = listed
        return self._listed

    def _learn_name(self, path: str) -> None:
        if self._listed is not None:
            folder, name = _folder_and_name(path)
            self._listed.setdefault(folder, {})[name] = ""

    def _look_for_packs(self, path: str) -> None:
        """A single file is not there. One that was listed was packed since, into a pack that may
        not have been there then."""
        folder, name = _folder_and_name(path)
        if self._listed is not None and name in self._listed.get(folder, {}):
            self.look_again()

    def _tables(
        self, folder: str, number: int | None, of: Callable[[Columns, int], Table]
    ) -> list[Table]:
        numbers = self.pack_numbers(folder) if number is None else [number]
        found = (self._table(folder, one, of) for one in numbers)
        return [table for table in found if table is not None]

    def _table(self, folder: str, number: int, of: Callable[[Columns, int], Table]) -> Table | None:
        """A pack as it is now; None when there is none."""
        path = names.pack(folder, number)
        version, known = self._packs.get(path, (None, None))
        now = self._version(path)
        if now is None:
            self._packs.pop(path, None)
            return None
        if known is None or version != now:
            try:
                content = self._files.mapped(path, whole=folder != names.FACT_PACKS)
            except FileNotFoundError:
                self._packs.pop(path, None)
                return None
            advice = f"{RESTORE} {repair_text(self._files.location)}"
            known = of(Columns(content, self._files.where(path), advice), number)
            self._packs[path] = (now, known)
        return known  # type: ignore[return-value]


def _folder_and_name(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _united(loose: Collection[int], packed: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([np.fromiter(loose, np.int64, len(loose)), *packed]))
