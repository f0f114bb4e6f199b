"""The small files in examples/ run as their first lines say."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill import cache as store

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A working folder with the examples and two books of three pages."""
    for name in ("bookshelf_images.py", "edges_teacher.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text("utf-8"), "utf-8")
    (tmp_path / "books").mkdir()
    random = np.random.default_rng(0)
    for book in ("a", "b"):
        with zipfile.ZipFile(tmp_path / "books" / f"{book}.cbz", "w") as pages:
            for page in range(3):
                with pages.open(f"{page}.png", "w") as file:
                    pixels = random.integers(0, 256, (40, 30, 3), np.uint8)
                    Image.fromarray(pixels).save(file, "PNG")
    return tmp_path


def phistill(folder: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("phistill")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_teacher_and_an_image_source_from_one_file_each(beside: Path) -> None:
    assert "Ready to be used." in phistill(beside, "check-teacher", "module:edges_teacher:build")
    source = "module:bookshelf_images:open_shelf?folder=books"
    teacher = "edges=module:edges_teacher:build?widths=2"
    phistill(beside, "extract", source, "--cache", "my.cache", "--teacher", teacher)
    cache = store.open(beside / "my.cache")
    assert cache.num_rows == 6
    assert cache.teacher("edges").widths == {"patches": 16, "summary": 16}
    assert cache.teacher("edges").licence == "apache-2.0"
    assert sorted(cache.index()["label"].to_pylist()) == ["a"] * 3 + ["b"] * 3
    # Finished by the same command, which finds the same images.
    assert "nothing to do" in phistill(beside, "extract", source, "--cache", "my.cache")
