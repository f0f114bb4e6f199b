"""A folder that is filled in one go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phistill.cache.storage.new_folder import MARK, filling
from phistill.errors import LockHeld, UsageError


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_filled_folder_holds_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with filling(folder):
        (folder / "a").write_text("a")
        assert MARK in names_in(folder)
    assert names_in(folder) == ["a"]
    with pytest.raises(UsageError, match=r"not an empty folder.*\(a\)"), filling(folder):
        pass
    assert names_in(folder) == ["a"]


def test_what_a_killed_call_left_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code = (
        "import os, sys, pathlib\n"
        "from phistill.cache.storage.new_folder import filling\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with filling(folder):\n"
        "    (folder / 'sub').mkdir()\n"
        "    (folder / 'sub' / 'old').write_text('old')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert killed.returncode == -9
    assert "sub" in names_in(folder)
    with filling(folder):
        (folder / "new").write_text("new")
    assert names_in(folder) == ["new"]


def _fail_within(folder: Path) -> None:
    with filling(folder):
        (folder / "half").write_text("half")
        raise OSError("the disk is full")


@pytest.mark.parametrize("existed", [False, True])
def test_what_fails_leaves_the_place_as_it_was(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "out"
    if existed:
        folder.mkdir()
    with pytest.raises(OSError, match="disk is full"):
        _fail_within(folder)
    assert folder.exists() == existed
    assert not existed or names_in(folder) == []


def test_files_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "dino.patches.npy").write_bytes(b"mine")
    (tmp_path / "ids.parquet").write_bytes(b"mine")
    with pytest.raises(UsageError, match="holds other things"), filling(tmp_path):
        pass
    assert names_in(tmp_path) == ["dino.patches.npy", "ids.parquet"]
    with pytest.raises(UsageError, match="is a file"), filling(tmp_path / "ids.parquet"):
        pass


def test_two_do_not_fill_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with filling(folder):
        (folder / "a").write_text("a")
        with pytest.raises(LockHeld, match="another place"), filling(folder):
            pass
    assert names_in(folder) == ["a"]
