"""What is known of images is stored once, stands under every commit, and is never mixed up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import phistill.cache as store
from phistill.cache import Cache, ImageFacts, TeacherInfo
from phistill.cache.format.facts import joined
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CacheMismatch, CorruptCache, UsageError
from tests.conftest import (
    CacheFactory,
    empty_cache,
    facts,
    facts_with_hash,
    write_missing,
)

HASHES = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBERS = st.integers(0, 2**32 - 1)
ROWS = st.lists(
    st.tuples(
        HASHES,
        st.none() | st.tuples(NUMBERS, NUMBERS),
        st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
        st.booleans(),
    ),
    max_size=5,
)


def of(rows: list[Any]) -> ImageFacts:
    sha256, size, box, heldout = ([row[n] for row in rows] for n in range(4))
    return ImageFacts.of(sha256=sha256, size=size, box=box, heldout=heldout)


@given(rows=ROWS, others=ROWS)
def test_what_is_put_in_comes_out_and_equal_facts_are_equal_bytes(
    rows: list[Any], others: list[Any]
) -> None:
    known = ImageFacts.from_bytes(of(rows).to_bytes(), len(rows), "x")
    columns = known.hashes(), known.sizes(), known.boxes(), known.heldout.tolist()
    assert list(zip(*columns, strict=True)) == rows
    assert (known.to_bytes() == of(others).to_bytes()) == (rows == others)
    images, other_images = ([row[:3] for row in one] for one in (rows, others))
    assert known.shows_same(of(others)) == (images == other_images)
    both = joined([known, of(others)])
    assert both.to_bytes() == of(rows + others).to_bytes()
    assert both.take(list(range(len(rows)))).digest == known.digest


def test_a_box_that_no_picture_has_is_refused() -> None:
    with pytest.raises(UsageError, match="sizes and boxes"):
        of([(None, None, (0, -1, 5, 5), False)])


def test_facts_are_stored_once_and_records_stay_small(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=512, shard_rows=256)
    (facts_file, _) = sorted((cache.path / "facts").iterdir())
    assert facts_file.stat().st_size == 256 * 57 + 32
    assert max(path.stat().st_size for path in (cache.path / "commits").rglob("*.json")) < 1024


DAMAGE = ("flipped", "cut", "gone", "of another shard")


def damage(cache: Cache, how: str, shard: int) -> None:
    path = cache.path / f"facts/{shard:06d}.bin"
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    if how == "flipped":
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(cache.path / "facts/000000.bin", path)


@pytest.mark.guarantee("G6", "facts flipped, cut, gone, swapped: found, and rows are refused")
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_facts_are_found_and_no_row_is_given_out_by_them(
    how: str, make_cache: CacheFactory
) -> None:
    cache = make_cache()
    damage(cache, how, 1)
    (finding,) = verify(Cache(cache.path)).findings
    assert (finding.owner, finding.shard, finding.path) == ("pixels", 1, "facts/000001.bin")
    assert finding.rows == tuple(range(16, 32))
    for split in ("train", "heldout"):
        with pytest.raises(CorruptCache, match=r"facts/000001\.bin"):
            Cache(cache.path).rows(split=split)
    with pytest.raises(CorruptCache, match=r"facts/000001\.bin"):
        Cache(cache.path).facts()
    assert Cache(cache.path).rows(split="all").size == 50, "the features are whole"


@pytest.mark.guarantee("G7", "facts repaired by committing one owner's shard again")
@pytest.mark.parametrize("how", DAMAGE)
def test_lost_facts_come_back_with_the_shard_of_one_owner(
    how: str, make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    model = Cache(shutil.copytree(cache.path, tmp_path / "whole"))
    damage(cache, how, 1)
    cache = Cache(cache.path)
    assert discard(cache, verify(cache)) == 1
    assert [cache.missing_shards(owner) for owner in cache.owners] == [[1], [], []]
    write_missing(cache, model)
    assert verify(Cache(cache.path)).findings == ()
    assert Cache(cache.path).digest() == model.digest()


def test_lost_facts_are_not_replaced_by_those_of_other_images(make_cache: CacheFactory) -> None:
    cache = make_cache()
    arrays = {"pixels": cache.reader("pixels", "pixels").read(np.arange(16, 32))}
    damage(cache, "gone", 1)
    cache = Cache(cache.path)
    discard(cache, verify(cache))
    other = facts_with_hash(facts(16, 16), 3, "ab" * 32)
    with pytest.raises(CacheMismatch, match="what was known of these was lost"):
        cache.commit_shard("pixels", 1, arrays, images=other, reasons={}, environment={})


def test_an_image_that_changed_is_named_with_both_hashes(make_cache: CacheFactory) -> None:
    cache = make_cache()
    cache.forget_shard("b", 1)
    arrays = {"patches": np.zeros((16, 9, 7), np.float16)}
    other = facts_with_hash(facts(16, 16), 3, "ab" * 32)
    before = facts(19, 1).hashes()[0]
    with pytest.raises(
        CacheMismatch,
        match=rf"image image-00019 \(row 19\), read for b.*pixels.*{'ab' * 32} now, was {before}",
    ):
        cache.commit_shard("b", 1, arrays, images=other, reasons={}, environment={})


def test_facts_that_a_killed_writer_left_bind_nobody(tmp_path: Path) -> None:
    """They are written before the shard, so a writer may die between."""
    teachers = [TeacherInfo(name=n, grid=(1, 1), widths={"patches": 2}) for n in ("a", "b")]
    cache = empty_cache(tmp_path / "c", teachers, num_rows=8, shard_rows=8)
    late = store.open(cache.path)
    cache.settle_facts("a", 0, facts(0, 8))
    assert late.rows(split="train").size == 0
    assert late.facts_of(0) is not None, "it was read, and is another's now"
    assert verify(store.open(cache.path)).damaged == ()
    other = facts_with_hash(facts(0, 8), 3, "ab" * 32)
    arrays = {"patches": np.zeros((8, 1, 2), np.float16)}
    common: dict[str, Any] = {"reasons": {}, "environment": {}}
    cache.commit_shard("a", 0, arrays, images=other, **common)
    late.commit_shard("b", 0, arrays, images=other, **common)
    assert verify(store.open(cache.path)).findings == ()
    with pytest.raises(CacheMismatch, match="image-00003"):
        late.commit_shard("b", 0, arrays, images=facts(0, 8), **common)
