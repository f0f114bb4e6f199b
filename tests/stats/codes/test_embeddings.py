"""Embeddings in a file to codes and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    assert (report.num_measured, report.recall) == (0, {})


def test_refusals_say_what_was_wanted_and_leave_nothing(file: Path) -> None:
    out = file.with_name("codes.npy")
    bad = vectors()
    bad[2999, 3] = np.nan
    for name, array in {
        "bad": bad,
        "flat": np.ones(5, np.float32),
        "ints": np.ones((5, 4), np.int64),
        "same": np.ones((50, 4), np.float32),
    }.items():
        np.save(file.with_name(f"{name}.npy"), array)

    def refused(name: str, num_bytes: int = 8, codec: Path | None = None) -> None:
        quantize(file.with_name(f"{name}.npy"), out, num_bytes=num_bytes, codec=codec)

    with pytest.raises((UsageError, DegenerateMoments), match="NaN or infinity"):
        refused("bad")
    with pytest.raises(UsageError, match=r"wanted \(vectors, channels\)"):
        refused("flat")
    with pytest.raises(UsageError, match="int64; vectors must be floating"):
        refused("ints")
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
    with pytest.raises(UsageError, match="the codec gets this name"):
        quantize(file, file.with_name("new.codec"), num_bytes=24)
    assert {path: path.read_bytes() for path in before} == before
