"""Running the passes with dask: threads here, or any distributed cluster.

One task per piece, its sums added to the partial of its group, then a tree of additions over the
groups. What is added in which order depends on the plan alone, so every scheduler gives the same
bits. Groups 0, 1, 2-3, 4-7, ... are added as blocks, and between blocks a sketch is taken: the
state after each doubling of the data.

Tasks are submitted in waves, so that their number and the memory they hold do not grow with the
cache. A wave holds chunks: as many groups of an array as are a power of two and a subtree of their
block, whose sums come back as one.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import dask.callbacks
import dask.threaded

from phistill.cache.storage.files import Files
from phistill.compute.blas import one_blas_thread
from phistill.compute.dask_client import connected, finished

from ..moments.pass_result import PassResult
from .partials import Partial, extended, piece_result, publish_partial, stored_partial
from .pieces import ArrayPlan, ArraySpec, Group

log = logging.getLogger(__name__)

_dask: Any = dask
"""dask without its partial annotations, which stop at every call."""

Result = TypeVar("Result")

Finish = Callable[[Files, ArraySpec, PassResult], Result]


@dataclass(frozen=True, slots=True)
class FitProgress:
    """How far fit_stats is, over all arrays."""

    array: str
    """The array of the piece that was finished last, "teacher kind"; or why nothing happens."""
    done_bytes: int
    total_bytes: int
    """Bytes of features whose statistics are wanted, those of stored partials included."""

    @property
    def num_done(self) -> int:
        return self.done_bytes

    @property
    def num_total(self) -> int:
        return self.total_bytes

    def note(self) -> str:
        return f"{self.array}, {self.total_bytes / 1e9:.3g} GB"


ProgressCallback = Callable[[FitProgress], None]


MAX_TASKS = 4096
"""Of one wave, about: minutes of work for most arrays, and little for a scheduler."""


def run_passes(
    files: Files,
    plans: Sequence[ArrayPlan],
    *,
    finish: Finish[Result],
    scheduler: str | None,
    progress: ProgressCallback | None,
    max_tasks: int = MAX_TASKS,
) -> list[Result]:
    """Compute every array's result and hand it to `finish`, which runs as a task too.

    In threads of this process, or where the scheduler of dask.distributed at this address has
    workers that see the cache under the same path.
    """
    meter = _Meter(progress, sum(plan.num_rows * plan.spec.row_bytes for plan in plans))
    sums = [_Running() for _ in plans]
    done: dict[int, Result] = {}
    with _threads(meter) if scheduler is None else _cluster(scheduler, meter) as compute:
        for wave in _waves(plans, max_tasks):
            whole = [n for n in range(len(plans)) if n not in done and sums[n].is_whole(plans[n])]
            tasks = [
                _dask.delayed(partial(finish, files, plans[n].spec), name=f"finish-{_token()}")(
                    sums[n].total()
                )
                for n in whole
            ]
            tasks += [_chunk_graph(files, plans[n], first, stop, meter) for n, first, stop in wave]
            results = compute(tasks)
            done |= dict(zip(whole, results[: len(whole)], strict=True))
            for (n, first, stop), result in zip(wave, results[len(whole) :], strict=True):
                sums[n].add(first, stop, result)
            for n in whole:
                sums[n] = _Running()  # its memory
    return [done[n] for n in range(len(plans))]


Compute = Callable[[list[Any]], list[Any]]
"""Computes delayed tasks."""


@contextmanager
def _threads(meter: _Meter) -> Iterator[Compute]:
    # The functions, not their names: looking a name up imports all of distributed.
    with (
        _dask.callbacks.Callback(posttask=lambda key, *_: meter.finished(key)),
        one_blas_thread(),
        # A pool of our own, which ends here: after an error dask leaves its threads running, and
        # they would go on writing to a cache whose lock is free again.
        ThreadPoolExecutor(_num_cores()) as pool,
    ):
        yield lambda tasks: list(_dask.compute(*tasks, scheduler=_dask.threaded.get, pool=pool))


@contextmanager
def _cluster(address: str, meter: _Meter) -> Iterator[Compute]:
    with connected(address) as client:
        if not client.nthreads():
            log.info("the cluster has no worker yet: waiting for one.")

        def compute(tasks: list[Any]) -> list[Any]:
            made = client.compute(tasks)
            for future in finished(client, [*client.compute(meter.take_tasks()), *made]):
                meter.finished(future.key)
            return list(client.gather(made))

        yield compute


Chunk = tuple[int, int, int]
"""Number of an array, its first group, and the group after its last."""


def _waves(plans: Sequence[ArrayPlan], max_tasks: int) -> Iterator[list[Chunk]]:
    """The chunks of all arrays, so many at a time that their tasks are about max_tasks; at the end
    an empty wave, in which the last arrays are finished."""
    wave: list[Chunk] = []
    num_tasks = 0
    for number, plan in enumerate(plans):
        size = 1
        while 2 * size * plan.groups.tasks_per_group <= max_tasks:
            size *= 2
        for first in range(0, len(plan.groups), size):
            if num_tasks and num_tasks + size * plan.groups.tasks_per_group > max_tasks:
                yield wave
                wave, num_tasks = [], 0
            stop = min(first + size, len(plan.groups))
            wave.append((number, first, stop))
            num_tasks += (stop - first) * plan.groups.tasks_per_group
    yield wave
    yield []


class _Running:
    """The sum over an array's chunks that came so far, added as one tree of all groups would.

    The first chunk holds whole blocks; each later one is a subtree of its block, or the rest of it.
    Subtrees wait, largest first, until their neighbour of equal size is there.
    """

    def __init__(self) -> None:
        self._prefix: PassResult | None = None
        self._waiting: list[tuple[int, PassResult]] = []
        self._stop = 0

    def is_whole(self, plan: ArrayPlan) -> bool:
        return self._stop == len(plan.groups)

    def add(self, first: int, stop: int, result: PassResult) -> None:
        """The sum over groups first to stop; chunks come in order."""
        self._stop = stop
        if self._prefix is None:
            self._prefix = result
            return
        if first & (first - 1) == 0:  # a block begins
            self._prefix = self.total()
        size = stop - first
        while self._waiting and self._waiting[-1][0] == size:
            result = self._waiting.pop()[1] + result
            size *= 2
        self._waiting.append((size, result))

    def total(self) -> PassResult:
        """What came so far."""
        assert self._prefix is not None
        if not self._waiting:
            return self._prefix
        _, block = self._waiting.pop()
        while self._waiting:
            block = self._waiting.pop()[1] + block
        self._prefix = _extend(self._prefix, block)
        return self._prefix


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Meter:
    """Turns names of finished tasks into progress."""

    def __init__(self, progress: ProgressCallback | None, total_bytes: int) -> None:
        self._progress, self._total, self._done = progress, total_bytes, 0
        self._tasks: list[Any] = []
        self._open: dict[str, tuple[str, int]] = {}

    def expect(self, task: Any, array: str, num_bytes: int) -> None:
        self._tasks.append(task)
        self._open[task.key] = (array, num_bytes)

    def take_tasks(self) -> list[Any]:
        """Those of this wave."""
        tasks, self._tasks = self._tasks, []
        return tasks

    def finished(self, key: str) -> None:
        array, num_bytes = self._open.pop(key, ("", 0))
        if array and self._progress is not None:
            self._done += num_bytes
            self._progress(FitProgress(array, self._done, self._total))


def _token() -> str:
    """A name that never repeats: a cluster would otherwise hand out results of an earlier run."""
    return uuid.uuid4().hex


def _chunk_graph(files: Files, plan: ArrayPlan, first: int, stop: int, meter: _Meter) -> Any:
    """The sum over the groups of a chunk, delayed."""
    token = _token()
    parts = [
        partial_task(files, plan.spec, plan.groups[number], token, meter.expect)
        for number in range(first, stop)
    ]
    if first:
        return _tree(parts)
    total, start = parts[0], 1
    while start < len(parts):
        total = _dask.delayed(_extend)(total, _tree(parts[start : 2 * start]))
        start *= 2
    return total


def partial_task(
    files: Files, spec: ArraySpec, group: Group, token: str, expect: Callable[[Any, str, int], None]
) -> Any:
    """The delayed sum over one group: its pieces one task each, added as they come in.

    Tasks as small as a piece keep all cores busy to the end. expect hears of each piece's task,
    its array and the bytes it reads.
    """

    def task(work: Callable[..., Any], *inputs: Any, name: str) -> Any:
        # partial() keeps dask from looking for tasks inside the arguments.
        key = f"{name}-{token}-{group.number}"
        return _dask.delayed(work, name=f"f-{key}")(*inputs, dask_key_name=key)

    stored = task(partial(stored_partial, files, spec, group), name="stored")
    num_stored = task(_num_pieces, stored, name="num-stored")
    total = stored
    for position, piece in enumerate(group.pieces):
        work = partial(piece_result, files, spec, piece, position)
        result = task(work, num_stored, name=f"piece-{position}")
        expect(result, spec.name, len(piece.rows) * spec.row_bytes)
        total = task(partial(extended, group.number), total, result, name=f"to-piece-{position}")
    publish = partial(publish_partial, files, spec, group)
    return task(publish, total, num_stored, name="partial")


def _num_pieces(partial: Partial) -> int:
    return partial.num_pieces


def _tree(parts: list[Any]) -> Any:
    """Add neighbours until one is left."""
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [_dask.delayed(_add)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


def _add(left: PassResult, right: PassResult) -> PassResult:
    return left + right


def _extend(prefix: PassResult, block: PassResult) -> PassResult:
    """Add the next block of groups, after noting how things stood before it."""
    with one_blas_thread():  # or the last bits depend on the number of cores
        return prefix.sketched() + block
