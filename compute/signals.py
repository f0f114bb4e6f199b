"""Ctrl-C and SIGTERM end a run at the next step boundary, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
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
