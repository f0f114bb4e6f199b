"""A web server on loopback that has tars of images, and misbehaves when told."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from phistill.pipeline import CacheSettings

NUM_TARS, IMAGES_PER_TAR = 6, 5
PATTERN = "/data/shard-{0000..0005}.tar"
SETTINGS = CacheSettings(pixel_size=0, shard_rows=8, seed=3)


def tar(number: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for image in range(IMAGES_PER_TAR):
            pixels = np.random.default_rng([number, image]).integers(0, 256, (20, 24, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            for name, body in (
                (f"{number}-{image}.png", data.getvalue()),
                (f"{number}-{image}.cls", str(number % 2).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return sink.getvalue()


TARS = {f"/data/shard-{number:04d}.tar": tar(number) for number in range(NUM_TARS)}


class Server(ThreadingHTTPServer):
    """Serves TARS with ranges, and misbehaves as told: ``faults`` holds, per path, what to do
    to its next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list[str]] = {}
        self.whole: Counter[str] = Counter()
        self.ranges: Counter[str] = Counter()
        self.bodies = dict(TARS)
        self.takes_ranges = True
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.server.faults.get(path, [])
        what = fault.pop(0) if fault else ""
        body = self.server.bodies.get(path)
        if what.isdigit() or body is None:
            self.send_error(int(what or 404))
            return
        start, stop, status = 0, len(body), 200
        asked = self.headers.get("Range")
        if asked and self.server.takes_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or stop) + 1, stop), 206
        (self.server.ranges if asked else self.server.whole)[path] += 1
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if what == "stall":
            self.server.stalled.set()
            self.server.go_on.wait(30)
            return
        self.wfile.write(body[start : start + 700] if what == "cut" else body[start:stop])

    def log_message(self, *_: Any) -> None:
        pass
