"""A cache on an object store: the same objects, the same bytes, and no hole whatever the network
does (G22)."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.storage.local_files import LocalFiles
from phistill.cache.storage.objects import client
from phistill.cache.storage.objects.client import open_store
from phistill.cache.storage.open_files import open_files
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CacheMismatch, CorruptCache, PhistillError, StoreError, UsageError
from tests.conftest import CacheFactory, write_missing
from tests.object_store import BUCKET, Fault, FaultProxy

Proxy = FaultProxy


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts, milliseconds instead of seconds."""
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "RETRIES", 1)


def copy_to(url: str, cache: Cache, *, commits: bool = True) -> Cache:
    """The objects of a local cache under a URL, written by the package."""
    files = open_files(url)
    for relative in cache.files.walk():
        if commits or not relative.startswith("commits/"):
            files.publish(relative, [cache.files.read(relative)])
    return store.open(url)


def test_a_cache_written_to_a_store_is_the_local_one_byte_for_byte(
    make_cache: CacheFactory, bucket_url: str
) -> None:
    local = make_cache()
    info = local.info
    remote = store.create(bucket_url, type(info)(**_settings(info)), local.index())
    for name in local.teachers:
        remote.add_teacher(local.teacher(name))
    write_missing(remote, local)
    assert remote.digest() == local.digest()
    assert [p for p in remote.files.walk() if not p.startswith(".")] == local.files.walk()
    assert verify(remote).findings == ()


def _settings(info: Any) -> dict[str, Any]:
    kept = ("seed", "shard_rows", "holdout", "pixel_size", "views", "decode")
    return {name: getattr(info, name) for name in kept}


def test_rows_read_from_a_store_are_those_of_the_local_cache(
    make_cache: CacheFactory, bucket_url: str
) -> None:
    local = make_cache(num_rows=100, rejects=(17,))
    remote = copy_to(bucket_url, local)
    np.testing.assert_array_equal(remote.rows(), local.rows())
    generator = np.random.default_rng(0)
    for owner in local.owners:
        for kind in local.shapes(owner):
            rows = generator.permutation(local.rows(split="all"))
            near, far = local.reader(owner, kind), remote.reader(owner, kind)
            np.testing.assert_array_equal(far.read(rows), near.read(rows))
            np.testing.assert_array_equal(far.read(rows[:3]), near.read(rows[:3]))


def test_zarr_reads_the_store_by_itself(make_cache: CacheFactory, bucket_url: str) -> None:
    import zarr

    local = make_cache(rejects=())
    copy_to(bucket_url, local)
    objects = zarr.storage.ObjectStore(open_store(bucket_url), read_only=True)
    array: Any = zarr.open_array(objects, path="teachers/a/patches", mode="r")
    rows = local.rows(split="all")
    np.testing.assert_array_equal(array[:][rows], local.reader("a", "patches").read(rows))


