"""A process that decodes images for its parent.

``python -m phistill.pipeline.decode.worker FD`` reads frames from stdin and answers on what
was stdout, together where the request allows it; pixels go through shared memory, the file
descriptor FD, in the slot that a request names. A frame is a length (u64), JSON of that length, a
length, bytes of that length. The first frame is the setup; then one image at a time. It ends when
stdin does, so it never outlives its parent, and whatever libraries print cannot be taken for an
answer.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from .image import DecodedImage, DecodeSetup, decode_image
from .rgb import prepare_decoder

LENGTH = struct.Struct("<Q")
ANSWER_S = 0.05
"""No answer is kept back longer than this."""
MEMORY_CAP = 4 * 2**30
"""Address space of a worker: an image of the largest allowed size fits several times."""


Decode = Callable[[bytes, str, Sequence[int], DecodeSetup], DecodedImage]


def main(decode: Decode = decode_image) -> None:
    """Serve until stdin ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us
    fd = int(sys.argv[1])
    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    prepare_decoder()
    requests = sys.stdin.buffer
    first = read_frame(requests)
    if first is None:
        return
    setup = DecodeSetup.from_dict(first[0])
    with mmap.mmap(fd, 0) as arena:
        memory = np.frombuffer(arena, np.uint8)
        answers.write(frame({"ready": os.getpid()}))
        answers.flush()
        answered = time.monotonic()
        while (request := read_frame(requests)) is not None:
            answers.write(frame(_answer(decode, *request, setup, memory)))
            now = time.monotonic()
            if request[0]["answer_now"] or now - answered > ANSWER_S:
                answers.flush()
                answered = now
        del memory


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """JSON and bytes of the next frame; None at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    record = json.loads(stream.read(LENGTH.unpack(head)[0]))
    return record, stream.read(LENGTH.unpack(stream.read(LENGTH.size))[0])


def frame(record: dict[str, Any], num_bytes: int = 0) -> bytes:
    """What is sent before the ``num_bytes`` of a frame."""
    text = json.dumps(record).encode()
    return LENGTH.pack(len(text)) + text + LENGTH.pack(num_bytes)


def _answer(
    decode: Decode,
    request: dict[str, Any],
    data: bytes,
    setup: DecodeSetup,
    memory: np.ndarray[Any, Any],
) -> dict[str, Any]:
    image = decode(data, request["id"], request["views"], setup)
    start = request["slot"] * setup.slot_bytes
    for renderings in image.pixels:
        for values in renderings:
            memory[start : start + values.size] = values.reshape(-1)
            start += values.size
    return {
        "sha256": image.sha256,
        "size": image.size,
        "boxes": image.boxes,
        "reason": image.reason,
    }


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    if not hasattr(resource, "RLIMIT_AS"):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    cap = MEMORY_CAP if hard == resource.RLIM_INFINITY else min(MEMORY_CAP, hard)
    with suppress(OSError, ValueError):  # macOS has the limit but may refuse to set it
        resource.setrlimit(resource.RLIMIT_AS, (cap, hard))


if __name__ == "__main__":
    main()
