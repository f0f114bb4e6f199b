"""A cache of every released format opens for ever. Never change or regenerate tests/data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.cache.upkeep.verify import verify

DATA = Path(__file__).parents[2] / "data"


MODES = {"cache-v1": "packed", "cache-v1-single": "single", "cache-v1-coded": "coded"}
"""A cache whose commit records and facts are packed, one where each has a file, and a packed one
whose patches are codes."""


@pytest.mark.guarantee("G23", "format 1 opens")
@pytest.mark.parametrize("name", MODES)
def test_a_version_1_cache_opens_and_gives_its_values(name: str) -> None:
    cache = Cache(DATA / name)
    assert cache.info.format == 1
    assert verify(cache).findings == ()
    assert cache.rows(split="all").tolist() == list(range(20))
    assert cache.rows(split="heldout").tolist() == [8, 17, 18]
    generator = np.random.default_rng([1, len("t")])
    expected = generator.random((8, *cache.teacher("t").row_shape("patches"))) * 200
    stored = expected.astype(np.float16)
    if codec := cache.codec("t", "patches"):
        stored = codec.decode(codec.encode(stored))
        assert cache.commits("t")[1].lost == {"patches-codes": 6_095_838}
    np.testing.assert_array_equal(cache.reader("t", "patches").read(np.arange(8, 16)), stored)
    assert cache.index()["id"].to_pylist() == [str(row) for row in range(20)]


@pytest.mark.parametrize("name", MODES)
def test_what_is_written_today_is_still_version_1_to_the_byte(name: str, tmp_path: Path) -> None:
    """A change of the format needs a new number; this notices one that slipped in."""
    script = Path(__file__).parents[1] / "writing_script.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "c"), MODES[name]], check=True)
    for path in sorted((DATA / name).rglob("*")):
        # pyarrow names its own version inside the index, and with it the digest in the root.
        if path.is_file() and path.suffix != ".parquet" and path.parent.name != name:
            copy = tmp_path / "c" / path.relative_to(DATA / name)
            assert copy.read_bytes() == path.read_bytes(), path.name
