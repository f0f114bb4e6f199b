"""Who may write what in a cache on an object store: a lease per writer, kept alive by a heartbeat.

A store has no locks that end with a process, so every writer keeps an object below ``.lease/`` and
puts it again every second; one that stays the same for ``STALE_S`` under an observer's eyes belongs
to nobody, and whoever wants its shards deletes it. Clocks of different machines are never compared.

Taking a lease is the doorway of Lamport's bakery. A writer puts an object that *asks* and then
lists the others. One that *holds* some of its shards wins at once. Of two that ask, the one with
the greater name gives up and the other waits for that. Whichever of two asked later sees the other,
because lists show every put that was answered before; so two never hold the same shard.

A writer whose last beat is older than ``FRESH_S`` beats before it writes anything. A beat is put
only over the writer's own last one, so a writer that was given up for dead learns it there.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from phistill.errors import LockHeld, StoreError

from ...format.names import LEASES
from ..lock import Holder, progression
from .client import ATTEMPTS, attempt, open_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

BEAT_S = 1.0
STALE_S = 8.0
"""A killed writer's shards are free after this, and within the ten seconds that are promised."""
OLD = timedelta(seconds=60)
"""Between two puts by the store's own clock: such a lease needs no watching."""
FRESH_S = 5.0
"""Below STALE_S by more than a beat and a slow request take."""
POLL_S = 0.2