def test_compressed_arrays_read_the_same_from_a_store(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    local = make_cache(compression="zstd:3")
    remote = copy_to(bucket_url, local)
    rows = local.rows(split="all")[::3]
    expected = local.reader("a", "patches").read(rows)
    reader = remote.reader("a", "patches")
    for kind in ("delay", "503", "cut", "lost"):
        proxy.faults = [Fault(kind, "GET", "patches/c", times=3)]
        np.testing.assert_array_equal(reader.read(rows), expected)
    proxy.faults = [Fault("503", "GET", "patches/c", times=10**6)]
    with pytest.raises(StoreError, match="teachers/a/patches could not be read"):
        reader.read(rows)


def test_neighbouring_rows_come_in_one_request_and_whole_shards_in_none_after_the_first(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    local = make_cache(num_rows=64)
    remote = copy_to(bucket_url, local)
    reader = remote.reader("a", "patches")
    proxy.requests.clear()
    reader.read(np.arange(3, 14))
    assert proxy.num("GET", "patches/c/0") == 1
    reader.prefetch(range(16, 32))
    reader.prefetch(range(32, 48))
    proxy.requests.clear()
    rows = np.random.default_rng(0).permutation(np.arange(16, 48))
    np.testing.assert_array_equal(reader.read(rows), local.reader("a", "patches").read(rows))
    assert proxy.requests == []


@pytest.mark.guarantee("G22", "503 three times, cut, lost, late or repeated requests: same digest")
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("kind", ["503", "cut", "lost", "delay", "repeat"])
def test_a_disturbed_writer_leaves_the_same_cache(
    kind: Any, method: str, make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    local = make_cache(num_rows=30, rejects=())
    remote = copy_to(bucket_url, local, commits=False)
    proxy.faults = [
        Fault(kind, method, part, times=3 if kind == "503" else 1)
        for part in ("commits", "pixels/c/0", "patches", "zarr.json", "summary/c/1", "list-type")
    ]
    with remote.writing():
        write_missing(remote, local)
    assert any(fault.times == 0 for fault in proxy.faults), "nothing was disturbed"
    assert verify(remote).findings == ()
    assert remote.digest() == local.digest()


@pytest.mark.guarantee(
    "G22", "the same faults and flipped bytes: right rows or an error, never a hole"
)
@pytest.mark.parametrize("kind", ["503", "cut", "short", "lost", "flip", "delay", "repeat"])
def test_a_disturbed_reader_gets_the_right_rows(
    kind: Any, make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    local = make_cache()
    remote = copy_to(bucket_url, local)
    rows = np.random.default_rng(0).permutation(local.rows(split="all"))
    expected = local.reader("a", "patches").read(rows)
    reader = remote.reader("a", "patches")
    proxy.faults = [Fault(kind, "GET", "patches/c", times=3 if kind == "503" else 1)]
    np.testing.assert_array_equal(reader.read(rows), expected)
    assert proxy.faults[0].times == 0
    proxy.faults = [Fault(kind, "GET", "patches/c", times=1)]
    reader.prefetch(range(16))
    np.testing.assert_array_equal(reader.read(rows), expected)


def test_what_stays_broken_is_raised_with_the_object_and_what_to_do(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    reader = copy_to(bucket_url, make_cache()).reader("a", "patches")
    for kind in ("503", "cut", "short", "lost"):
        proxy.faults = [Fault(kind, "GET", "patches/c/1", times=10**6)]
        with pytest.raises(StoreError, match=r"patches/c/1/0/0 could not be read.*same command"):
            reader.read(np.arange(16, 20))
    proxy.faults = [Fault("flip", "GET", "patches/c/1", times=10**6)]
    with pytest.raises(CorruptCache, match=r"teacher a, patches: row \d+ \(shard 1"):
        reader.read(np.arange(16, 20))


def test_a_lost_acknowledgement_is_told_from_a_rival_by_the_content(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    remote = copy_to(bucket_url, make_cache())
    proxy.faults = [Fault("lost", "PUT", "note.json")]
    remote.files.create("note.json", b"mine")
    assert proxy.num("PUT", "note.json") == 2
    remote.files.create("note.json", b"mine")
    with pytest.raises(CacheMismatch, match=r"note\.json was changed by another writer"):
        remote.files.create("note.json", b"another")
    assert remote.files.read("note.json") == b"mine"


def test_the_root_is_replaced_only_over_what_was_read(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    from phistill.cache.upkeep.remove import remove_images

    first = copy_to(bucket_url, make_cache())
    second = store.open(bucket_url)
    proxy.faults = [Fault("lost", "PUT", "zarr.json")]
    remove_images(first, ["image-00003"])
    remove_images(first, ["image-00004"])
    with pytest.raises(CacheMismatch, match=r"zarr\.json was changed by another writer"):
        remove_images(second, ["image-00005"])
    assert store.open(bucket_url).info.removed == ((3, 5),)


def test_damage_is_found_and_repaired_by_writing_the_shard_again(
    make_cache: CacheFactory, bucket_url: str
) -> None:
    local = make_cache(rejects=())
    remote = copy_to(bucket_url, local)
    path = "teachers/a/patches/c/1/0/0"
    data = bytearray(remote.files.read(path))
    data[50] ^= 1
    remote.files.publish(path, [bytes(data)])
    remote.files.delete("teachers/b/patches/c/0/0/0")
    remote.files.publish("pixels/c/2/0/0/0", [remote.files.read("pixels/c/2/0/0/0")[:-1]])
    with pytest.raises(CorruptCache, match="row 16 "):
        remote.reader("a", "patches").read(np.arange(16, 18))
    with pytest.raises(CorruptCache, match="committed but missing"):
        remote.reader("b", "patches").read(np.arange(2))
    with pytest.raises(CorruptCache, match="its commit record says"):
        remote.reader("pixels", "pixels").read(np.arange(32, 34))
    report = verify(remote)
    assert {(f.owner, f.shard) for f in report.damaged} == {("a", 1), ("b", 0), ("pixels", 2)}
    assert discard(remote, report) == 3
    write_missing(remote, local)
    assert remote.digest() == local.digest()


def test_a_store_that_does_not_answer_is_no_damage(
    make_cache: CacheFactory, bucket_url: str, proxy: Proxy
) -> None:
    remote = copy_to(bucket_url, make_cache())
    for part in ("patches/c/1", "commits/b/000002", "index/0000", "teachers/a/zarr.json"):
        proxy.faults = [Fault("503", "GET", part, times=10**6)]
        with pytest.raises(StoreError, match="could not be read"):
            verify(store.open(bucket_url))
    proxy.faults = []
    assert verify(remote).findings == ()


def test_a_large_object_travels_in_parts(
    bucket_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phistill.cache.storage.objects.files.PART_BYTES", 6 * 2**20)
    files = open_files(bucket_url)
    chunks = [np.random.default_rng(n).bytes(5_000_001) for n in range(3)]
    proxy.faults = [Fault("503", "PUT", "partNumber=2"), Fault("cut", "GET", "large", times=2)]
    files.publish("large", chunks)
    assert files.size("large") == 15_000_003
    assert files.read("large") == b"".join(chunks)
    assert proxy.num("PUT", "partNumber") >= 3
    assert proxy.num("GET", "large") >= 1 + 3


def test_opened_by_url_it_survives_pickling_and_refuses_a_fork(
    make_cache: CacheFactory, bucket_url: str
) -> None:
    remote = copy_to(bucket_url, make_cache())
    again: Cache = pickle.loads(pickle.dumps(remote))  # noqa: S301
    assert again.location == bucket_url
    np.testing.assert_array_equal(again.rows(), remote.rows())
    assert open_files(Path(bucket_url)) == open_files(bucket_url + "/")
    script = (
        "import os, sys\nimport phistill.cache as store\nfrom phistill.errors import UsageError\n"
        "cache = store.open(sys.argv[1])\n"
        "if os.fork() == 0:\n    try:\n        store.open(sys.argv[1])\n"
        "    except UsageError as error:\n        print(error, flush=True)\n"
        "    os._exit(0)\nos.wait()\n"
    )
    forked = subprocess.run(
        [sys.executable, "-c", script, bucket_url], capture_output=True, text=True, check=False
    )
    assert "multiprocessing_context='spawn'" in forked.stdout, forked.stderr


@pytest.mark.parametrize(
    "url", ["memory://x", "http://host/x", "s3://", "s3:///x", "s3://b/x?y", "ftp://b/x"]
)
def test_a_url_of_another_kind_is_refused_with_those_that_are_not(url: str) -> None:
    with pytest.raises(UsageError, match="s3://BUCKET/PREFIX"):
        store.open(url)


def test_a_file_url_is_a_folder() -> None:
    assert open_files("file:///data/my%20cache") == LocalFiles(Path("/data/my cache"))


def test_what_is_wrong_with_the_store_is_said(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"is not a cache.*extract IMAGES --cache s3://"):
        store.open(bucket_url)
    with pytest.raises(PhistillError, match="bucket does not exist"):
        open_files("s3://nowhere/x").names_in("")
    with pytest.raises(StoreError, match="bucket does not exist"):
        store.open("s3://nowhere/x")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(StoreError, match="AWS_ALLOW_HTTP=true"):
        open_files(bucket_url).size("x")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="Check the network"):
        open_files(bucket_url).size("x")


def test_a_profile_of_the_user_is_found(
    make_cache: CacheFactory, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copy_to(bucket_url, make_cache())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        "[mine]\naws_access_key_id = test\naws_secret_access_key = test\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    np.testing.assert_array_equal(store.open(bucket_url).rows(), remote.rows())


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"phistill\[object-stores\]"):
        store.open(f"s3://{BUCKET}/x")


def test_an_array_larger_than_its_commit_record_says_is_refused_before_it_is_read(
    bucket_url: str,
) -> None:
    files = open_files(bucket_url)
    files.publish("zarr.json", [bytes(1000)])
    with pytest.raises(CorruptCache, match="1,000 bytes; at most 100"):
        files.read("zarr.json", max_bytes=100)
