"""Decoding in processes: a decoder that dies or hangs costs one image, never the run.

A process serves one image at a time for a thread that leases it. Bytes go in through a pipe, pixels
come back through anonymous shared memory, which the system frees however the processes end. An
image that kills its decoder, or keeps it longer than ``timeout_s``, gets a second one and is
rejected when that fails too.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import numpy as np

from ..cache.errors import SourceError
from .decode_image import DecodedImage, DecodeSetup
from .decode_worker import LENGTH, write_frame

DECODE_TIMEOUT_S = 60.0
"""Far above any honest image: 100 megapixels take a few seconds."""
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0
"""A process that closed its pipe ends within this."""
NUM_TRIES = 2
MAX_ANSWER_BYTES = 2**24
COMMAND = (sys.executable, "-m", "phistill.pipeline.decode_worker")


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
        self._workers = [_Worker(setup, command) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._closed = False

    def decode(self, data: bytes, image_id: str, numbers: Sequence[int]) -> DecodedImage:
        """As ``decode_image``, in another process. Called from several threads."""
        worker = self._idle.get()
        try:
            reason = ""
            for _ in range(NUM_TRIES):
                if self._closed:
                    raise SourceError("decoding was stopped.")
                try:
                    return worker.decode(data, image_id, numbers, self._timeout_s)
                except _Lost as lost:
                    reason = str(lost)
            return DecodedImage(hashlib.sha256(data).hexdigest(), reason=reason)
        finally:
            if self._closed:  # it may have been started while the others were ended
                worker.stop()
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; what they are decoding is lost."""
        self._closed = True
        for worker in self._workers:
            worker.stop()


class _Lost(Exception):
    """The process died or was ended; the message is the reason for the image."""


class _Worker:
    def __init__(self, setup: DecodeSetup, command: Sequence[str]) -> None:
        self._setup, self._command = setup, command
        self._process: subprocess.Popen[bytes] | None = None
        self._memory: mmap.mmap | None = None

    def decode(
        self, data: bytes, image_id: str, numbers: Sequence[int], timeout_s: float
    ) -> DecodedImage:
        process = self._process or self._start()
        request = {"id": image_id, "views": list(numbers)}
        try:
            write_frame(cast(BinaryIO, process.stdin), request, data)
            answer = _read_answer(process, timeout_s)
        except TimeoutError as error:
            self.stop()
            raise _Lost(f"decoding took longer than {timeout_s:g} s") from error
        except (OSError, EOFError, ValueError) as error:  # ValueError: closed by another thread
            try:
                reason = _death(process.wait(timeout=END_TIMEOUT_S))
            except subprocess.TimeoutExpired:
                reason = "the decoder stopped answering"
            self.stop()
            raise _Lost(reason) from error
        size = answer["size"]
        return DecodedImage(
            answer["sha256"],
            None if size is None else (size[0], size[1]),
            tuple((box[0], box[1], box[2], box[3]) for box in answer["boxes"]),
            self._pixels(len(answer["boxes"])),
            answer["reason"],
        )

    def _pixels(self, num_views: int) -> tuple[tuple[Any, ...], ...]:
        assert self._memory is not None, "a started worker has memory"
        memory = np.frombuffer(self._memory, np.uint8)
        found, start = [], 0
        for _ in range(num_views):
            rendered = []
            for rendering in self._setup.renderings:
                shape = (*rendering.size, 3)
                num = int(np.prod(shape))
                rendered.append(memory[start : start + num].reshape(shape).copy())
                start += num
            found.append(tuple(rendered))
        return tuple(found)

    def _start(self) -> subprocess.Popen[bytes]:
        size = max(1, self._setup.row_bytes * len(self._setup.views))
        descriptor = _anonymous(size)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as errors:
            try:
                self._memory = mmap.mmap(descriptor, size)
                self._process = process = subprocess.Popen(
                    [*self._command, str(descriptor)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(descriptor,),
                    env=environment,
                )
            finally:
                os.close(descriptor)
            try:
                write_frame(cast(BinaryIO, process.stdin), self._setup.to_dict())
                _read_answer(process, START_TIMEOUT_S)
            except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
                self.stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise SourceError(
                    f"a decoding process could not be started: {''.join(said) or error}. "
                    "Decode in threads with --decode threads."
                ) from error
        return process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # what was not yet sent cannot be sent any more
                pass


def _read_answer(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    """The next frame of a worker; TimeoutError, or EOFError when the process is gone."""
    deadline = time.monotonic() + timeout_s
    assert process.stdout is not None, "stdout is a pipe"
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)

    def read(num_bytes: int) -> bytes:
        if num_bytes > MAX_ANSWER_BYTES:
            raise EOFError
        found = bytearray()
        while len(found) < num_bytes:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            part = os.read(descriptor, num_bytes - len(found))
            if not part:
                raise EOFError
            found += part
        return bytes(found)

    text = read(LENGTH.unpack(read(LENGTH.size))[0])
    read(LENGTH.unpack(read(LENGTH.size))[0])
    record: dict[str, Any] = json.loads(text)
    return record


def _death(code: int) -> str:
    if code >= 0:
        return f"the decoder ended with code {code}"
    try:
        return f"the decoder died of {signal.Signals(-code).name}"
    except ValueError:
        return f"the decoder died of signal {-code}"


def _anonymous(size: int) -> int:
    """A descriptor of ``size`` bytes of memory without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("phistill-decode", 0)
        os.ftruncate(descriptor, size)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
