"""Sums of one block, and the cast from float16 that they begin with."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from phistill.stats.moments.blocks import (
    BlockSummer,
    BlockSums,
    Pilot,
    can_shift,
    gram,
    padded,
    shift,
)

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def sums_of(x: np.ndarray, summer: BlockSummer | None = None) -> BlockSums:
    summer = BlockSummer(x.shape[1]) if summer is None else summer
    return summer(x, Pilot.of(x).mean, np.float32)


def test_shifting_is_numpys_cast_for_every_finite_float16() -> None:
    x = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(62, 1024)
    out = np.empty(x.shape, np.float32)
    assert can_shift(x, out.dtype)
    shift(out, x)
    assert out.tobytes() == x.astype(np.float32).tobytes()


def test_shifting_takes_what_is_not_finite_beyond_every_finite_float16() -> None:
    x = EVERY_HALF[~np.isfinite(EVERY_HALF)].reshape(2, -1)
    out = np.empty(x.shape, np.float32)
    shift(out, x)
    assert np.all(np.abs(out) >= 65536)


@pytest.mark.parametrize("level", [0.0, 60_000.0], ids=["small", "near the largest float16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_a_block_that_is_not_finite_is_summed_as_numpy_would(value: float, level: float) -> None:
    x = (np.random.default_rng(2).normal(size=(300, 6)) + level).astype(np.float16)
    x[7, 2] = value  # no row of the pilot, which takes every fourth
    sums = sums_of(x)
    squares = np.diagonal(sums.products)
    assert not np.isfinite(squares[2])
    assert not np.isfinite(sums.squared_norms[7])
    assert np.isfinite(squares[1])


def test_large_finite_values_are_not_mistaken_for_others() -> None:
    x = np.full((300, 4), 65_504, np.float16)
    x[::2] = -65_504
    assert_same(sums_of(x), sums_of(x.astype(np.float32)))


@pytest.mark.parametrize("width", [1, 6, 64, 7])
def test_sums_of_float16_are_those_of_the_same_float32_to_the_bit(width: int) -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(700, width)) * np.arange(1, width + 1) + 3).astype(np.float16)
    assert_same(sums_of(x), sums_of(x.astype(np.float32)))


def assert_same(one: BlockSums, two: BlockSums) -> None:
    for left, right in zip(one, two, strict=True):
        assert left.tobytes() == right.tobytes()


def test_a_pilot_is_rounded_so_that_float32_holds_it_where_it_can() -> None:
    """Blocks of a run are centred on one value, whichever type their products are taken in."""
    x = np.full((3, 3), [0.1, 1e300, -1e-60])
    pilot = Pilot.of(x).mean
    assert pilot.dtype == np.float64
    assert pilot.tolist() == [np.float32(0.1), x[:, 1].mean(), 0.0]  # none is near 1e300


def test_nothing_is_shifted_where_the_thread_drops_subnormal_float32() -> None:
    seen = []

    def flush() -> None:
        torch.set_flush_denormal(True)  # of this thread alone
        seen.append(can_shift(np.zeros((1, 2), np.float16), np.dtype(np.float32)))

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("x", "target"),
    [
        (np.zeros((4, 4), np.float32), np.float32),
        (np.zeros((4, 4), np.float16), np.float64),
        (np.zeros((4, 4), ">f2"), np.float32),
    ],
    ids=["float32", "to float64", "big-endian"],
)
def test_only_float16_is_shifted_and_only_to_float32(x: np.ndarray, target: type) -> None:
    assert not can_shift(x, np.dtype(target))


@pytest.mark.parametrize("width", [1, 7, 64])
def test_a_padded_product_is_the_plain_one_to_the_bit(width: int) -> None:
    x = np.random.default_rng(0).normal(size=(300, width)).astype(np.float32)
    room = padded(width, np.float32)
    assert gram(x, out=room) is room
    assert np.array_equal(room, x.T @ x)
    assert np.array_equal(room, room.T)


def test_the_size_of_a_block_before_changes_no_bit_of_the_next() -> None:
    """Memory is kept from block to block, and a shorter one must not see what was there."""
    rng = np.random.default_rng(1)
    long, short = (rng.normal(size=(n, 20)).astype(np.float16) for n in (7_000, 900))
    used = BlockSummer(20)
    sums_of(long, used)
    assert_same(sums_of(short, used), sums_of(short))
