"""Writes a small cache, or goes on with it; killed by the tests at every place that matters.

writing_script.py PLACE [MODE]: ``single`` leaves commit records and facts in files of single
shards, ``again`` takes a shard out of the packs and commits it anew, ``coded`` stores patches as
the golden codes of tests/data/codes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

import phistill.cache as store
from phistill.cache import CacheInfo, ImageFacts, TeacherInfo
from phistill.cache.codes import FittedCodec, RowCodec, coded_teacher
from phistill.cache.storage.objects import lease
from phistill.cache.storage.open_files import open_files
from phistill.cache.upkeep.pack import pack

NUM_ROWS = 20
CODES = Path(__file__).parents[1] / "data" / "codes"


def index() -> pa.Table:
    return pa.table(
        {
            "row": np.arange(NUM_ROWS),
            "id": [str(row) for row in range(NUM_ROWS)],
            "view": np.zeros(NUM_ROWS, np.int32),
            "uri": ["x"] * NUM_ROWS,
            "offset": np.arange(NUM_ROWS),
            "length": np.full(NUM_ROWS, -1),
        }
    )


def main(location: str | Path, mode: str = "packed") -> None:
    lease.STALE_S = 1.5  # the next run need not wait as long as a user's
    files = open_files(location)
    with files.writing():
        if store.exists(files):
            cache = store.open(files)
        else:
            info = CacheInfo(
                seed=0,
                shard_rows=8,
                file_bytes=128,  # two files of patches and four of pixels in a shard
                holdout=0.1,
                pixel_size=4,
                views=({"kind": "resize"},),
                decode={},
            )
            cache = store.create(files, info, index())
        cache.files.sweep()
        teacher = TeacherInfo(name="t", grid=(2, 2), widths={"patches": 4, "summary": 3})
        codecs = {}
        if mode == "coded":
            data = (CODES / "patches.codec.safetensors").read_bytes()
            codecs = {"patches": RowCodec.from_bytes(data)}
            teacher = TeacherInfo(name="t", grid=(5, 3), widths={"patches": 20, "summary": 3})
            teacher = coded_teacher(teacher, {"patches": FittedCodec(codecs["patches"], 0.01, 160)})
        if "t" not in cache.teachers:
            cache.add_teacher(teacher, codecs)
        if mode == "again":
            cache.forget_shard("t", 1)
            cache.forget_shard("pixels", 1)
            cache.forget_facts([1])
        for owner in cache.owners:
            for shard in cache.missing_shards(owner):
                commit(cache, owner, shard)
        if mode != "single":
            pack(cache)


def commit(cache: store.Cache, owner: str, shard: int) -> None:
    start, stop = cache.info.shard_range(shard)
    num = stop - start
    generator = np.random.default_rng([shard, len(owner)])
    shapes = cache.shapes(owner)
    if owner != "pixels":
        shapes = {kind: cache.teacher(owner).row_shape(kind) for kind in cache.teacher(owner).kinds}
    arrays = {
        kind: (generator.random((num, *shape)) * 200).astype(
            {"pixels": np.uint8, "summary": np.float32}.get(kind, np.float16)
        )
        for kind, shape in shapes.items()
    }
    digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, stop)]
    images = ImageFacts.of(sha256=tuple(digests), size=((4, 4),) * num, box=((0, 0, 4, 4),) * num)
    cache.commit_shard(owner, shard, arrays, images=images, reasons={}, environment={})


if __name__ == "__main__":
    main(*sys.argv[1:])
