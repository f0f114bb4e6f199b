"""Small real caches for every room's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.cache.format import names
from phistill.cache.format.info import FILE_BYTES
from phistill.cache.segments import publish_index
from tests.object_store import BUCKET, FaultProxy, environment


def pytest_configure() -> None:
    """A job in a shell's background is started with Ctrl-C ignored, and so would be every run that
    the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a CUDA device where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def small_index(num_rows: int) -> pa.Table:
    """An index of ``num_rows`` invented images, one view each."""
    return pa.table(
        {
            "row": np.arange(num_rows),
            "id": [f"image-{row:05d}" for row in range(num_rows)],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["images.parquet"] * num_rows,
            "offset": np.arange(num_rows),
            "length": np.full(num_rows, -1),
            "label": [f"class-{row % 3}" for row in range(num_rows)],
        }
    )


def facts(start: int, num_rows: int) -> ImageFacts:
    """Facts of invented images: the sha256 of the row's number."""
    return ImageFacts.of(
        sha256=tuple(
            hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, start + num_rows)
        ),
        size=((8, 8),) * num_rows,
        box=((0, 0, 8, 8),) * num_rows,
    )


def write_missing(cache: Cache, model: Cache) -> None:
    """Commit what ``cache`` lacks with the values of ``model``."""
    for owner in cache.owners:
        for shard in cache.missing_shards(owner):
            start, stop = cache.info.shard_range(shard)
            rows = np.arange(start, stop)
            arrays = {k: model.reader(owner, k).read(rows) for k in model.shapes(owner)}
            images = facts(start, stop - start)
            cache.commit_shard(owner, shard, arrays, images=images, reasons={}, environment={})


def facts_with_hash(images: ImageFacts, slot: int, sha256: str) -> ImageFacts:
    """The same facts but for the bytes of one image."""
    hashes = images.sha256.copy()
    hashes[slot] = np.frombuffer(bytes.fromhex(sha256), np.uint8)
    return dataclasses.replace(images, sha256=hashes)


