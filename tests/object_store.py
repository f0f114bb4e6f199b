"""An S3 server on loopback, and a proxy before it that misbehaves as networks do.

The server is moto's. The proxy passes requests on and applies the faults it was given: each to the
next requests that match, then no more.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

FaultKind = Literal["503", "cut", "short", "flip", "lost", "delay", "repeat"]

BUCKET = "caches"


@contextmanager
def s3_server() -> Iterator[str]:
    """A server with the bucket ``caches``; its address, http://127.0.0.1:PORT."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    make = http.client.HTTPConnection(host, port)
    make.request("PUT", f"/{BUCKET}")
    assert make.getresponse().status == 200
    make.close()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets to reach a store at ``endpoint``."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a method whose path holds ``part``."""

    kind: FaultKind
    """503: refused by the server. cut: half the answer, then the connection ends. short: half the
    answer, called whole. flip: one byte of the answer changed. lost: done, but the answer never
    comes. delay: 300 ms. repeat: the request arrives twice."""
    method: str = ""
    part: str = ""
    times: int = 1


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed end their connections as they like."""


class FaultProxy:
    """A proxy on loopback before ``upstream``; ``endpoint`` is its address."""

    def __init__(self, upstream: str) -> None:
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """(method, path with query) of every request that arrived."""
        self.on_request: Callable[[str, str], None] = lambda method, path: None
        """Called with each of them before it is passed on."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self, upstream))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, method: str, path: str) -> FaultKind | None:
        """The fault of a request, which has then happened once."""
        with self._lock:
            self.requests.append((method, path))
            self.on_request(method, path)
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and fault.part in path:
                    fault.times -= 1
                    return fault.kind
        return None

    def num(self, method: str, part: str = "") -> int:
        """Requests of a method whose path holds ``part``."""
        return sum(m == method and part in path for m, path in self.requests)


def _handler(proxy: FaultProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    host = upstream.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(host)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
                return answer.status, kept, content
            finally:
                connection.close()

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.take(self.command, self.path)
            if fault == "503":
                self.answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            if fault == "delay":
                time.sleep(0.3)
            if fault == "repeat":
                self.forward(body)
            status, headers, content = self.forward(body)
            if fault == "lost":
                self.close_connection = True
                return
            if fault == "short":
                content = content[: len(content) // 2]
            if fault == "flip":
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
            self.answer(status, headers, content, cut=fault == "cut")

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            length = next((v for k, v in headers if k.lower() == "content-length"), None)
            for key, value in headers:
                if key.lower() != "content-length":
                    self.send_header(key, value)
            head = self.command == "HEAD" and length is not None
            self.send_header("Content-Length", str(length) if head else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = serve

    return Handler


_HOP_BY_HOP = ("connection", "transfer-encoding", "server", "date")
