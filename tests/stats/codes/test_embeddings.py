"""Embeddings in a file to codes and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phistill.cache.storage.publish import PublishError
from phistill.errors import DegenerateMoments, UsageError
from phistill.stats.codes.embeddings import dequantize, neighbour_recall, quantize


def vectors(n: int = 3000, width: int = 64) -> np.ndarray:
    """Clusters in a few strong directions."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(n // 10, width))
    x = np.repeat(centres, 10, axis=0) + 0.4 * random.normal(size=(n // 10 * 10, width))
    mix = np.linalg.qr(random.normal(size=(width, width)))[0]
    return ((x * np.arange(1, width + 1) ** -0.5) @ mix).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", vectors())
    return tmp_path / "x.npy"


def test_there_and_back(file: Path) -> None:
    out, back = file.with_name("codes.npy"), file.with_name("back.npy")
    report = quantize(file, out, num_bytes=24)
    codes = np.load(out)
    assert (codes.shape, codes.dtype) == ((3000, report.num_bytes), np.uint8)
    assert report.num_bytes <= 24
    assert dequantize(out, back) == (3000, 64)
    x, decoded = np.load(file), np.load(back)
    lost = np.sum(np.square(x - decoded)) / np.sum(np.square(x - x.mean(0)))
    assert lost == pytest.approx(report.lost_share, rel=0.1)
    assert sorted(path.name for path in file.parent.iterdir()) == [
        *("back.npy", "codes.codec", "codes.npy", "x.npy")
    ]


def test_the_recall_it_reports_is_that_of_brute_force(file: Path) -> None:
    x = vectors()
    random = np.random.default_rng(1)
    queries, among = x[:200], x[200:]
    decoded = among + 0.2 * random.normal(size=among.shape).astype(np.float32)
    exact = np.argmin(np.square(queries[:, None] - among).sum(-1), axis=1)
    ranks = np.argsort(np.square(queries[:, None] - decoded).sum(-1), axis=1)
    found = neighbour_recall(queries, decoded, exact, ks=(1, 10))
    for k in (1, 10):
        assert found[k] == np.mean([exact[i] in ranks[i, :k] for i in range(200)])
    assert 0 < found[1] < found[10] < 1
    more = [quantize(file, file.with_name("c.npy"), num_bytes=b).recall[10] for b in (4, 12, 48)]
    assert more == sorted(more)


def test_vectors_that_are_decoded_alike_come_first_by_chance() -> None:
    queries = np.zeros((40, 2))
    decoded = np.ones((20, 2))
    found = neighbour_recall(queries, decoded, np.arange(40) % 20, ks=(1, 10, 20))
    assert found == pytest.approx({1: 0.05, 10: 0.5, 20: 1.0})


def test_more_vectors_with_a_codec_that_was_made_before(file: Path) -> None:
    first = file.with_name("first.npy")
    quantize(file, first, num_bytes=16)
    np.save(file.with_name("more.npy"), vectors()[:77])
    again = file.with_name("again.npy")
    quantize(file.with_name("more.npy"), again, num_bytes=16, codec=file.with_name("first.codec"))
    assert np.array_equal(np.load(again), np.load(first)[:77])
    quantize(file.with_name("more.npy"), again, codec=file.with_name("first.codec"))
    assert np.array_equal(np.load(again), np.load(first)[:77])
    with pytest.raises(UsageError, match="say how many bytes"):
        quantize(file, file.with_name("none.npy"))


def test_a_few_vectors_are_fitted_on_and_measured_by_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(10, 8)[:5])
    report = quantize(tmp_path / "x.npy", tmp_path / "c.npy", num_bytes=8)
    assert (report.num_fitted, report.num_measured) == (5, 0)
    assert (report.lost_share, report.recall) == (None, {})


@pytest.mark.parametrize("exponent", [-100, 100])
def test_what_is_reported_does_not_depend_on_the_unit(file: Path, exponent: int) -> None:
    report = quantize(file, file.with_name("c.npy"), num_bytes=12)
    np.save(file, vectors() * np.float32(2.0**exponent))
    scaled = quantize(file, file.with_name("c.npy"), num_bytes=12)
    assert scaled.recall == report.recall
    assert scaled.lost_share == pytest.approx(report.lost_share, rel=1e-5)


def test_refusals_say_what_was_wanted_and_leave_nothing(file: Path) -> None:
    out = file.with_name("codes.npy")
    bad = vectors()
    bad[2999, 3] = np.nan
    for name, array in {
        "bad": bad,
        "flat": np.ones(5, np.float32),
        "ints": np.ones((5, 4), np.int64),
        "same": np.ones((50, 4), np.float32),
        "one": np.ones((1, 4), np.float32),
        "objects": np.array([[None]]),
    }.items():
        np.save(file.with_name(f"{name}.npy"), array)

    def refused(name: str, num_bytes: int = 8, codec: Path | None = None) -> None:
        quantize(file.with_name(f"{name}.npy"), out, num_bytes=num_bytes, codec=codec)

    with pytest.raises(UsageError, match=r"bad\.npy: vector 2,999, counted from 0, holds NaN"):
        refused("bad")
    with pytest.raises(UsageError, match=r"wanted \(vectors, channels\)"):
        refused("flat")
    with pytest.raises(UsageError, match="int64; vectors must be floating"):
        refused("ints")
    with pytest.raises(UsageError, match="holds 1 vector, and a codec is fitted on two"):
        refused("one")
    with pytest.raises(UsageError, match="not a readable npy"):
        refused("objects")
    with pytest.raises(UsageError, match="is not there"):
        refused("none")
    with pytest.raises(DegenerateMoments, match="the same"):
        refused("same")
    with pytest.raises(UsageError, match="num_bytes=0"):
        refused("x", 0)
    file.with_name("text.npy").write_text("no array")
    with pytest.raises(UsageError, match="not a readable npy"):
        refused("text")
    with pytest.raises(UsageError, match="Name the codec"):
        refused("x", codec=file.with_name("none.codec"))
    with pytest.raises(UsageError, match="not a codec"):
        refused("x", codec=file.with_name("text.npy"))
    assert not out.exists()
    assert not out.with_name("codes.npy.partial").exists()


def test_what_is_read_is_never_written_over(file: Path) -> None:
    codes = file.with_name("codes.npy")
    quantize(file, codes, num_bytes=24)
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    (file.parent / "link.npy").symlink_to(file)
    for out in (file, file.parent / "link.npy"):
        with pytest.raises(UsageError, match="would be written over"):
            quantize(file, out, num_bytes=24)
    for out in (codes, codes.with_suffix(".codec")):
        with pytest.raises(UsageError, match="would be written over"):
            dequantize(codes, out)
    folder = file.with_name("folder.npy")
    folder.mkdir()
    for name, why in (("new.codec", "codes are an npy file"), ("folder.npy", "is not a file")):
        with pytest.raises(UsageError, match=why):
            quantize(file, file.with_name(name), num_bytes=24)
    for out in (Path(), Path("/")):
        with pytest.raises(UsageError, match="codes are an npy file"):
            quantize(file, out, num_bytes=24)
    assert {path: path.read_bytes() for path in before} == before


def test_codes_never_lie_beside_a_codec_that_is_not_theirs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: both files are those of before, or there are no codes."""
    out, codec = file.with_name("codes.npy"), file.with_name("codes.codec")
    quantize(file, out, num_bytes=24)
    before = out.read_bytes(), codec.read_bytes()
    other = file.with_name("other.npy")
    np.save(other, vectors()[:, ::-1])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(PublishError, match="No space left"):
            quantize(other, out, num_bytes=24)
    assert (out.read_bytes(), codec.read_bytes()) == before
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", full)  # of the codec, when the codes are gone
        with pytest.raises(PublishError, match="No space left"):
            quantize(other, out, num_bytes=24)
    assert not out.exists()
    assert codec.read_bytes() == before[1]
    assert not [path for path in file.parent.iterdir() if path.suffix in (".ready", ".partial")]
    quantize(other, out, num_bytes=24)
    dequantize(out, file.with_name("back.npy"))
    back = np.load(file.with_name("back.npy"))
    assert np.square(back - np.load(other)).sum() < 0.1 * np.square(back).sum()


def test_files_that_do_not_belong_together_are_named(file: Path) -> None:
    quantize(file, file.with_name("codes.npy"), num_bytes=24)
    np.save(file.with_name("narrow.npy"), vectors()[:, :7])
    with pytest.raises(
        UsageError, match=r"narrow\.npy holds vectors of 7 channels; .*codes\.codec"
    ):
        quantize(
            file.with_name("narrow.npy"),
            file.with_name("c.npy"),
            codec=file.with_name("codes.codec"),
        )
    with pytest.raises(UsageError, match=r"x\.npy holds float32 \(3000, 64\); .*codes\.codec"):
        dequantize(file, file.with_name("back.npy"), codec=file.with_name("codes.codec"))
