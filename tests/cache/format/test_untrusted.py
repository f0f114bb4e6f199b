"""G20: a cache from a stranger is refused with a PhistillError, or means what it says.

The documents are changed and sealed again, as whoever means harm would do, so that their digest
does not stop the fuzzing. ``PHISTILL_FULL=1`` runs 50,000 iterations over all parsers together.
"""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from phistill.cache import Cache
from phistill.cache import open as open_cache
from phistill.cache.format.arrays import group_attributes
from phistill.cache.format.info import CacheInfo, TeacherInfo
from phistill.cache.format.json_document import (
    MAX_DOCUMENT_BYTES,
    canonical,
    decode,
    parse,
    with_digest,
)
from phistill.cache.format.record import CommitRecord
from phistill.cache.format.shard import decode_rows, encode_shard, index_bytes
from phistill.cache.upkeep.verify import verify
from phistill.errors import CorruptCache, PhistillError
from tests.conftest import FULL, build_cache

CacheFactory = Callable[..., Cache]
EXAMPLES = 10_000 if FULL else 200
MEMORY_CAP = 64 * 2**20
"""Bytes that parsing a hostile document of a small cache may take."""

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["../../x", "/etc/passwd", "a\0b", "é" * 300, 2**31, 2**63, -1, 10**30]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(p for key, child in inside for p in places(child, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, original: Any) -> Any:
    """``original`` with one to three of its values replaced or left out."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            return draw(VALUES)
        target = value
        for key in path[:-1]:
            target = target[key]
        if isinstance(target, dict) and draw(st.booleans()):
            del target[path[-1]]
        else:
            target[path[-1]] = draw(VALUES)
    return value


def plain(record: CommitRecord) -> Any:
    return msgspec.to_builtins(record, str_keys=True)


def sealed(record: Any) -> Any:
    """A changed document with the digest that it then has."""
    return with_digest(record) if isinstance(record, dict) else record


@pytest.fixture(scope="module")
def example_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cache(tmp_path_factory.mktemp("fuzz") / "c", num_rows=12, rejects=[3]).path


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed inputs: read or refused")
@fuzzed
@given(data=st.data())
def test_a_root_is_read_or_refused(example_cache: Path, data: st.DataObject) -> None:
    content = msgspec.to_builtins(open_cache(example_cache).info)
    record = data.draw(changed(content))
    try:
        info = decode(sealed(record), CacheInfo, "the root")
    except PhistillError:
        return
    assert info.num_rows <= 2**40
    assert info.num_shards >= 0
    assert canonical(info)


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed inputs: read or refused")
@fuzzed
@given(data=st.data())
def test_a_teacher_is_read_or_refused(example_cache: Path, data: st.DataObject) -> None:
    record = data.draw(changed(msgspec.to_builtins(open_cache(example_cache).teacher("a"))))
    try:
        teacher = decode(sealed(record), TeacherInfo, "the teacher")
    except PhistillError:
        return
    assert all(np.prod(teacher.row_shape(kind), dtype=object) > 0 for kind in ("patches",))
    assert teacher.row_bytes < 2**33
    assert "/" not in teacher.name
    assert ".." not in teacher.name


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed inputs: read or refused")
@fuzzed
@given(data=st.data())
def test_a_commit_record_is_read_or_refused(example_cache: Path, data: st.DataObject) -> None:
    record = data.draw(changed(plain(open_cache(example_cache).commits("a")[0])))
    try:
        found = CommitRecord.from_bytes(canonical(sealed(record)), "the record")
    except PhistillError:
        return
    assert found.accepted.shape == (found.num_rows,)
    assert all(isinstance(size, int) for size, _ in found.files.values())


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed inputs: read or refused")
@fuzzed
@given(data=st.binary(max_size=300), rows=st.integers(1, 8), row_bytes=st.integers(1, 64))
def test_a_shard_index_points_inside_its_file_or_is_refused(
    data: bytes, rows: int, row_bytes: int
) -> None:
    good = b"".join(encode_shard(np.zeros((1, row_bytes), np.uint8), rows))
    tail = np.frombuffer((data + good)[-index_bytes(rows) :], np.uint8).copy()
    spoilt = tail.copy()
    for place, value in enumerate(data[:24]):
        spoilt[place % spoilt.size] = value
    for candidate in (tail, spoilt):
        try:
            offsets = decode_rows(candidate, rows, len(good), row_bytes, "the shard")
        except CorruptCache:
            continue
        assert ((offsets >= -1) & (offsets + row_bytes <= len(good))).all()


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed inputs: read or refused")
@fuzzed
@given(data=st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"a":NaN}')
@example(b"1" * 5000)
def test_text_is_parsed_or_refused(data: bytes) -> None:
    try:
        group_attributes(data, CacheInfo, "the root")
    except PhistillError:
        return


def test_a_document_beyond_the_cap_is_not_parsed() -> None:
    class Endless(bytes):
        def __len__(self) -> int:
            return MAX_DOCUMENT_BYTES + 1

    with pytest.raises(CorruptCache, match="is not ours"):
        parse(Endless(), "the record")


@pytest.mark.guarantee("G20", "18 TiB claimed: refused within 64 MiB")
@pytest.mark.parametrize("field", ["num_rows", "start"])
def test_a_root_that_claims_terabytes_costs_no_memory(example_cache: Path, field: str) -> None:
    """18 TiB of rows, in the root and in the arrays, over a cache of a few kilobytes."""
    content = msgspec.to_builtins(open_cache(example_cache).info)
    content["segments"][-1][field] = 2**44
    tracemalloc.start()
    try:
        with pytest.raises(PhistillError):
            decode(sealed(content), CacheInfo, "the root")
        assert tracemalloc.get_traced_memory()[1] < MEMORY_CAP
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("axis", [0, 1])
def test_an_array_that_claims_terabytes_costs_no_memory(
    make_cache: CacheFactory, axis: int
) -> None:
    """A longer first axis is what a killed append leaves; any other change is refused."""
    cache = make_cache()
    path = cache.path / "teachers/a/patches/zarr.json"
    document = json.loads(path.read_text())
    document["shape"][axis] = 2**44
    path.write_text(json.dumps(document))
    tracemalloc.start()
    try:
        if axis == 0:
            rows = Cache(cache.path).reader("a", "patches").read(np.arange(4))
            assert rows.shape == (4, 4, 12)
        else:
            with pytest.raises(CorruptCache, match="does not describe the array"):
                Cache(cache.path).reader("a", "patches")
        findings = verify(Cache(cache.path)).findings
        assert any("patches/zarr.json" in str(finding) for finding in findings)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_CAP
    finally:
        tracemalloc.stop()


def test_a_record_that_names_a_file_outside_is_refused(make_cache: CacheFactory) -> None:
    cache = make_cache()
    path = cache.path / "commits/a/000000.json"
    content = plain(cache.commits("a")[0])
    size, sha256 = next(iter(content["files"].values()))
    content["files"] = {"../../../outside": [size, sha256]}
    path.write_bytes(canonical(with_digest(content)))
    findings = verify(Cache(cache.path)).findings
    assert [(finding.owner, finding.shard) for finding in findings] == [("a", 0)]
