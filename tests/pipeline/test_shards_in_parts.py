"""A shard is extracted in parts and written file by file; how, nobody can tell from the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill.cache import Cache
from phistill.cache.upkeep.verify import verify
from phistill.pipeline import CacheSettings, ExtractOptions, extract, shard_pass
from phistill.pipeline.images.folder import FolderSource
from phistill.pipeline.settings import default_shard_rows

SETTINGS = CacheSettings(pixel_size=16, shard_rows=32, file_bytes=800, seed=1)
"""Of 41 rows: a file has 4 rows of patches (192 bytes each), 32 of the summary, one of pixels."""


@pytest.mark.parametrize("part_bytes", [1, 3000])
@pytest.mark.parametrize("batch", [3, 8])
def test_parts_of_any_size_give_the_same_bytes(
    part_bytes: int, batch: int, folder: Path, tiny: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "red.png")
    options = ExtractOptions(rows_per_forward=batch)
    teachers = [f"t={tiny}?poison=0.9", f"u={tiny}?scale=2"]
    whole = extract(folder, tmp_path / "whole", teachers, settings=SETTINGS, options=options).cache
    monkeypatch.setattr(shard_pass, "PART_BYTES", part_bytes)
    parts = extract(folder, tmp_path / "parts", teachers, settings=SETTINGS, options=options).cache
    assert parts.commits("t").reason_counts() == whole.commits("t").reason_counts()
    assert len(whole.commits("t").rejected) == 2
    assert parts.digest() == whole.digest()
    assert verify(parts).findings == ()


def test_files_of_any_size_hold_the_same_features(folder: Path, tiny: str, tmp_path: Path) -> None:
    several = extract(folder, tmp_path / "several", [f"t={tiny}"], settings=SETTINGS).cache
    one = CacheSettings(pixel_size=16, shard_rows=32, seed=1)
    single = extract(folder, tmp_path / "single", [f"t={tiny}"], settings=one).cache
    assert len(several.commits("t")[0].files) == 8 + 1
    assert len(single.commits("t")[0].files) == 2
    rows = single.rows(split="all")
    assert several.rows(split="all").tolist() == rows.tolist()
    for owner, kind in (("t", "patches"), ("t", "summary"), ("pixels", "pixels")):
        np.testing.assert_array_equal(
            several.reader(owner, kind).read(rows), single.reader(owner, kind).read(rows)
        )


class Waiting(FolderSource):
    """Gives the last image of a shard only when an earlier file of the shard is there."""

    def __init__(self, folder: Path, cache: Path, last: str) -> None:
        super().__init__(folder)
        self._first_file, self._last = cache / "teachers/t/patches/c/0/0/0", last
        self.waited = False

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if uri == self._last:
            until = time.monotonic() + 300
            while not self._first_file.exists() and time.monotonic() < until:
                time.sleep(0.01)
            assert self._first_file.exists(), "no file before the last image"
            self.waited = True
        return super().read(uri, offset, length)


def test_a_file_is_written_before_the_shards_last_image_is_read(
    folder: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_pass, "PART_BYTES", 2000)
    options = ExtractOptions(rows_per_forward=2, num_workers=1, decode="threads")
    whole = extract(
        folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS, options=options
    ).cache
    uri = whole.lines(np.array([31]), ["uri"])["uri"][0].as_py()
    source = Waiting(folder, tmp_path / "c", uri)
    cache = extract(source, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options).cache
    assert source.waited
    assert cache.digest() == whole.digest()


@pytest.mark.guarantee("G3", "SIGKILL between files of one shard: same digest after resuming")
def test_killed_between_the_files_of_a_shard_it_ends_the_same(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    slow = f"t={tiny}?pause=0.05"
    options = ExtractOptions(rows_per_forward=2)
    whole = extract(folder, tmp_path / "whole", [slow], settings=SETTINGS, options=options).cache
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "phistill", "extract", str(folder), "--cache", str(target)]
    command += ["--teacher", slow, "--pixel-size", "16", "--shard-rows", "32", "--seed", "1"]
    command += ["--file-bytes", "800", "--batch-size", "2"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    written = target / "teachers/t/patches/c/1/0/0"
    while process.poll() is None and not written.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert written.exists(), said
    assert process.returncode == -signal.SIGKILL, said
    again = extract(folder, target, [slow]).cache
    assert again.digest() == whole.digest()
    assert verify(Cache(target)).findings == ()


@pytest.mark.parametrize(
    ("num_rows", "side", "device", "expected"),
    [
        (1_281_167, 224, "cuda", 4096),
        (1_281_167, 518, "cuda", 2048),
        (1_281_167, 1024, "cuda", 1024),
        (1_281_167, 224, "cpu", 512),
        (1_281_167, 1024, "cpu", 32),
        (1_281_167, 0, "cpu", 4096),
        (2000, 224, "cuda", 64),
        (10, 224, "cuda", 8),
        (10**6, 10**6, "cpu", 1),
    ],
)
def test_the_unit_of_commit_is_a_matter_of_work_and_not_of_bytes(
    num_rows: int, side: int, device: str, expected: int
) -> None:
    found = default_shard_rows(num_rows=num_rows, input_pixels=side * side, device=device)
    assert found == expected
