"""Ctrl-C and SIGTERM end a run at the next step boundary, with a checkpoint; before, at once."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from phistill.errors import PhistillError

_ANSWER = b"\nStopping after this step; everything will be saved. Ctrl-C again stops at once.\n"
"""Written straight away: a first step with compilation may take minutes."""


class Interrupted(PhistillError):
    """A signal ended the run; everything up to the last step is saved.

    ``signal_number`` is 2 or 15; a command exits with 128 plus it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Notes SIGINT and SIGTERM while entered; a second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        os.write(2, _ANSWER)


@contextmanager
def waiting(what: str, after_s: float) -> Iterator[None]:
    """A wait inside a library, which holds nothing that would have to be put down.

    Python's handlers run in the main thread alone, and not while a library has it: another thread
    is told of signals by the wake-up descriptor and ends the process, with 128 plus the signal's
    number. After ``after_s`` seconds it says ``what`` is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        if not select.select([told], [], [], after_s)[0]:
            os.write(2, f"{what}\n".encode())
        for number in os.read(told, 1):  # nothing when the wait is over
            if number in (signal.SIGINT, signal.SIGTERM):
                os.write(2, b"\nInterrupted while waiting; nothing had begun.\n")
                os._exit(128 + number)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watcher.join()
        os.close(told)
