"""A folder of images, a server that has tars of images, and a teacher of one's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill.pipeline.images.tars import remote_files
from phistill.pipeline.images.tars.remote_files import WebFiles
from tests.pipeline.tar_server import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small images, PNG and JPEG, in two folders, and one file that is no image."""
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for number in range(40):
        path = root / ("cats" if number % 2 else "dogs") / f"{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (24, 20 + number, 3), np.uint8)
        Image.fromarray(pixels).save(path.with_suffix(".png" if number % 3 else ".jpg"))
    (root / "cats" / "broken.png").write_bytes(b"<html>not found</html>")
    return root


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module path of tiny_teacher, importable by name as a user's own file would be."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "module:tiny_teacher:build"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has TARS; what fails is tried again after 10 ms."""
    monkeypatch.setattr(remote_files, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(WebFiles.__init__, "__defaults__", (0.01,))
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()
