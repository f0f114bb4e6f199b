"""What the machine has: devices, cores, room on its disks, and whether it decodes images."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from phistill.cache.storage import lock
from phistill.cache.storage.local_files import LocalFiles
from phistill.cache.storage.open_files import open_files
from phistill.compute.devices import visible_devices
from phistill.errors import PhistillError
from phistill.pipeline.decode.image import DecodeSetup
from phistill.pipeline.decode.pool import DecodePool
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.shards import can_use_processes, num_cores
from phistill.pipeline.decode.views import Rendering, View

from ..terminal import bytes_text
from .findings import Finding

LITTLE_SPACE = 10 * 10**9


def devices() -> Iterator[Finding]:
    import torch

    visible = visible_devices()
    for one in visible:
        memory = "" if one.memory_bytes is None else f", {bytes_text(one.memory_bytes)}"
        yield Finding("device", "ok", f"{one.device} {one.name}{memory}")
    if not visible:
        built = torch.version.cuda
        advice = "Fine for small teachers; a ViT-L needs about a second per image."
        if built and shutil.which("nvidia-smi"):
            advice = f"torch is built for CUDA {built} and sees no device: look at nvidia-smi."
        yield Finding("device", "note", "no GPU: teachers and students run on the CPU", advice)


def system() -> Iterator[Finding]:
    yield Finding("system", "ok", f"{platform.system()} {platform.release()}")
    if not lock.AVAILABLE:
        yield Finding(
            "system", "note",
            "it has no file locks (fcntl): caches and runs can be read, not written",
            "Write them on Linux or macOS, or in WSL.",
        )  # fmt: skip


def cores() -> Iterator[Finding]:
    cores = num_cores()
    text = f"{cores} cores of {os.cpu_count()}, {platform.machine()}"
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        text += f", OMP_NUM_THREADS={threads}"
    yield Finding("cpu", "ok", text)


def disks(cache: Path | str | None) -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    places = {"here": Path.cwd(), "temporary files": temporary}
    files = None if cache is None else open_files(cache)
    if isinstance(files, LocalFiles):
        places = {"the cache": files.root, **places}
    for purpose, place in places.items():
        existing = place.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        short = free < LITTLE_SPACE
        yield Finding(
            "disk", "note" if short else "ok",
            f"{bytes_text(free)} free for {purpose} ({existing})",
            "phistill plan says what a cache needs." if short else "",
        )  # fmt: skip
        if place is temporary and not os.access(existing, os.W_OK):
            yield Finding(
                "disk", "problem", f"{existing} cannot be written",
                "Set TMPDIR to a folder that can be.",
            )  # fmt: skip


def decoding() -> Iterator[Finding]:
    from PIL import features

    lacking = [name for name in ("jpg", "zlib", "webp", "libtiff", "jpg_2000", "avif")
               if not features.check(name)]  # fmt: skip
    if lacking:
        yield Finding(
            "decoding", "note", f"Pillow lacks {', '.join(lacking)}",
            "Such images are rejected; install Pillow's ordinary wheel.",
        )  # fmt: skip
    if not can_use_processes():
        yield Finding("decoding", "note", "images are decoded in threads: this system cannot wait "
                                          "for a decoding process")  # fmt: skip
        return
    setup = DecodeSetup(DecodeRules(), (View(),), (Rendering((8, 8), "bicubic"),), 0)
    pool = DecodePool(1, setup)
    try:
        reason = pool.decode(b"", "doctor", [0]).reason
    except PhistillError as error:
        yield Finding("decoding", "problem", str(error))
        return
    finally:
        pool.close()
    assert reason == "empty file", "an empty image is rejected"
    yield Finding("decoding", "ok", "a decoding process starts and answers")
