"""A dask.distributed cluster that is already there: joining it, and what its failures mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from phistill.errors import PhistillError, UsageError


@contextmanager
def connected(scheduler: str) -> Iterator[Any]:
    """A client of the cluster whose scheduler has this address, or wrote this ``.json`` file.

    UsageError when dask.distributed is missing or nobody answers.
    """
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            f"scheduler={scheduler!r} needs dask.distributed. Install phistill[distributed]."
        ) from error
    api: Any = distributed
    if not scheduler.endswith(".json") and ":" not in scheduler:
        raise UsageError(
            f"scheduler={scheduler!r} is neither an address such as tcp://host:8786 nor the .json "
            "file of a scheduler."
        )
    where = {"scheduler_file" if scheduler.endswith(".json") else "address": scheduler}
    try:
        client = api.Client(**where, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"scheduler={scheduler!r} does not answer ({error}). Start one with `dask scheduler`, "
            "or leave the option out to use this machine."
        ) from error
    with client:
        yield client


def finished(client: Any, futures: Sequence[Any], timeout_s: float | None = None) -> Iterator[Any]:
    """Futures in the order in which they finish; raises what a task raised.

    PhistillError when the cluster lost a task for good, TimeoutError when time is up.
    """
    import distributed

    api: Any = distributed
    waiting = api.as_completed(futures, loop=client.loop, timeout=timeout_s)
    del futures  # a result that nobody else wants need not be kept
    for future in waiting:
        if future.status != "finished":
            try:
                future.result()
            except api.KilledWorker as error:
                raise PhistillError(
                    f"a task was lost with each of the {error.allowed_failures + 1} workers that "
                    f"tried it, the last at {error.last_worker.address}. Look at their logs; most "
                    "often they ran out of memory. What was finished is kept."
                ) from error
            except api.CancelledError as error:
                raise PhistillError(
                    "the cluster gave up a task: its scheduler was stopped or cannot be reached, "
                    f"or someone cancelled it ({getattr(error, 'reason', 'no reason given')}). "
                    "What was finished is kept."
                ) from error
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] != "phistill":
                    raise
                raise UsageError(
                    "the workers of this cluster have no phistill. Install it in the environment "
                    "they run in."
                ) from error
        yield future
