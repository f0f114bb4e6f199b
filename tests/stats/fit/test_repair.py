"""Damage in stored statistics is found, named, and mended by fitting them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from phistill.cache import Cache
from phistill.cache.format import tensor_file
from phistill.cache.upkeep.verify import discard, verify
from phistill.cli import main
from phistill.errors import CorruptCache
from phistill.stats import fit_stats, load_normalizer

CacheFactory = Callable[..., Cache]


def statistics(cache: Cache) -> dict[str, bytes]:
    found = sorted((cache.path / "teachers").rglob("*.safetensors"))
    return {path.relative_to(cache.path).as_posix(): path.read_bytes() for path in found}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def cache(make_cache: CacheFactory) -> Cache:
    cache = make_cache(num_rows=60)
    fit_stats(cache)
    return cache


def test_every_flipped_byte_of_the_numbers_is_found(cache: Cache) -> None:
    assert verify(cache).findings == ()
    generator = np.random.default_rng(0)
    for path in statistics(cache):
        file = cache.path / path
        whole = file.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        for place in generator.integers(header, len(whole), 20).tolist():
            flip(file, place)
            (finding,) = verify(cache).findings
            assert (finding.path, finding.statistics) == (path, True)
            assert finding.owner == path.split("/")[1]
            file.write_bytes(whole)
    assert verify(cache).findings == ()


@pytest.mark.parametrize("damage", ["cut", "emptied", "other file"])
@pytest.mark.parametrize("which", ["part-000000", "merged", "normalizer"])
def test_fit_stats_mends_what_verify_found(which: str, damage: str, cache: Cache) -> None:
    before = statistics(cache)
    path = next(path for path in before if which in path)
    content = {"cut": before[path][:-1], "emptied": b"", "other file": b"{}" * 100}[damage]
    (cache.path / path).write_bytes(content)
    assert [finding.path for finding in verify(cache).damaged] == [path]
    fit_stats(cache, repair=True)
    assert verify(cache).findings == ()
    fit_stats(cache)
    after = statistics(cache)
    assert {path: after[path] for path in after} == {path: before[path] for path in after}
    assert set(before) - set(after) <= {path}, "a partial comes back when it is needed"


def test_without_repair_what_a_run_reads_is_mended_too(cache: Cache) -> None:
    before = statistics(cache)
    for path in before:
        if "normalizer" in path:
            flip(cache.path / path, -1)
    with pytest.raises(CorruptCache, match=r"normalizer.safetensors is damaged: .*fit-stats"):
        load_normalizer(cache, "a", "patches")
    fit_stats(cache)
    assert statistics(cache) == before


def test_repairing_shards_does_not_stumble_over_statistics(cache: Cache) -> None:
    path = next(path for path in statistics(cache) if "merged" in path)
    flip(cache.path / path, -1)
    assert discard(cache, verify(cache)) == 0
    assert verify(cache).findings == ()
    assert not (cache.path / path).exists()


def test_the_command_names_file_and_cure(cache: Cache) -> None:
    path = next(path for path in statistics(cache) if "part-" in path)
    flip(cache.path / path, -1)
    result = CliRunner().invoke(main, ["verify", str(cache.path)])
    assert result.exit_code == 1
    assert path in result.output
    assert f"phistill fit-stats {cache.path} --repair" in result.output
    assert "extract" not in result.output
    assert CliRunner().invoke(main, ["fit-stats", str(cache.path), "--repair"]).exit_code == 0
    assert CliRunner().invoke(main, ["verify", str(cache.path)]).exit_code == 0


def test_statistics_with_an_option_that_is_not_known_are_made_again(cache: Cache) -> None:
    before = statistics(cache)
    for path in [path for path in before if path.endswith("merged.safetensors")]:
        arrays, header = tensor_file.decode(before[path])
        header["facts"]["options"]["of_a_later_version"] = 1
        cache.files.publish(path, [tensor_file.encode(arrays, header)])
    with pytest.raises(CorruptCache, match="of_a_later_version"):
        load_normalizer(cache, "a", "patches")
    fit_stats(cache)
    assert statistics(cache) == before
