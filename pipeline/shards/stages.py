"""The threads beside the teachers', and what is done in them one thing after another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


def after(before: Future[None] | None, call: Callable[[], None]) -> None:
    """Make a call when an earlier one, handed over before it, has returned."""
    if before is not None:
        before.result()
    call()


class Stages:
    """The threads beside the teachers'."""

    def __init__(self, num_writers: int, num_coders: int) -> None:
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.landing = ThreadPoolExecutor(1, thread_name_prefix="land")
        self.copying = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self.coding = ThreadPoolExecutor(num_coders, thread_name_prefix="code")
        self.writing = ThreadPoolExecutor(num_writers, thread_name_prefix="write")
        self.packing = ThreadPoolExecutor(1, thread_name_prefix="pack")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.preparing.shutdown(cancel_futures=True)
        self.landing.shutdown(cancel_futures=True)
        self.copying.shutdown(cancel_futures=True)
        self.coding.shutdown(cancel_futures=True)
        self.writing.shutdown()
        self.packing.shutdown()
