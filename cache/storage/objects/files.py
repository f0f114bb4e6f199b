"""The files of a cache on an object store: the same names and the same bytes as in a folder.

A put is whole or absent, so nothing needs a temporary name. Commit records are put only where there
is none, and the root only over the one that was read, so that two writers cannot both believe they
won. A refusal may be the echo of a request of ours whose answer was lost: the content decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, CorruptCache, StoreError, UsageError

from ...format.columns import MAX_FILE_BYTES, Bytes
from ..lock import Holder
from ..publish import Buffer
from . import lease
from .client import SCHEMES, TooShort, attempt, open_store
from .shard import ObjectShard

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

NUM_CONNECTIONS = 16
"""Requests of one kind at a time: one connection gives a fraction of what a machine can take."""
START_BYTES = 2**20
"""Of a pack that is opened: its header, and of most packs of commit records all there is."""
PART_BYTES = 16 * 2**20
"""Larger objects are read and written in parts of this size, several at a time."""


class ObjectFiles:
    """Objects below a URL such as ``s3://bucket/prefix``. Pickles as its URL."""

    joins_rows: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        parts = rest.rstrip("/").split("/")
        if scheme not in SCHEMES or not all(parts) or {"?", "#"} & set(rest):
            raise UsageError(
                f"{url} is not the URL of a cache. Write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or "
                "az://CONTAINER/PREFIX, or the path of a folder."
            )
        self.location = url.rstrip("/")
        self._lease: lease.Lease | None = None

    def __reduce__(self) -> tuple[type[ObjectFiles], tuple[str]]:
        return ObjectFiles, (self.location,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFiles) and other.location == self.location

    def __hash__(self) -> int:
        return hash(self.location)

    @property
    def absolute(self) -> str:
        return self.location

    @property
    def name(self) -> str:
        return self.location.rsplit("/", 1)[1]

    @property
    def _obstore(self) -> ModuleType:
        """The library; UsageError, by the store, where it is not installed."""
        self._store  # noqa: B018
        import obstore

        return obstore

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self.location)

    @cached_property
    def _parts(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_CONNECTIONS, "parts")

    @cached_property
    def _tasks(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_CONNECTIONS, "objects")

    def where(self, relative: str) -> str:
        return f"{self.location}/{relative}" if relative else self.location

    def exists(self, relative: str) -> bool:
        return self.size(relative) is not None

    def size(self, relative: str) -> int | None:
        obstore = self._obstore

        try:
            head = partial(obstore.head, self._store, relative)
            return attempt("looked up", self.where(relative), head)["size"]
        except FileNotFoundError:
            return None

    def read(self, relative: str, *, max_bytes: int | None = None) -> bytes:
        return self.read_version(relative, max_bytes=max_bytes)[0]

    def read_version(self, relative: str, *, max_bytes: int | None = None) -> tuple[bytes, Any]:
        obstore = self._obstore

        def get() -> tuple[bytes | int, Any]:
            answer = obstore.get(self._store, relative)
            size, version = answer.meta["size"], _version(answer.meta)
            if size > PART_BYTES or (max_bytes is not None and size > max_bytes):
                return size, version
            data = answer.bytes().to_bytes()
            if len(data) != size:
                raise TooShort(f"{len(data):,} of {size:,} bytes came")
            return data, version

        data, version = attempt("read", self.where(relative), get)
        if isinstance(data, bytes):
            return data, version
        if max_bytes is not None and data > max_bytes:
            raise CorruptCache(
                f"{self.where(relative)} has {data:,} bytes; at most {max_bytes:,} is expected."
            )
        return self.read_whole(relative, data).tobytes(), version

    def read_range(
        self, relative: str, start: int, stop: int, num_bytes: int, tag: str | None = None
    ) -> NDArray[np.uint8]:
        """Bytes [start, stop) of an object; CorruptCache when it has not ``num_bytes``, StoreError
        when it is no longer the one with ``tag``."""
        obstore = self._obstore
        from obstore.exceptions import PreconditionError

        def get() -> tuple[int, NDArray[np.uint8]]:
            condition = {"if_match": tag} if tag else {}
            options = {"range": (start, stop), **condition}
            answer = obstore.get(self._store, relative, options=options)
            size = answer.meta["size"]
            if size != num_bytes:
                return size, np.empty(0, np.uint8)
            data = np.frombuffer(memoryview(answer.bytes()), np.uint8)
            if data.size != stop - start:
                raise TooShort(f"{data.size:,} of {stop - start:,} bytes came")
            return size, data

        try:
            size, data = attempt("read", self.where(relative), get)
        except PreconditionError as error:
            raise StoreError(
                f"{self.where(relative)} was written again by another process while it was read; "
                "nothing is damaged. Run the same command again."
            ) from error
        if size != num_bytes:
            raise CorruptCache(
                f"{self.where(relative)} has {size:,} bytes, its commit record says {num_bytes:,}."
            )
        return data

    def read_whole(
        self, relative: str, num_bytes: int, tag: str | None = None
    ) -> NDArray[np.uint8]:
        """A large object of ``num_bytes``, in parts that come at the same time."""
        whole = np.empty(num_bytes, np.uint8)

        def fetch(start: int) -> None:
            stop = min(start + PART_BYTES, num_bytes)
            whole[start:stop] = self.read_range(relative, start, stop, num_bytes, tag)

        for _ in self._parts.map(fetch, range(0, num_bytes, PART_BYTES)):
            pass
        return whole

    @property
    def is_far(self) -> bool:
        return True

    def mapped(self, relative: str, *, whole: bool = False) -> Bytes:
        if whole:
            return np.frombuffer(self.read(relative, max_bytes=MAX_FILE_BYTES), np.uint8)
        return ObjectBytes(self, relative)

    def version(self, relative: str) -> object:
        obstore = self._obstore

        head = partial(obstore.head, self._store, relative)
        try:
            return str(_version(attempt("looked up", self.where(relative), head)))
        except FileNotFoundError:
            return None

    def read_start(
        self, relative: str, num_bytes: int
    ) -> tuple[NDArray[np.uint8], int, str | None]:
        """The first ``num_bytes`` of an object, fewer when it is shorter, its size, and the tag of
        this content."""
        obstore = self._obstore

        def get() -> tuple[NDArray[np.uint8], int, str | None]:
            answer = obstore.get(self._store, relative, options={"range": (0, num_bytes)})
            size = int(answer.meta["size"])
            data = np.frombuffer(memoryview(answer.bytes()), np.uint8)
            if data.size != min(num_bytes, size):
                raise TooShort(f"{data.size:,} of {min(num_bytes, size):,} bytes came")
            return data, size, answer.meta["e_tag"]

        return attempt("read", self.where(relative), get)

    def publish(self, relative: str, chunks: Iterable[Buffer]) -> None:
        obstore = self._obstore

        buffers = [memoryview(chunk).cast("B") for chunk in chunks]
        num_bytes = sum(buffer.nbytes for buffer in buffers)

        def put() -> None:
            self.require_lease()
            if num_bytes <= PART_BYTES:
                obstore.put(self._store, relative, b"".join(buffers), use_multipart=False)
            else:
                parts = _parts_of(buffers, PART_BYTES)
                obstore.put(self._store, relative, parts, chunk_size=PART_BYTES, max_concurrency=4)

        attempt("written", self.where(relative), put)

    def create(self, relative: str, data: bytes) -> None:
        self._put_if(relative, data, "create")

    def replace(self, relative: str, data: bytes, version: Any) -> Any:
        return self._put_if(relative, data, version)

    def _put_if(self, relative: str, data: bytes, mode: Any) -> Any:
        """Put under a condition. A store that has no conditions puts, trusting the lease."""
        obstore = self._obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        def put() -> Any:
            self.require_lease()
            try:
                return _version(obstore.put(self._store, relative, data, mode=mode))
            except (NotSupportedError, NotImplementedError):
                return _version(obstore.put(self._store, relative, data))

        try:
            return attempt("written", self.where(relative), put)
        except (AlreadyExistsError, PreconditionError):
            pass
        try:
            there, version = self.read_version(relative)
        except FileNotFoundError:
            there, version = b"", None
        if there == data:  # ours arrived, and its acknowledgement was lost
            return version
        raise CacheMismatch(
            f"{self.where(relative)} was changed by another writer in the meantime. Run the same "
            "command again: it takes up what is there now."
        )

    def names_in(self, folder: str) -> list[str]:
        obstore = self._obstore

        listing = partial(obstore.list_with_delimiter, self._store, folder or None)
        entries = attempt("listed", self.where(folder), listing)
        paths = [entry["path"] for entry in entries["objects"]] + list(entries["common_prefixes"])
        return sorted(path.rsplit("/", 1)[-1] for path in paths)

    def versions(self, folder: str) -> dict[str, object]:
        obstore = self._obstore

        def listing() -> dict[str, object]:
            entries = obstore.list(self._store, folder).collect()
            return {entry["path"]: str(_version(entry)) for entry in entries}

        return attempt("listed", self.where(folder), listing)

    def walk(self) -> list[str]:
        return self._below(None)

    def _below(self, folder: str | None) -> list[str]:
        obstore = self._obstore

        def listing() -> list[str]:
            return sorted(entry["path"] for entry in obstore.list(self._store, folder).collect())

        return attempt("listed", self.where(folder or ""), listing)

    def delete(self, relative: str) -> None:
        obstore = self._obstore

        def forget() -> None:
            self.require_lease()
            obstore.delete(self._store, [relative, *self._below(relative)])

        attempt("deleted", self.where(relative), forget)

    def delete_all(self, relatives: Sequence[str]) -> None:
        obstore = self._obstore

        def forget() -> None:
            self.require_lease()
            obstore.delete(self._store, list(relatives))

        if relatives:
            attempt("deleted", self.where(relatives[0]), forget)

    def sweep(self) -> int:
        return 0  # a put that was cut off leaves nothing that can be listed or read

    @contextmanager
    def writing(self, shards: Sequence[int] | None = None) -> Iterator[None]:
        with lease.held(self.location, shards) as held:
            before, self._lease = self._lease, held
            try:
                yield
            finally:
                self._lease = before

    def holders(self) -> tuple[Holder, ...]:
        return lease.holders(self._store, self.location)

    def require_lease(self) -> None:
        """LockHeld when this writer's lease went to another."""
        if self._lease is not None:
            self._lease.require()

    def open_shard(
        self, relative: str, *, file_rows: int, row_bytes: int, num_bytes: int, checked: bool
    ) -> ObjectShard:
        return ObjectShard(self, relative, file_rows, row_bytes, num_bytes)

    def each(self, do: Callable[[T], object], items: Sequence[T]) -> None:
        if len(items) == 1:
            do(items[0])
            return
        for _ in self._tasks.map(do, items):
            pass

    def read_compressed(self, array_path: str, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        import zarr

        def read() -> None:
            store = zarr.storage.ObjectStore(self._store, read_only=True)
            array: Any = zarr.open_array(store, path=array_path, mode="r")
            out[...] = array.oindex[rows]

        attempt("read", self.where(array_path), read)


class ObjectBytes:
    """An object whose beginning is here; further parts are fetched when they are asked for, of the
    same content: StoreError where it was written again since."""

    def __init__(self, files: ObjectFiles, relative: str) -> None:
        self._files, self._relative = files, relative
        self._start, self._size, self._tag = files.read_start(relative, START_BYTES)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        start, stop, _ = part.indices(self._size)
        if stop <= max(start, self._start.size):  # a store gives no range of nothing
            return self._start[start:stop]
        whole = start == 0 and stop == self._size
        if whole and stop > PART_BYTES:
            return self._files.read_whole(self._relative, stop, self._tag)
        return self._files.read_range(self._relative, start, stop, self._size, self._tag)


def _version(meta: Any) -> dict[str, str]:
    """What names this content of an object: obstore takes no None."""
    return {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}


def _parts_of(buffers: Sequence[memoryview], part_bytes: int) -> Iterator[bytes]:
    """The buffers one after another, joined into pieces of about ``part_bytes``."""
    waiting: list[memoryview] = []
    size = 0
    for buffer in buffers:
        for start in range(0, buffer.nbytes, part_bytes):
            waiting.append(buffer[start : start + part_bytes])
            size += waiting[-1].nbytes
            if size >= part_bytes:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
