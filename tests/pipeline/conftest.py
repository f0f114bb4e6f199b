"""A folder of images and a teacher of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