def damage_record(cache: Cache, owner: str, shard: int) -> None:
    """Change a byte of a commit record, wherever it lies."""
    path = cache.path / names.commit(owner, shard)
    if path.exists():
        path.write_bytes(path.read_bytes()[:-30] + b" " * 30)
        return
    _, sha256 = next(iter(cache.commits(owner)[shard].files.values()))
    path = cache.path / names.pack(names.record_packs(owner), shard // cache.info.pack_shards)
    data = bytearray(path.read_bytes())
    data[data.index(bytes.fromhex(sha256)) + 5] ^= 1
    path.write_bytes(data)


def random_features(
    generator: np.random.Generator, teacher: TeacherInfo, num_rows: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Gaussian features with channels of different mean and scale."""
    features = {}
    for kind in teacher.kinds:
        shape = teacher.row_shape(kind)
        scale = np.linspace(0.5, 2.0, shape[-1])
        values = generator.standard_normal((num_rows, *shape)) * scale + scale
        features[kind] = values.astype(np.float32 if kind == "summary" else np.float16)
    return features


def rename_images(cache: Cache) -> None:
    """An index of other images in the same rows, as one built again of a changed folder."""
    index: Any = cache.index()
    other = pa.array([f"other-{name}" for name in index["id"].to_pylist()])
    index = index.set_column(index.column_names.index("id"), "id", other)
    shard_rows = cache.info.shard_rows
    segment = publish_index(cache.files, index, number=0, start=0, shard_rows=shard_rows)
    cache.publish_root(replace(cache.info, segments=(segment,)))


CacheFactory = Callable[..., Cache]
FULL = os.environ.get("PHISTILL_FULL") == "1"
"""Whether the guarantees are tried at their full size: `make torture`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that proves a guarantee says so: ``guarantee(name, figure)``."""
    for item in items:
        item.user_properties += [mark.args for mark in item.iter_markers("guarantee")]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """At full size, print what was proven as a Markdown table."""
    figures = Counter(
        (str(name), str(figure), report.nodeid.split("::")[-1].split("[")[0])
        for report in terminalreporter.getreports("passed")
        for name, figure in report.user_properties
    )
    if not FULL or not figures:
        return
    terminalreporter.section("figures")
    terminalreporter.write_line("| guarantee | what was tried, and passed | cases | test |")
    terminalreporter.write_line("|---|---|---|---|")
    for (name, figure, test), cases in sorted(
        figures.items(), key=lambda row: (row[0][0][0], int(row[0][0][1:]), row[0][2])
    ):
        terminalreporter.write_line(f"| {name} | {figure} | {cases} | `{test}` |")


def empty_cache(
    path: Path,
    teachers: Sequence[TeacherInfo],
    *,
    num_rows: int,
    shard_rows: int,
    pixel_size: int = 0,
    holdout: float = 0.0,
    seed: int = 0,
    compression: str = "",
    view: str = "resize",
    file_bytes: int = FILE_BYTES,
) -> Cache:
    """A cache of ``small_index`` that has its teachers and no shard of them."""
    info = CacheInfo(
        seed=seed,
        shard_rows=shard_rows,
        holdout=holdout,
        pixel_size=pixel_size,
        views=({"kind": view},),
        decode={},
        compression=compression,
        file_bytes=file_bytes,
    )
    cache = store.create(path, info, small_index(num_rows))
    for teacher in teachers:
        cache.add_teacher(teacher)
    return cache


def build_cache(
    path: Path,
    *,
    num_rows: int = 50,
    shard_rows: int = 16,
    pixel_size: int = 8,
    holdout: float = 0.2,
    seed: int = 0,
    rejects: Sequence[int] = (),
    compression: str = "",
    view: str = "resize",
    file_bytes: int = FILE_BYTES,
    teachers: Sequence[TeacherInfo] | None = None,
    features: Callable[[str, str, int, Any], Any] | None = None,
) -> Cache:
    """Write a finished cache and open it.

    ``features(name, kind, start, values)`` may replace the values of a shard; ``rejects`` are
    global rows that every owner rejects.
    """
    if teachers is None:
        teachers = (
            TeacherInfo(name="a", grid=(2, 2), widths={"patches": 12, "summary": 6}),
            TeacherInfo(name="b", grid=(3, 3), widths={"patches": 7}),
        )
    cache = empty_cache(
        path,
        teachers,
        num_rows=num_rows,
        shard_rows=shard_rows,
        pixel_size=pixel_size,
        holdout=holdout,
        seed=seed,
        compression=compression,
        view=view,
        file_bytes=file_bytes,
    )
    generator = np.random.default_rng(seed)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        num = stop - start
        reasons = {row - start: "invented" for row in rejects if start <= row < stop}
        common: dict[str, Any] = {
            "images": facts(start, num),
            "reasons": reasons,
            "environment": {},
        }
        pixels = generator.integers(0, 256, (num, pixel_size, pixel_size, 3), np.uint8)
        cache.commit_shard("pixels", shard, {"pixels": pixels}, **common)
        for teacher in teachers:
            arrays = random_features(generator, teacher, num)
            if features is not None:
                arrays = {
                    kind: features(teacher.name, kind, start, values)
                    for kind, values in arrays.items()
                }
            cache.commit_shard(teacher.name, shard, arrays, **common)
    return cache


@pytest.fixture
def make_cache(tmp_path: Path) -> CacheFactory:
    """``make_cache(name=, num_rows=, ...)``: ``build_cache`` in the test's own folder."""

    def make(*, name: str = "small.cache", **settings: Any) -> Cache:
        return build_cache(tmp_path / name, **settings)

    return make


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server on loopback with the bucket ``caches``."""
    from tests.object_store import s3_server

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server that misbehaves when told; the environment leads to it."""
    found = FaultProxy(s3_endpoint)
    for name, value in environment(found.endpoint).items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


@pytest.fixture
def bucket_url(proxy: FaultProxy) -> str:
    """A URL below which nothing is yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/my.cache"