State = Literal["asks", "holds"]
Span = tuple[int, int, int]
"""start, stop, step of a range of shards."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One writer, as its object tells."""

    nonce: str
    pid: int
    host: str
    state: State
    shards: tuple[Span, ...] | None
    """None for everything."""
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_bytes(self) -> bytes:
        names = ("nonce", "pid", "host", "state", "shards", "beat")
        return json.dumps({name: getattr(self, name) for name in names}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Claim | None:
        """None for what no writer of ours put there."""
        try:
            record = json.loads(data)
            shards = record["shards"]
            spans = (
                None if shards is None else tuple((int(a), int(b), int(c)) for a, b, c in shards)
            )
            return cls(
                str(record["nonce"]), int(record["pid"]), str(record["host"]), record["state"],
                spans, int(record["beat"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            return None

    def common_shard(self, other: Claim) -> int | None:
        """A shard that both claim, None if there is none; -1 when one of them claims everything."""
        if self.shards is None or other.shards is None:
            return -1
        ours = {shard for span in self.shards for shard in range(*span)}
        return min((s for span in other.shards for s in range(*span) if s in ours), default=None)


def spans_of(shards: Sequence[int]) -> tuple[Span, ...]:
    """The shards as few ranges: each takes as many as its first two allow."""
    left, spans = sorted(set(shards)), []
    while left:
        step = left[1] - left[0] if len(left) > 1 else 1
        num = 1
        while num < len(left) and left[num] == left[0] + num * step:
            num += 1
        spans.append((left[0], left[num - 1] + 1, step))
        left = left[num:]
    return tuple(spans)


class Lease:
    """One writer's object and the thread that keeps it alive."""

    def __init__(self, location: str, shards: Sequence[int] | None) -> None:
        spans = None if shards is None else spans_of(shards)
        self._claim = Claim(secrets.token_hex(8), os.getpid(), socket.gethostname(), "asks", spans)
        self._location = location
        self._store = open_store(location, quick=True)
        self._version: Any = None
        self._acknowledged = 0
        self._beaten = -math.inf
        self._lost = False
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    def take(self) -> None:
        """Hold the shards, or raise LockHeld naming the process and host that has some of them."""
        self._beat("asks", ATTEMPTS)
        self._thread.start()
        seen: dict[str, tuple[int, float]] = {}
        while rivals := self._rivals():
            for rival, is_old in rivals:
                beat, since = seen.setdefault(rival.nonce, (rival.beat, time.monotonic()))
                if beat == rival.beat:
                    if is_old or time.monotonic() - since > STALE_S:
                        self._delete(rival.nonce)
                elif rival.state == "holds" or rival.nonce < self._claim.nonce:
                    raise LockHeld(_refusal(self._location, rival, self._claim))
                else:  # it will see this one, and give up
                    seen[rival.nonce] = (rival.beat, time.monotonic())
            time.sleep(POLL_S)
        self._beat("holds", ATTEMPTS)
        self.require()

    def require(self) -> None:
        """LockHeld when another writer has taken over; beats first when the last beat is old."""
        if not self._lost and time.monotonic() - self._beaten > FRESH_S:
            self._beat(self._claim.state, ATTEMPTS)
        if self._lost:
            raise LockHeld(
                f"{self._location} was taken over by another writer, because this one "
                f"({self._claim}) was not heard of for {STALE_S:.0f} s. What it committed stays. "
                "Run the same command again when the other is done."
            )

    def release(self) -> None:
        """Stop beating and delete the object; a store that is gone lets it grow stale."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._lost:
            with suppress(StoreError):
                self._delete(self._claim.nonce)

    def _keep_alive(self) -> None:
        while not self._lost and not self._stop.wait(BEAT_S):
            with suppress(StoreError):  # the next beat may pass; without one nothing is written
                self._beat(self._claim.state, 1)

    def _beat(self, state: State, attempts: int) -> None:
        """Put the object again, over the last one only; notices when it was given up."""
        import obstore
        from obstore.exceptions import NotSupportedError, PreconditionError

        with self._guard:
            if self._lost:
                return
            if state != "holds" and self._claim.state == "holds":
                state = "holds"  # the thread's beat, decided before ``take`` was done
            # Counted even if it fails: it may have arrived.
            self._claim = replace(self._claim, state=state, beat=self._claim.beat + 1)
            begun, data = time.monotonic(), self._claim.to_bytes()
            mode: Any = self._version or "overwrite"

            def put() -> Any:
                try:
                    return obstore.put(self._store, self._path, data, mode=mode)
                except (NotSupportedError, NotImplementedError):
                    return obstore.put(self._store, self._path, data)

            try:
                done = attempt("written", self._where, put, attempts=attempts)
            except PreconditionError:
                done = self._stored()
            if done is None:
                self._lost = True
                return
            self._version = {key: done[key] for key in ("e_tag", "version") if done[key]}
            self._acknowledged, self._beaten = self._claim.beat, begun

    def _stored(self) -> Any:
        """The version of the object when it is our own: a beat whose answer was lost looks like
        another's. None when it is gone, or older than what was acknowledged."""
        import obstore

        def get() -> Any:
            answer = obstore.get(self._store, self._path)
            return Claim.from_bytes(answer.bytes().to_bytes()), answer.meta

        try:
            claim, meta = attempt("read", self._where, get)
        except FileNotFoundError:
            return None
        return meta if claim is not None and claim.beat >= self._acknowledged else None

    @property
    def _path(self) -> str:
        return f"{LEASES}/{self._claim.nonce}.json"

    @property
    def _where(self) -> str:
        return f"{self._location}/{self._path}"

    def _rivals(self) -> list[tuple[Claim, bool]]:
        """Other writers that claim some of our shards, and whether each is long dead."""
        writers = claims(self._store, self._location)
        own = writers.get(self._claim.nonce)
        return [
            (claim, own is not None and own[1] - at > OLD)
            for nonce, (claim, at) in writers.items()
            if nonce != self._claim.nonce and self._claim.common_shard(claim) is not None
        ]

    def _delete(self, nonce: str) -> None:
        import obstore

        path = f"{LEASES}/{nonce}.json"
        forget = partial(obstore.delete, self._store, path)
        attempt("deleted", f"{self._location}/{path}", forget)


def claims(store: ObjectStore, location: str) -> dict[str, tuple[Claim, datetime]]:
    """The writers that have an object, alive or not, by nonce; and when it was put, by the store's
    own clock."""
    import obstore

    def listing() -> list[tuple[str, datetime]]:
        entries = obstore.list(store, LEASES).collect()
        return sorted((entry["path"], entry["last_modified"]) for entry in entries)

    writers = {}
    for path, at in attempt("listed", f"{location}/{LEASES}", listing):
        get = partial(_content, store, path)
        with suppress(FileNotFoundError):
            claim = Claim.from_bytes(attempt("read", f"{location}/{path}", get))
            if claim is not None and path == f"{LEASES}/{claim.nonce}.json":
                writers[claim.nonce] = (claim, at)
    return writers


def _content(store: ObjectStore, path: str) -> bytes:
    import obstore

    return obstore.get(store, path).bytes().to_bytes()


def holders(store: ObjectStore, location: str) -> tuple[Holder, ...]:
    """The writers whose objects are there; one that was just killed may be among them."""
    living = []
    for claim, _ in claims(store, location).values():
        shards = None
        if claim.shards is not None:
            numbers = [shard for span in claim.shards for shard in range(*span)]
            shards = range(*progression(numbers))
        living.append(Holder(claim.pid, claim.host, shards))
    return tuple(living)


@contextmanager
def held(location: str, shards: Sequence[int] | None = None) -> Iterator[Lease]:
    """Hold ``shards`` of a cache for writing, or everything; LockHeld names who has some of it."""
    lease = Lease(location, shards)
    try:
        lease.take()
        yield lease
    finally:
        lease.release()


def _refusal(location: str, holder: Claim, asking: Claim) -> str:
    shard = asking.common_shard(holder)
    if shard in (None, -1):
        return (
            f"{location} is being written by {holder}. "
            "Wait for it, stop it, or choose another place."
        )
    return (
        f"{location}: shard {shard} is being written by {holder}. "
        "Wait for it, stop it, or take other shards."
    )
