"""Checkpoints written by a thread, while the student goes on learning."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from . import checkpoint
from .checkpoint import Checkpoint


class CheckpointWriter:
    """Publishes the checkpoints of one run, one after the other, each as ``checkpoint.save`` does.

    What a write fails with is raised by the next call, whichever it is.
    """

    def __init__(self, run: Path, *, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def submit(self, stored: Checkpoint) -> None:
        """Begin to write tensors that nothing else changes any more, after the write before."""
        self.wait()
        self._writing = self._thread.submit(self._publish, stored)

    def raise_failure(self) -> None:
        """Raise what a write has failed with; one that goes on is not waited for."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _publish(self, stored: Checkpoint) -> None:
        checkpoint.save(self.run, stored)
        checkpoint.prune(self.run, self.keep)
