"""The parent's end of one decoding process: images go in, pixels come back in order.

Several images are on their way at a time, in one write where they fit, and their answers come back
together: each time that this process is woken takes the interpreter from the thread that feeds the
teachers, and at a thousand images a second that is what bounds a GPU. Bytes go in through a pipe,
pixels come back through anonymous shared memory with a slot for each image on its way, which the
system frees however the processes end.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phistill.errors import SourceError

from .image import DecodedImage, DecodeSetup
from .worker import LENGTH, frame

START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0
"""A process that closed its pipe ends within this."""
MAX_ANSWER_BYTES = 2**24
MAX_SLOTS, SLOTS_BYTES = 8, 2**24
"""Images on their way to a process or in it: at most so many, and two or more whose pixels together
take no more than this."""
PIPE_BYTES = 2**20
"""What a pipe holds where the system allows it: as many photographs as are on their way."""


@dataclass(frozen=True, slots=True)
class Request:
    """One image to decode, and the views wanted of it."""

    data: bytes
    image_id: str
    views: Sequence[int]


class ProcessLost(Exception):
    """The process died or was ended; the message is the reason for the image it had in hand."""


class DecodeProcess:
    """One process, started when first needed; used by one thread at a time."""

    def __init__(self, setup: DecodeSetup, command: Sequence[str]) -> None:
        self._setup, self._command = setup, command
        self._num_slots = max(2, min(MAX_SLOTS, SLOTS_BYTES // max(1, setup.slot_bytes)))
        self._process: subprocess.Popen[bytes] | None = None
        self._memory: mmap.mmap | None = None
        self._answers: _Answers | None = None

    def decode(self, requests: Sequence[Request], timeout_s: float) -> Iterator[DecodedImage]:
        """The images in order. The pixels of one are overwritten when the next is asked for.

        Raises ProcessLost about the first image that was not given out: the process may have been
        lost over a later one, unless it is the only one.
        """
        process, answers = self._started()
        all_fit = len(requests) <= self._num_slots
        sent = 0
        for number in range(len(requests)):
            deadline = time.monotonic() + timeout_s
            try:
                waiting = bytearray()
                for request in requests[sent : number + self._num_slots]:
                    sent += 1
                    header = {
                        "id": request.image_id,
                        "views": list(request.views),
                        "slot": (sent - 1) % self._num_slots,
                        "answer_now": not all_fit or sent == len(requests),
                    }
                    waiting += frame(header, len(request.data))
                    waiting += request.data
                _send(process, waiting, deadline)
                answer = answers.next(deadline)
            except TimeoutError as error:
                self.stop()
                raise ProcessLost(f"decoding took longer than {timeout_s:g} s") from error
            except (OSError, EOFError, ValueError) as error:  # ValueError: closed by a thread
                try:
                    reason = _death(process.wait(timeout=END_TIMEOUT_S))
                except subprocess.TimeoutExpired:
                    reason = "the decoder stopped answering"
                self.stop()
                raise ProcessLost(reason) from error
            size = answer["size"]
            yield DecodedImage(
                answer["sha256"],
                None if size is None else (size[0], size[1]),
                tuple((box[0], box[1], box[2], box[3]) for box in answer["boxes"]),
                self._pixels(len(answer["boxes"]), number % self._num_slots),
                answer["reason"],
            )

    def _pixels(self, num_views: int, slot: int) -> tuple[tuple[Any, ...], ...]:
        assert self._memory is not None, "a started process has memory"
        memory = np.frombuffer(self._memory, np.uint8)
        views, start = [], slot * self._setup.slot_bytes
        for _ in range(num_views):
            rendered = []
            for rendering in self._setup.renderings:
                shape = (*rendering.size, 3)
                num = int(np.prod(shape))
                rendered.append(memory[start : start + num].reshape(shape))
                start += num
            views.append(tuple(rendered))
        return tuple(views)

    def _started(self) -> tuple[subprocess.Popen[bytes], _Answers]:
        if self._process is None or self._answers is None:
            return self._start()
        return self._process, self._answers

    def _start(self) -> tuple[subprocess.Popen[bytes], _Answers]:
        size = max(1, self._num_slots * self._setup.slot_bytes)
        descriptor = _anonymous(size)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as errors:
            try:
                self._memory = mmap.mmap(descriptor, size)
                self._process = process = subprocess.Popen(
                    [*self._command, str(descriptor)],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(descriptor,),
                    env=environment,
                )
            finally:
                os.close(descriptor)
            try:
                assert process.stdin is not None, "stdin is a pipe"
                os.set_blocking(process.stdin.fileno(), False)
                _widen(process.stdin.fileno())
                deadline = time.monotonic() + START_TIMEOUT_S
                _send(process, frame(self._setup.to_dict()), deadline)
                answers = self._answers = _Answers(process)
                answers.next(deadline)
            except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
                self.stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise SourceError(
                    f"a decoding process could not be started: {''.join(said) or error}. "
                    "Decode in threads with --decode threads."
                ) from error
        return process, answers

    def stop(self) -> None:
        """End the process; what it is decoding is lost."""
        process, self._process, self._answers = self._process, None, None
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


def _send(process: subprocess.Popen[bytes], data: bytes | bytearray, deadline: float) -> None:
    """Write everything; TimeoutError when the process does not take it."""
    assert process.stdin is not None, "stdin is a pipe"
    descriptor, left = process.stdin.fileno(), memoryview(data)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            _await(poll, deadline)


class _Answers:
    """Frames that a process writes, as many at a time as have come."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "stdout is a pipe"
        self._descriptor = process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN | select.POLLHUP)
        self._come = bytearray()

    def next(self, deadline: float) -> dict[str, Any]:
        """The next frame's JSON; TimeoutError, or EOFError when the process is gone."""
        record: dict[str, Any] = json.loads(self._counted(deadline).decode())
        self._counted(deadline)
        return record

    def _counted(self, deadline: float) -> bytes:
        """So many bytes as the length before them says."""
        (num_bytes,) = LENGTH.unpack(self._take(LENGTH.size, deadline))
        if num_bytes > MAX_ANSWER_BYTES:
            raise EOFError
        return self._take(num_bytes, deadline)

    def _take(self, num_bytes: int, deadline: float) -> bytes:
        while len(self._come) < num_bytes:
            _await(self._poll, deadline)
            part = os.read(self._descriptor, 2**16)
            if not part:
                raise EOFError
            self._come += part
        taken = bytes(self._come[:num_bytes])
        del self._come[:num_bytes]
        return taken


def _widen(descriptor: int) -> None:
    """Let a pipe hold PIPE_BYTES; where it may not, writing waits more often."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # Linux alone has it, and so much for each user
        return


def _await(poll: select.poll, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


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
