"""Running the passes with dask: threads here, or any distributed cluster.

One task per piece, its sums added to the partial of its group, then a tree of additions over the
groups. What is added in which order depends on the plan alone, so every scheduler gives the same
bits. Groups 0, 1, 2-3, 4-7, ... are
added as blocks, and between blocks a sketch is taken: the state after each doubling of the data.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


ProgressCallback = Callable[[FitProgress], None]


def run_passes(
    files: Files,
    plans: Sequence[ArrayPlan],
    *,
    finish: Finish[Result],
    scheduler: str | None,
    progress: ProgressCallback | None,
) -> list[Result]:
    """Compute every array's result and hand it to `finish`, which runs as a task too.

    In threads of this process, or where the scheduler of dask.distributed at this address has
    workers that see the cache under the same path.
    """
    meter = _Meter(progress)
    results = [_array_graph(files, plan, finish, meter) for plan in plans]
    if scheduler is not None:
        return _on_cluster(scheduler, results, meter)
    # The functions, not their names: looking a name up imports all of distributed.
    with (
        _dask.callbacks.Callback(posttask=lambda key, *_: meter.finished(key)),
        one_blas_thread(),
        # A pool of our own, which ends here: after an error dask leaves its threads running, and
        # they would go on writing to a cache whose lock is free again.
        ThreadPoolExecutor(_num_cores()) as pool,
    ):
        return list(_dask.compute(*results, scheduler=_dask.threaded.get, pool=pool))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Meter:
    """Turns names of finished tasks into progress."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        self._progress = progress
        self.tasks: list[Any] = []
        self._open: dict[str, tuple[str, int]] = {}
        self._done = 0
        self._total = 0

    def expect(self, task: Any, array: str, num_bytes: int) -> None:
        self.tasks.append(task)
        self._open[task.key] = (array, num_bytes)
        self._total += num_bytes

    def say(self, text: str) -> None:
        """Show a word in the place of an array's name."""
        if self._progress is not None:
            self._progress(FitProgress(text, self._done, self._total))

    def finished(self, key: str) -> None:
        array, num_bytes = self._open.pop(key, ("", 0))
        if array and self._progress is not None:
            self._done += num_bytes
            self._progress(FitProgress(array, self._done, self._total))


def _array_graph(files: Files, plan: ArrayPlan, finish: Finish[Any], meter: _Meter) -> Any:
    """What is made of one array, delayed."""
    spec = plan.spec
    # A name that never repeats: a cluster would otherwise hand out results of an earlier run.
    token = uuid.uuid4().hex
    parts = [partial_task(files, spec, group, token, meter.expect) for group in plan.groups]
    total = parts[0]
    start = 1
    while start < len(parts):
        block = _tree(parts[start : 2 * start])
        total = _dask.delayed(_extend)(total, block)
        start *= 2
    return _dask.delayed(partial(finish, files, spec), name=f"finish-{token}")(total)


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
    return prefix.sketched() + block


def _on_cluster(address: str, results: list[Any], meter: _Meter) -> list[Any]:
    with connected(address) as client:
        if not client.nthreads():
            meter.say("no worker yet, waiting for one")
        made = client.compute(results)
        for future in finished(client, [*client.compute(meter.tasks), *made]):
            meter.finished(future.key)
        return list(client.gather(made))
