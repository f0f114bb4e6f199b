"""extract with bits: codes go to disk, and everything known of the features is as if they had."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.verify import verify
from phistill.errors import CacheMismatch, PhistillError, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.settings import CodeSettings, WorkerShards
from phistill.pipeline.shard_pass import missing_shards
from phistill.stats import fit_stats, load_moments

SETTINGS = CacheSettings(pixel_size=16, shard_rows=4, seed=1)  # 11 shards of 41 images
TWO_BITS = CodeSettings(bits=2)
COMMAND = ("--pixel-size", "16", "--shard-rows", "4", "--seed", "1", "--workers", "1")


def coded(folder: Path, path: Path, *teachers: str, codes: Any = TWO_BITS, **options: Any) -> Cache:
    wanted = ExtractOptions(codes=codes, num_workers=1, **options)
    return extract(folder, path, teachers, settings=SETTINGS, options=wanted).cache


def floats(folder: Path, path: Path, *teachers: str) -> Cache:
    return extract(folder, path, teachers, settings=SETTINGS).cache


def require_same_moments(one: Cache, other: Cache, teacher: str = "t") -> None:
    """Equal to 1e-6 of the spread, count and all."""
    ours, theirs = (load_moments(cache, teacher, "patches") for cache in (one, other))
    assert ours.n == theirs.n
    spread = np.sqrt(np.mean(theirs.variance))
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=0, atol=1e-6 * spread)
    np.testing.assert_allclose(
        ours.covariance, theirs.covariance, rtol=0, atol=1e-6 * np.mean(theirs.variance)
    )


def test_moments_are_those_of_the_features_and_not_of_the_codes(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    fit_stats(plain)
    fit_stats(cache)
    require_same_moments(cache, plain)
    decoded = cache.reader("t", "patches").read(cache.rows(["t"], "train"))
    with pytest.raises(AssertionError):  # those of what is decoded are others
        np.testing.assert_allclose(
            np.var(decoded.reshape(-1, 6), axis=0),
            load_moments(plain, "t", "patches").variance,
            rtol=1e-3,
        )


def test_codes_alone_are_on_the_disk_and_lie_near_the_features(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    assert not (cache.path / "teachers/t/patches").exists()
    assert cache.teacher("t").codecs["patches"].num_bytes <= 24  # of 192 as float16
    rows = cache.rows(["t"], "all")
    np.testing.assert_array_equal(rows, plain.rows(["t"], "all"))
    ours, theirs = (one.reader("t", "patches").read(rows).astype(float) for one in (cache, plain))
    lost = np.square(ours - theirs).sum() / np.square(theirs - theirs.mean((0, 1))).sum()
    assert lost < 0.2
    assert verify(cache).findings == ()


def test_threads_that_code_beside_each_other_change_no_byte(
    folder: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number in (1, 5):
        monkeypatch.setattr("phistill.pipeline.shard_pass.num_coders", lambda number=number: number)
        cache = coded(folder, tmp_path / str(number), f"t={tiny}")
        reader = cache.array_reader("t", "patches-codes")
        found.append((reader.read(cache.rows(["t"], "all")), cache.commits("t").lost(reader.kind)))
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1].tolist() == pytest.approx(found[1][1].tolist(), rel=1e-9)


def test_statistics_fitted_again_with_other_options_come_back_exactly(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    fit_stats(cache)
    before = load_moments(cache, "t", "patches")
    with pytest.warns(UserWarning, match="are summed as they are decoded, .* a pass without a sam"):
        fit_stats(cache, max_images=10)  # in the same files
    with pytest.warns(UserWarning, match="t patches: exact changes nothing"):
        fit_stats(cache, exact=True)
    fit_stats(cache)
    after = load_moments(cache, "t", "patches")
    assert before.scatter.tobytes() == after.scatter.tobytes()


def test_held_out_rows_are_in_no_sum(folder: Path, tiny: str, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("cats/001.png\ndogs/004.png\n")
    options = {"holdout_file": held}
    cache = coded(folder, tmp_path / "c", f"t={tiny}", **options)
    plain = extract(
        folder,
        tmp_path / "f",
        [f"t={tiny}"],
        settings=SETTINGS,
        options=ExtractOptions(**options),  # type: ignore[arg-type]
    ).cache
    fit_stats(cache)
    fit_stats(plain)
    assert load_moments(cache, "t", "patches").n == 16 * 38
    require_same_moments(cache, plain)


def test_rows_that_cannot_be_stored_are_rejects_and_in_no_sum(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    teacher = f"t={tiny}?poison=0.02"
    plain = floats(folder, tmp_path / "f", teacher)
    cache = coded(folder, tmp_path / "c", teacher)
    num_rejects = len(cache.commits("t").rejected)
    assert 1 < num_rejects <= 10
    fit_stats(plain)
    fit_stats(cache)
    require_same_moments(cache, plain)


def test_an_appended_image_is_coded_with_the_codec_that_is_there(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    fit_stats(cache)
    before = cache.teacher("t").codecs
    num_vectors = load_moments(cache, "t", "patches").n
    random = np.random.default_rng(3)
    for number in range(6):
        pixels = random.integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"new{number}.png")
    grown = coded(folder, tmp_path / "c", f"t={tiny}", append=True)
    assert grown.teacher("t").codecs == before
    fit_stats(grown)
    append = ExtractOptions(append=True)
    also_grown = extract(folder, plain.path, [f"t={tiny}"], options=append).cache
    fit_stats(also_grown)
    assert load_moments(grown, "t", "patches").n > num_vectors
    require_same_moments(grown, also_grown)


def test_a_row_taken_down_leaves_its_sum(folder: Path, tiny: str, tmp_path: Path) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    fit_stats(cache)
    row = int(cache.rows(["t"], "train")[0])
    with cache.writing():
        remove_images(cache, [cache.image_id(row)])
    with pytest.warns(
        UserWarning, match=r"t patches: \d+ of \d+ rows are summed as they are decoded"
    ):
        fit_stats(cache)
    assert load_moments(cache, "t", "patches").n == 16 * len(cache.rows(["t"], "train"))


def test_bits_are_each_teachers_own_or_chosen_by_what_may_be_lost(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    teachers = (f"a={tiny}", f"b={tiny}?scale=2", f"c={tiny}?scale=3")
    cache = coded(folder, tmp_path / "c", *teachers, codes=CodeSettings(bits={"a": 2, "b": 1}))
    stored = {name: cache.teacher(name).codecs for name in cache.teachers}
    assert 19 < stored["a"]["patches"].num_bytes <= 24
    assert 9 < stored["b"]["patches"].num_bytes <= 12
    assert stored["c"] == {}
    lossy = coded(folder, tmp_path / "l", teachers[0], codes=CodeSettings(lost_share=0.05))
    codec = lossy.teacher("a").codecs["patches"]
    assert codec.lost_share <= 0.05
    assert codec.num_bytes < 60


def test_what_cannot_be_is_refused(folder: Path, tiny: str, tmp_path: Path) -> None:
    for wrong in ({}, {"bits": 2, "lost_share": 0.1}, {"bits": 9}, {"bits": {"t": 0.1}}):
        with pytest.raises(UsageError):
            CodeSettings(**wrong)
    with pytest.raises(UsageError, match="'x', which is none of the teachers"):
        coded(folder, tmp_path / "n", f"t={tiny}", codes=CodeSettings(bits={"x": 1}))
    assert not (tmp_path / "n").exists()
    plain = floats(folder, tmp_path / "f", f"t={tiny}")
    with pytest.raises(CacheMismatch, match="stored as float16"):
        coded(folder, plain.path, f"t={tiny}")
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    had = 8 * cache.teacher("t").codecs["patches"].budget / 96
    for bits in (had - 0.25, had + 0.25):
        with pytest.raises(CacheMismatch, match="2 bits per channel, but this run asks"):
            coded(folder, cache.path, f"t={tiny}", codes=CodeSettings(bits=bits))
    lost = cache.teacher("t").codecs["patches"].lost_share
    with pytest.raises(CacheMismatch, match="of the variance, but this run allows"):
        coded(folder, cache.path, f"t={tiny}", codes=CodeSettings(lost_share=lost / 2))
    coded(folder, cache.path, f"t={tiny}", codes=CodeSettings(lost_share=lost))
    few = tmp_path / "few"
    few.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(few / f"{number}.png")
    with pytest.raises(UsageError, match="a codec needs 20"):
        coded(few, tmp_path / "few.cache", f"t={tiny}")


def test_a_refused_request_leaves_the_cache_as_it_was(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """What the cache has refuses before rows are added, a pilot before teachers are."""
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    for number in range(5):
        Image.new("RGB", (20, 20), (number, 9, 0)).save(more / f"{number}.png")
    digest = cache.digest()
    for teachers, codes, error in (
        ([f"t={tiny}"], CodeSettings(bits=1), CacheMismatch),
        ([f"t={tiny}?scale=3"], None, CacheMismatch),
        ([f"u={tiny}", f"t={tiny}"], CodeSettings(bits={"u": 2, "t": 1}), CacheMismatch),
    ):
        with pytest.raises(error):
            coded(more, cache.path, *teachers, codes=codes, append=True)
        assert store.open(cache.path).digest() == digest
    with pytest.raises(UsageError, match="codes of 8 bits lose more than"):
        coded(folder, cache.path, f"u={tiny}", f"v={tiny}", codes=CodeSettings(lost_share=1e-12))
    assert store.open(cache.path).digest() == digest


def test_a_pilot_is_of_the_images_that_are_added_too(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    shutil.copytree(folder, few)
    for path in sorted(path for path in few.rglob("*") if path.is_file())[6:]:
        path.unlink()
    cache = floats(few, tmp_path / "c", f"t={tiny}")
    cache = coded(folder, cache.path, f"u={tiny}", append=True)
    assert cache.teacher("u").codecs["patches"].lost_share < 0.1


def test_two_workers_make_the_cache_that_one_makes(folder: Path, tiny: str, tmp_path: Path) -> None:
    whole = coded(folder, tmp_path / "whole", f"t={tiny}")
    failures: list[PhistillError] = []

    def work(index: int) -> None:
        try:
            coded(folder, tmp_path / "c", f"t={tiny}", worker=WorkerShards(index, 2))
        except PhistillError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    shared = store.open(tmp_path / "c")
    assert shared.digest() == whole.digest()
    fit_stats(whole)
    fit_stats(shared)
    assert shared.digest() == whole.digest()


@pytest.mark.parametrize("when", ["zarr.json", "commits/t/000000.json", "commits/t/000005.json"])
def test_a_killed_extraction_goes_on_to_the_same_bytes(
    folder: Path, tiny: str, tmp_path: Path, when: str
) -> None:
    teacher = f"t={tiny}?pause=0.05"
    whole = coded(folder, tmp_path / "whole", teacher)
    target = tmp_path / "c"
    command = [sys.executable, "-m", "phistill", "extract", str(folder), "--cache", str(target)]
    command += ["--teacher", teacher, "--bits", "2", *COMMAND]
    modules = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (target / when).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = coded(folder, target, teacher)
    assert missing_shards(cache) == []
    fit_stats(whole)
    fit_stats(cache)
    assert cache.digest() == whole.digest()


def test_a_flipped_byte_of_codes_codec_or_sums_is_found(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    teacher = cache.path / "teachers/t"
    paths = [
        teacher / "codecs/patches.safetensors",
        teacher / "patches-codes/c/1/0",
        next((teacher / "moments/patches").glob("shard-*")),
    ]
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        assert verify(store.open(cache.path)).findings, path
        path.write_bytes(data)
    assert verify(store.open(cache.path)).findings == ()


def test_damaged_codes_are_extracted_again_with_their_codec(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = coded(folder, tmp_path / "c", f"t={tiny}")
    fit_stats(cache)
    digest = cache.digest()
    path = cache.path / "teachers/t/patches-codes/c/1/0"
    path.write_bytes(path.read_bytes()[:-1])
    assert coded(folder, cache.path, f"t={tiny}", repair=True).digest() != digest  # a new sum
    fit_stats(store.open(cache.path))
    assert store.open(cache.path).digest() == digest


def test_a_pilot_that_is_not_like_the_rest_is_named_with_its_shards(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    options = ExtractOptions(codes=CodeSettings(bits=4), num_workers=1)
    report = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    assert report.unlike_pilot == ()
    strange = folder / "strange"
    strange.mkdir()
    for number in range(8):
        half = np.zeros((32, 32, 3), np.uint8)
        half[:, :: number + 1] = 255
        half[:: 3 + number, :, 1] = 0
        Image.fromarray(half).save(strange / f"{number}.png")
    grown = extract(folder, tmp_path / "c", options=ExtractOptions(append=True, num_workers=1))
    (text,) = grown.unlike_pilot
    assert "t patches: 2 shards of 13 (11, 12) lose up to" in text
