"""Rows to codes and back: bytes, losses, refusals, and the same bits everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.cache.codes import RowCodec, bytes_for
from phistill.errors import DegenerateMoments, UsageError
from phistill.stats import Moments
from phistill.stats.codes import fit_codec
from phistill.stats.codes.allocation import gaussian_limit
from phistill.stats.codes.fit import dct
from tests.stats.codes.conftest import features

DATA = Path(__file__).parents[2] / "data" / "codes"


def fitted(rows: np.ndarray, grid: tuple[int, int] | None, bits: float, **more: bool) -> RowCodec:
    num_bytes = bytes_for(bits, rows.shape[1:])
    return fit_codec(Moments.of(rows), [rows], grid=grid, num_bytes=num_bytes, **more)


def decibel(share: float) -> float:
    return float(-10 * np.log10(share))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return features(400, (6, 6), 48)


@pytest.fixture(scope="module")
def held() -> np.ndarray:
    return features(100, (6, 6), 48, seed=9)


@pytest.mark.parametrize("bits", [0.25, 0.5, 1, 2, 3.3, 4, 8])
def test_a_row_has_exactly_the_bytes_that_were_said(rows: np.ndarray, bits: float) -> None:
    codec = fitted(rows, (6, 6), bits)
    codes = codec.encode(rows[:7])
    assert codes.dtype == np.uint8
    assert codes.shape == (7, codec.num_bytes)
    # All of the budget, but for what is too little for a group or for a scale.
    assert bytes_for(bits, rows.shape[1:]) - 2 <= codec.num_bytes <= bits * 6 * 6 * 48 / 8


def test_every_further_bit_loses_less_down_to_nearly_nothing(
    rows: np.ndarray, held: np.ndarray
) -> None:
    lost = [
        decibel(fitted(rows, (6, 6), bits).lost_share(held)) for bits in (0.25, 0.5, 1, 2, 4, 8)
    ]
    assert np.all(np.diff(lost) > 1)
    assert lost[-1] > 50  # eight bits of each coefficient would be 44


def test_it_keeps_more_than_quantising_each_channel(rows: np.ndarray, held: np.ndarray) -> None:
    """The naive way: each channel over its standard deviation, two bits."""
    mean, std = rows.mean(axis=(0, 1), dtype=float), rows.std(axis=(0, 1), dtype=float)
    levels = np.array([-1.510, -0.4528, 0.4528, 1.510])
    z = (held - mean) / std
    naive = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, z)] * std + mean
    share = np.sum(np.square(naive - held)) / np.sum(np.square(held - mean))
    assert decibel(fitted(rows, (6, 6), 2).lost_share(held)) > decibel(share) + 6


@pytest.mark.parametrize(("bits", "apart"), [(1.0, 4.5), (2.0, 4.5), (4.0, 4.5), (8.0, 5.2)])
def test_gaussian_features_keep_nearly_as_much_as_any_code(bits: float, apart: float) -> None:
    """Many levels lose 4.35 dB to the limit, whole bits 0.34 more, and the pilot the rest."""
    random = np.random.default_rng(3)
    variance = np.multiply.outer(np.arange(1, 26) ** -1.5, np.arange(1, 65) ** -1.0)
    down = dct(5)
    y = random.normal(size=(1200, 25, 64)) * np.sqrt(variance)
    x = np.einsum("ai,bj,nabc->nijc", down, down, y.reshape(-1, 5, 5, 64)).reshape(-1, 25, 64)
    codec = fitted(x[:1000], (5, 5), bits)
    limit = decibel(gaussian_limit(variance.reshape(-1), bits * 25 * 64))
    assert limit - apart < decibel(codec.lost_share(x[1000:])) < limit


@pytest.mark.parametrize("bits", [0.5, 2, 8])
def test_what_codes_lose_is_what_decoded_rows_lack(
    rows: np.ndarray, held: np.ndarray, bits: float
) -> None:
    """Measured of coefficients, which the last steps turn and do not stretch."""
    codec = fitted(rows, (6, 6), bits)
    found = codec.measured(held)
    assert np.array_equal(found.codes, codec.encode(held))
    x, mean = held.astype(np.float64), codec.mean_row.mean(axis=0, dtype=np.float64)
    assert found.lost == pytest.approx(np.sum(np.square(codec.decode(found.codes) - x)), rel=1e-3)
    assert found.total == pytest.approx(np.sum(np.square(x - mean)), rel=1e-6)


@pytest.mark.parametrize("bits", [0.25, 0.5, 1])
def test_what_is_learnt_from_unbiased_rows_is_what_features_teach(bits: float) -> None:
    """Features of few causes and much else: the least squares of them on the causes."""
    random = np.random.default_rng(4)
    spread = np.arange(1, 33) ** -0.25
    causes = random.normal(size=(6000, 4)) @ random.normal(size=(4, 4))
    x = causes @ random.normal(size=(4, 32)) / 8 + random.normal(size=(6000, 32))
    x = (x * spread).astype(np.float32)
    codec = fitted(x, None, bits, scaled=False)
    codes = codec.encode(x)

    def learnt(rows: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(causes, rows - x.mean(axis=0), rcond=None)[0]

    kept = codec.axes[:, codec.order[codec.order >= 0]].astype(np.float64)
    truth = learnt(x) @ kept
    slopes = [
        np.sum(truth * (learnt(codec.decode(codes, unbiased=unbiased)) @ kept)) / np.sum(truth**2)
        for unbiased in (False, True)
    ]
    assert slopes[0] < 0.9, "the nearest points teach too little"
    assert slopes[1] == pytest.approx(1, abs=0.05)
    errors = [
        np.sum(np.square(codec.decode(codes, unbiased=unbiased) - x)) for unbiased in (False, True)
    ]
    assert errors[0] < errors[1], "and are nearer to each row"


def test_the_bytes_do_not_depend_on_the_batch(rows: np.ndarray) -> None:
    codec = fitted(rows, (6, 6), 2)
    whole = codec.encode(rows)
    assert np.array_equal(whole, np.concatenate([codec.encode(row[None]) for row in rows]))
    decoded = codec.decode(whole)
    assert np.array_equal(decoded, np.concatenate([codec.decode(code[None]) for code in whole]))


def test_channels_may_be_summed_in_any_order(rows: np.ndarray) -> None:
    """Every product is exact; in float32, the twin, it would not be."""
    codec = fitted(rows, (6, 6), 2)
    order = np.random.default_rng(0).permutation(48)

    def products(dtype: type) -> tuple[np.ndarray, np.ndarray]:
        unit = 2.0**codec.unit_exponent
        z = np.rint((rows.astype(float) - codec.mean_row) / unit).astype(dtype)
        axes: np.ndarray = codec.axes.astype(dtype)
        return z @ axes, z[..., order] @ axes[order]

    exact, float32 = products(np.float64), products(np.float32)
    assert np.array_equal(*exact)
    assert not np.array_equal(*float32)


@given(
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    c=st.integers(1, 20),
    bits=st.floats(0.5, 8),
    n=st.integers(1, 12),
)
@settings(max_examples=30, deadline=None)
def test_any_grid_any_width_and_few_rows(h: int, w: int, c: int, bits: float, n: int) -> None:
    rows = features(n, (h, w), c)
    if n * h * w < 2:
        return
    codec = fitted(rows, (h, w), bits)
    back = codec.decode(codec.encode(rows))
    assert back.shape == rows.shape
    assert np.isfinite(back).all()
    assert codec.num_bytes <= bytes_for(bits, rows.shape[1:])


def test_fewer_pilot_rows_than_channels_and_moments_of_more(
    rows: np.ndarray, held: np.ndarray
) -> None:
    many = fitted(rows, (6, 6), 2).lost_share(held)
    few = fit_codec(
        Moments.of(rows), [rows[1:9]], grid=(6, 6), num_bytes=bytes_for(2, rows.shape[1:])
    )
    assert few.lost_share(held) < 2 * many


@pytest.mark.parametrize("bits", [1.0, 8.0])
def test_fewer_vectors_than_channels_spoil_no_other_row(bits: float) -> None:
    """Axes that the pilot never left: without a variance, rows there lose more than they are."""
    rows = features(8, (2, 2), 96, dtype=np.float32)
    codec = fitted(rows, (2, 2), bits)
    assert codec.lost_share(features(50, (2, 2), 96, seed=3, dtype=np.float32)) < 1


def test_the_pilot_may_come_in_any_blocks(rows: np.ndarray) -> None:
    one = fit_codec(Moments.of(rows), [rows], grid=(6, 6), num_bytes=300, scaled=True)
    parts = [rows[:1], rows[1:150], rows[150:]]
    assert (
        fit_codec(Moments.of(rows), parts, grid=(6, 6), num_bytes=300, scaled=True).to_bytes()
        == one.to_bytes()
    )


def test_summaries_and_tokens_without_a_grid() -> None:
    summaries = features(300, (1, 1), 32).reshape(300, 32)
    codec = fitted(summaries, None, 3)
    assert codec.decode(codec.encode(summaries)).shape == (300, 32)
    assert decibel(codec.lost_share(summaries)) > 11
    registers = features(300, (1, 4), 32)
    codec = fitted(registers, None, 3)
    assert np.array_equal(codec.across, np.eye(4))
    assert decibel(codec.lost_share(registers)) > 12


def test_dead_channels_cost_nothing_and_come_back(rows: np.ndarray) -> None:
    dead = rows.copy()
    dead[..., 10:40] = 7.25
    codec = fitted(dead, (6, 6), 2)
    back = codec.decode(codec.encode(dead))
    assert np.abs(back[..., 10:40] - 7.25).max() < 2e-3
    alive = fitted(np.delete(rows, np.s_[10:40], axis=-1), (6, 6), 2 * 48 / 18)
    assert codec.lost_share(dead) == pytest.approx(
        alive.lost_share(np.delete(rows, np.s_[10:40], axis=-1)), rel=0.05
    )


def test_a_row_far_from_the_pilot_keeps_its_share(rows: np.ndarray, held: np.ndarray) -> None:
    """A hundred times as strong: the scale of the row takes it; without scales it is clipped."""
    codec = fitted(rows, (6, 6), 2, scaled=True)
    apart = held.astype(np.float64) - codec.mean_row

    def lost(codec: RowCodec, strength: float) -> float:
        x = apart * strength
        decoded = codec.decode(codec.encode(x + codec.mean_row)) - codec.mean_row
        return float(np.sum(np.square(decoded - x)) / np.sum(np.square(x)))

    assert lost(codec, 100) == pytest.approx(lost(codec, 1), rel=0.01)
    assert lost(fitted(rows, (6, 6), 2, scaled=False), 100) > 0.5


def test_the_mean_row_itself_is_kept(rows: np.ndarray) -> None:
    codec = fitted(rows, (6, 6), 1, scaled=True)
    back = codec.decode(codec.encode(codec.mean_row[None]))
    assert np.array_equal(back[0], codec.mean_row)


def test_a_stored_codec_codes_the_same(rows: np.ndarray) -> None:
    codec = fitted(rows, (6, 6), 1.5)
    again = RowCodec.from_bytes(codec.to_bytes())
    assert again.to_bytes() == codec.to_bytes()
    assert np.array_equal(again.encode(rows[:9]), codec.encode(rows[:9]))


def test_a_changed_file_is_refused(rows: np.ndarray) -> None:
    data = bytearray(fitted(rows, (6, 6), 1).to_bytes())
    for place in range(0, len(data), 997):
        changed = bytearray(data)
        changed[place] ^= 4
        with pytest.raises(UsageError, match="not a codec"):
            RowCodec.from_bytes(bytes(changed))


def test_a_codebook_of_another_step_is_refused(rows: np.ndarray) -> None:
    """As int16 in 2^-11: values would be a sixteenth."""
    codec = fitted(rows, (6, 6), 2)
    before = {bits: (book // 16).astype(np.int16) for bits, book in codec.codebooks.items()}
    with pytest.raises(UsageError, match="codebooks of this codec"):
        replace(codec, codebooks=before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unit_exponent", 1023),
        ("mean_row", np.zeros(36, np.float32)),
        ("mean_row", np.full((36, 48), np.nan, np.float32)),
        ("axes", np.full((48, 48), np.inf, np.float32)),
        ("unit_exponent", 600),
        ("row_shape", (48,)),
        ("bands", ()),
        ("order", np.zeros(0, np.int32)),
        ("turns", None),
        ("order", np.arange(8.0)),
        ("order", np.zeros(8, bool)),
        ("spread", np.ones(3)),
        ("distortions", {}),
        ("distortions", {1: 0.3}),
        ("distortions", dict.fromkeys(range(1, 15), 1.0)),
        ("distortions", dict.fromkeys(range(1, 15), np.nan)),
        ("distortions", dict.fromkeys(range(1, 15), -0.1)),
    ],
)
def test_arrays_and_facts_that_cannot_be_are_named(rows: np.ndarray, name: str, value: Any) -> None:
    codec = fitted(rows, (6, 6), 2)
    assert codec.mean_row.shape == (36, 48)
    changed = {name: value} if name != "turns" else {"axes": codec.axes * 3}
    with pytest.raises(UsageError, match=f"{name}.* of this codec"):
        replace(codec, **changed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_row(rows: np.ndarray, value: float) -> None:
    codec = fitted(rows, (6, 6), 1)
    bad = rows.copy()
    bad[273, 5, 7] = value
    with pytest.raises(UsageError, match="Row 273 "):
        codec.encode(bad)
    with pytest.raises(UsageError, match="pilot row"):
        fit_codec(Moments.of(rows), [bad], grid=(6, 6), num_bytes=100)


def test_refusals_say_what_was_wanted(rows: np.ndarray) -> None:
    moments, codec = Moments.of(rows), fitted(rows, (6, 6), 1)
    with pytest.raises(UsageError, match=r"6 x 5"):
        fit_codec(moments, [rows], grid=(6, 5), num_bytes=100)
    with pytest.raises(UsageError, match="no rows"):
        fit_codec(moments, [], grid=(6, 6), num_bytes=100)
    with pytest.raises(UsageError, match="num_bytes=0"):
        fit_codec(moments, [rows], grid=(6, 6), num_bytes=0)
    with pytest.raises(UsageError, match=r"\(36, 47\)"):
        codec.encode(rows[..., 1:])
    with pytest.raises(UsageError, match=r"uint8 \(n, 216\)"):
        codec.decode(np.zeros((3, 215), np.uint8))
    same, one = np.ones((5, 36, 48)), rows[:1, :1, :]
    with pytest.raises(DegenerateMoments, match="the same"):
        fit_codec(Moments.of(same), [same], grid=(6, 6), num_bytes=100)
    with pytest.raises(DegenerateMoments, match="at least 2"):
        fit_codec(Moments.of(one), [one], grid=(1, 1), num_bytes=100)
