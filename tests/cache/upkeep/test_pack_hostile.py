"""A pack whose bytes are invented is refused, or means what it says; it costs no memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phistill.cache import CacheInfo
from phistill.cache.committed.record_table import RecordTable
from phistill.cache.format.arrays import ArrayLayout, ShardFiles
from phistill.cache.format.columns import Columns, encode
from phistill.errors import CorruptCache, PhistillError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


EMPTY = CacheInfo(seed=0, shard_rows=16, holdout=0.0, pixel_size=0, views=({},), decode={})
ONE_FILE = ShardFiles(EMPTY, [ArrayLayout.of(EMPTY, "a", "patches", (1, 4))])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_hostile_columns_are_refused_or_mean_what_they_say(data: st.DataObject) -> None:
    """The file is well formed and its digests are right; what the columns say is invented."""
    arrays = {
        "shards": data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)),
        "num_rejects": data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)),
        "reject_slots": data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)),
        "reject_reasons": data.draw(st.lists(st.integers(0, 3), max_size=3)),
        "environment": data.draw(st.lists(st.integers(0, 3), max_size=3)),
        "num_files": data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)),
    }
    k = len(arrays["shards"])
    columns: dict[str, Any] = {
        name: np.array(values, np.int64 if name == "shards" else np.uint32)
        for name, values in arrays.items()
    }
    columns |= {"num_bytes": np.zeros(k, np.int64), "sha256": np.zeros((k, 32), np.uint8)}
    columns |= {name: np.zeros((k, 32), np.uint8) for name in ("facts", "digests")}
    texts = {"owner": "a", "environments": [{"x": data.draw(TEXT)}], "reasons": [data.draw(TEXT)]}
    content = np.frombuffer(b"".join(encode(columns, texts)), np.uint8)
    try:
        table = RecordTable.of_columns(Columns(content, "x"), "a", range(2**40), ONE_FILE)
        for place, shard in enumerate(table.shards.tolist()):
            table.record(place, (shard * 16, shard * 16 + 16), ["p"])
    except PhistillError:
        return
    assert len(table.reject_ends) == k + 1


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_pack_are_refused(data: bytes) -> None:
    good = b"".join(encode({"x": np.arange(3)}, {}))
    for content in (data, good[:8] + data + good[8 + len(data) :], data[:8] + good[8:]):
        try:
            columns = Columns(np.frombuffer(content, np.uint8), "x")
            assert columns["x"].tolist() == [0, 1, 2]
        except CorruptCache:
            continue


def test_a_pack_that_claims_terabytes_costs_no_memory() -> None:
    good = b"".join(encode({"x": np.arange(3)}, {}))
    claimed = (2**62).to_bytes(8, "little") + good[8:]
    with pytest.raises(CorruptCache, match="header"):
        Columns(np.frombuffer(claimed, np.uint8), "x")
