"""One BLAS thread per caller: parallelism comes from dask, and bits must not depend on core counts.

threadpoolctl sets a limit for the whole process, so callers that overlap in several threads must
share one limit: the first sets it, the last one lifts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits

_lock = Lock()
_depth = 0
_limit: threadpool_limits | None = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS at one thread in this process while at least one caller is inside."""
    global _depth, _limit
    with _lock:
        if _depth == 0:
            _limit = threadpool_limits(limits=1, user_api="blas")
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _limit is not None:
                _limit.restore_original_limits()
                _limit = None
