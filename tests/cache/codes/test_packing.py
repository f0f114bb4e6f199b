"""Codes to bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phistill.cache.codes.levels import DIMENSIONS, MAX_BITS
from phistill.cache.codes.packing import at_once, lookup, numbers, pack

BITS = range(1, MAX_BITS + 1)


def points(bits: int, n: int = 3, m: int = 48) -> np.ndarray:
    """Numbers of points of m coefficients."""
    k = DIMENSIONS.get(bits, 1)
    found = np.random.default_rng(bits).integers(0, 2 ** (bits * k), (n, m // k))
    return found.astype(np.uint8 if bits <= 8 else np.int16)


@pytest.mark.parametrize("bits", BITS)
def test_a_point_is_some_bits_of_a_string_of_bits(bits: int) -> None:
    """Said again with NumPy's own packing."""
    ones = (points(bits)[..., None] >> np.arange(bits * DIMENSIONS.get(bits, 1))) & 1
    wanted = np.packbits(ones.reshape(3, -1).astype(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(pack(points(bits), bits), wanted)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_look_up_the_points_that_were_packed(bits: int) -> None:
    k = DIMENSIONS.get(bits, 1)
    codebook = np.random.default_rng(0).normal(size=(2 ** (bits * k), k))
    found = lookup(codebook)[numbers(pack(points(bits), bits), bits)]
    assert np.array_equal(found.reshape(3, -1), codebook[points(bits)].reshape(3, -1))
    assert found.shape == (3, 48 // at_once(bits), at_once(bits))


@pytest.mark.parametrize("bits", BITS)
def test_torch_packs_to_the_same_bytes(bits: int) -> None:
    packed = pack(torch.from_numpy(points(bits)), bits)
    assert np.array_equal(packed.numpy(), pack(points(bits), bits))
    assert np.array_equal(numbers(packed, bits).numpy(), numbers(packed.numpy(), bits))
