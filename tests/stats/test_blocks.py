"""Sums of one block, and the cast from float16 that they begin with."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from phistill.stats.blocks import BlockSummer, can_shift, gram, padded, shift

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_shifting_is_numpys_cast_for_every_finite_float16() -> None:
    x = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(62, 1024)
    out = np.empty(x.shape, np.float32)
    assert can_shift(x.dtype, out.dtype)
    shift(out, x)
    assert out.tobytes() == x.astype(np.float32).tobytes()


def test_shifting_takes_what_is_not_finite_beyond_every_finite_float16() -> None:
    x = EVERY_HALF[~np.isfinite(EVERY_HALF)].reshape(1, -1)
    out = np.empty(x.shape, np.float32)
    shift(out, x)
    assert np.all(np.abs(out) >= 65536)


@pytest.mark.parametrize("level", [0.0, 60_000.0], ids=["small", "near the largest float16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_a_block_that_is_not_finite_is_summed_as_numpy_would(value: float, level: float) -> None:
    x = (np.random.default_rng(2).normal(size=(300, 6)) + level).astype(np.float16)
    x[7, 2] = value  # no row of the pilot, which takes every fourth
    sums = BlockSummer(6)(x, np.float32)
    assert not np.isfinite(sums.products[2, 2])
    assert not np.isfinite(sums.energies[7])
    assert np.isfinite(sums.products[1, 1])


def test_large_finite_values_are_not_mistaken_for_others() -> None:
    x = np.full((300, 3), 65_504, np.float16)
    x[::2] = -65_504
    plain = BlockSummer(3)(x.astype(np.float32), np.float32)
    for one, two in zip(BlockSummer(3)(x, np.float32), plain, strict=True):
        assert np.array_equal(one, two)


def test_nothing_is_shifted_where_the_thread_drops_subnormal_float32() -> None:
    seen = []

    def flush() -> None:
        torch.set_flush_denormal(True)  # of this thread alone
        seen.append(can_shift(np.dtype(np.float16), np.dtype(np.float32)))

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("types", [(np.float32, np.float32), (np.float16, np.float64)])
def test_only_float16_to_float32_is_shifted(types: tuple[type, type]) -> None:
    assert not can_shift(*map(np.dtype, types))


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
    used(long, np.float32)
    again, fresh = used(short, np.float32), BlockSummer(20)(short, np.float32)
    for one, two in zip(again, fresh, strict=True):
        assert np.array_equal(one, two)
