"""Sums of one block, and the cast from float16 that they begin with."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from phistill.stats.blocks import BlockSummer, gram, padded, widen

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_widening_is_numpys_cast_for_every_finite_float16() -> None:
    x = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(62, 1024)
    out = np.empty(x.shape, np.float32)
    widen(x, out)
    assert out.tobytes() == x.astype(np.float32).tobytes()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_widening_keeps_what_is_not_finite(value: float) -> None:
    x = np.full((2, 3), value, np.float16)
    x[1, 2] = 4
    out = np.empty(x.shape, np.float32)
    widen(x, out)
    assert np.array_equal(out, x.astype(np.float32), equal_nan=True)


def test_widening_keeps_subnormals_where_the_thread_drops_those_of_float32() -> None:
    x = EVERY_HALF[1:1024].reshape(1, -1)  # all subnormal
    out = np.empty(x.shape, np.float32)
    dropped = []

    def flush() -> None:
        torch.set_flush_denormal(True)  # of this thread alone
        dropped.append(np.float32(1e-40) * np.float32(1e30) == 0)
        widen(x, out)

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join()
    assert dropped == [True]
    assert out.tobytes() == x.astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_other_types_are_cast_by_numpy(dtype: type[np.number]) -> None:
    x = np.arange(6).reshape(2, 3).astype(dtype)
    out = np.empty(x.shape, np.float64)
    widen(x, out)
    assert np.array_equal(out, x)


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
