"""Some drawings in a folder of their own, for pages to be followed there."""

from __future__ import annotations

from pathlib import Path

import pytest

from phistill.cache.storage.parquet import read_table
from phistill.demo.pictures import BUNDLED


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """``photos/`` with some bundled drawings in a folder of their own."""
    some = read_table(BUNDLED).slice(0, 24).to_pylist()
    (tmp_path / "photos").mkdir()
    for at, drawing in enumerate(some):
        (tmp_path / "photos" / f"{at}.webp").write_bytes(drawing["image"])
    return tmp_path
