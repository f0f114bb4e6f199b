"""Codes to bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phistill.stats.codes.packing import codes_per_number, lookup, numbers, pack

BITS = range(1, 9)


def codes(bits: int, n: int = 3, m: int = 40) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 2**bits, (n, m)).astype(np.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_a_code_is_b_bits_of_a_string_of_bits(bits: int) -> None:
    """Said again with NumPy's own packing."""
    ones = (codes(bits)[..., None] >> np.arange(bits)) & 1
    wanted = np.packbits(ones.reshape(3, -1).astype(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(pack(codes(bits), bits), wanted)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_look_up_the_values_that_were_packed(bits: int) -> None:
    values = np.random.default_rng(0).normal(size=2**bits)
    found = lookup(values)[numbers(pack(codes(bits), bits), bits)]
    assert np.array_equal(found.reshape(3, -1), values[codes(bits)])
    assert found.shape == (3, 40 // codes_per_number(bits), codes_per_number(bits))


@pytest.mark.parametrize("bits", BITS)
def test_torch_packs_to_the_same_bytes(bits: int) -> None:
    packed = pack(torch.from_numpy(codes(bits)), bits)
    assert np.array_equal(packed.numpy(), pack(codes(bits), bits))
    assert np.array_equal(numbers(packed, bits).numpy(), numbers(packed.numpy(), bits))
