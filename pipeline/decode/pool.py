"""Decoding in processes: a decoder that dies or hangs costs one image, never the run.

A process serves one thread at a time, which leases it for some images. When it is lost, the images
it owes are tried one by one: one that kills its decoder, or keeps it longer than ``timeout_s``,
gets a second one and is rejected when that fails too.
"""

from __future__ import annotations

import hashlib
import queue
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from phistill.errors import SourceError

from .image import DecodedImage, DecodeSetup
from .process import DecodeProcess, ProcessLost, Request

DECODE_TIMEOUT_S = 60.0
"""Far above any honest image: 100 megapixels take a few seconds."""
NUM_TRIES = 2
COMMAND = (sys.executable, "-m", "phistill.pipeline.decode.worker")


class DecodePool:
    """``num_workers`` decoding processes, started when first needed."""

    def __init__(
        self,
        num_workers: int,
        setup: DecodeSetup,
        *,
        timeout_s: float = DECODE_TIMEOUT_S,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._timeout_s = timeout_s
        self._workers = [DecodeProcess(setup, command) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[DecodeProcess] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._closed = False

    def decode(self, data: bytes, image_id: str, numbers: Sequence[int]) -> DecodedImage:
        """As ``decode_image``, in another process. Called from several threads."""
        (image,) = [
            replace(decoded, pixels=tuple(tuple(v.copy() for v in view) for view in decoded.pixels))
            for decoded in self.decode_many([Request(data, image_id, numbers)])
        ]
        return image

    def decode_many(self, requests: Sequence[Request]) -> Iterator[DecodedImage]:
        """The images in order, from one process. Called from several threads.

        The pixels of one are overwritten when the next is asked for.
        """
        worker = self._idle.get()
        try:
            yield from self._serve(worker, requests)
        except BaseException:
            worker.stop()  # it may still owe answers
            raise
        finally:
            if self._closed:  # it may have been started while the others were ended
                worker.stop()
            self._idle.put(worker)

    def _serve(self, worker: DecodeProcess, requests: Sequence[Request]) -> Iterator[DecodedImage]:
        done = tries = 0
        together = len(requests)
        while done < len(requests):
            if self._closed:
                raise SourceError("decoding was stopped.")
            try:
                for image in worker.decode(requests[done : done + together], self._timeout_s):
                    yield image
                    done, tries = done + 1, 0
            except ProcessLost as lost:
                tries += together == 1  # it may have been lost over a later one otherwise
                together = 1
                if tries == NUM_TRIES:
                    sha256 = hashlib.sha256(requests[done].data).hexdigest()
                    yield DecodedImage(sha256, reason=str(lost))
                    done, tries = done + 1, 0

    def close(self) -> None:
        """End the processes; what they are decoding is lost."""
        self._closed = True
        for worker in self._workers:
            worker.stop()
