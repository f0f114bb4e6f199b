"""The codec in torch: the same bits as NumPy, and decoding with a normalizer folded in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phistill.cache.codes import RowCodec, bytes_for
from phistill.errors import UsageError
from phistill.stats import Moments, Normalizer
from phistill.stats.codes import CodecModule, fit_codec
from tests.stats.codes.conftest import features

CASES = {
    "square": ((6, 6), 48, (6, 6)),
    "odd": ((5, 3), 20, (5, 3)),
    "column": ((7, 1), 16, (7, 1)),
    "no grid": ((1, 4), 24, None),
    "padded": ((3, 4), 5, (3, 4)),  # 60 coefficients, of which the last group holds four
}


def case(name: str, bits: float) -> tuple[np.ndarray, RowCodec]:
    shape, width, grid = CASES[name]
    rows = features(200, shape, width)
    num_bytes = bytes_for(bits, rows.shape[1:])
    return rows, fit_codec(Moments.of(rows), [rows], grid=grid, num_bytes=num_bytes)


@pytest.mark.parametrize("bits", [0.5, 2, 8])
@pytest.mark.parametrize("name", CASES)
def test_torch_encodes_and_decodes_to_the_bits_of_numpy(name: str, bits: float) -> None:
    rows, codec = case(name, bits)
    module = CodecModule(codec)
    codes = module.encode(torch.from_numpy(rows))
    assert np.array_equal(codes.numpy(), codec.encode(rows))
    assert np.array_equal(module.decode(codes).numpy(), codec.decode(codes.numpy()))


@pytest.mark.parametrize("bits", [0.5, 2, 8])
def test_unbiased_rows_are_those_of_numpy_too(bits: float) -> None:
    rows, codec = case("square", bits)
    codes = codec.encode(rows)
    module = CodecModule(codec, unbiased=True)
    expected = codec.decode(codes, unbiased=True)
    assert np.array_equal(module.encode(torch.from_numpy(rows)).numpy(), codes)
    assert np.array_equal(module.decode(torch.from_numpy(codes)).numpy(), expected)
    error = module(torch.from_numpy(codes)).numpy() - expected
    assert np.sqrt(np.mean(np.square(error))) < 2.0**codec.unit_exponent
    assert not np.array_equal(expected, codec.decode(codes))


@pytest.mark.parametrize("method", ["none", "phi-s", "standardize"])
@pytest.mark.parametrize("name", CASES)
def test_a_normalizer_is_folded_into_decoding(name: str, method: str) -> None:
    rows, codec = case(name, 2)
    normalizer = Normalizer.fit(Moments.of(rows), method)
    codes = codec.encode(rows)
    found = CodecModule(codec, normalizer)(torch.from_numpy(codes)).numpy()
    assert found.dtype == np.float32
    # In the features' own space decode() rounds to units four times, and float32 does less.
    error = normalizer.inverse_transform(found) - codec.decode(codes)
    assert np.sqrt(np.mean(np.square(error))) < 2.0**codec.unit_exponent
    assert np.abs(found - normalizer.transform(codec.decode(codes))).max() < 1e-3


@pytest.mark.parametrize("bits", [0.5, 8])
@pytest.mark.parametrize("name", CASES)
def test_decoding_for_training_is_a_unit_apart_at_any_bits(name: str, bits: float) -> None:
    rows, codec = case(name, bits)
    codes = codec.encode(rows)
    error = CodecModule(codec)(torch.from_numpy(codes)).numpy() - codec.decode(codes)
    single = np.finfo(np.float32).eps * np.abs(rows.astype(float)).max()
    assert np.sqrt(np.mean(np.square(error))) < 2.0**codec.unit_exponent + 4 * single


def test_rows_have_the_values_that_they_have_in_other_batches_and_after_other_rows() -> None:
    """A batch is decoded in parts, in memory that the next one writes over."""
    rows, codec = case("odd", 2)
    module = CodecModule(codec)
    codes = torch.from_numpy(np.tile(codec.encode(rows), (18, 1)))  # 3,600 rows, 3,495 at once
    with torch.inference_mode():
        few = module(codes[:7]).clone()
    many = module(codes)
    turned = module(codes.flip(0)).flip(0)
    assert torch.equal(module(codes), many)
    for other in (many[200:400], many[-200:], turned[:200]):
        torch.testing.assert_close(many[:200], other, rtol=0, atol=1e-4)
    torch.testing.assert_close(many[:7], few, rtol=0, atol=1e-4)


def test_it_has_nothing_to_learn_and_nothing_to_save() -> None:
    module = CodecModule(case("odd", 2)[1])
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


def test_refusals_are_those_of_the_codec() -> None:
    rows, codec = case("odd", 2)
    module = CodecModule(codec)
    bad = torch.from_numpy(rows.copy())
    bad[17, 3, 2] = torch.nan
    with pytest.raises(UsageError, match="Row 17 "):
        module.encode(bad)
    with pytest.raises(UsageError, match="uint8"):
        module(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"\(15, 20\)"):
        module.encode(bad[:, 1:])


def test_no_rows_are_no_codes_and_back() -> None:
    rows, codec = case("square", 2)
    module = CodecModule(codec)
    codes = module.encode(torch.from_numpy(rows[:0]))
    assert np.array_equal(codes.numpy(), codec.encode(rows[:0]))
    for decoded in (module.decode(codes), module(codes)):
        assert decoded.shape == codec.decode(codes.numpy()).shape == (0, *codec.row_shape)
