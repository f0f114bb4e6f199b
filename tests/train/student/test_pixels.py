"""Resizing as Pillow does it, and what the student is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phistill.train.student.pixels import pillow_weights, resize, to_images


@given(st.integers(1, 120), st.integers(1, 120), st.booleans(), st.integers(0, 99))
def test_resized_pixels_are_those_of_pillow(
    given_side: int, wanted: int, is_harsh: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (2, given_side, given_side, 3)
    pixels = generator.integers(0, 256, shape).astype(np.uint8)
    if is_harsh:
        pixels = (pixels > 127).astype(np.uint8) * 255
    ours = resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), wanted).permute(0, 2, 3, 1)
    for one, picture in zip(ours.numpy(), pixels, strict=True):
        theirs = Image.fromarray(picture).resize((wanted, wanted), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(one, np.asarray(theirs))


def test_an_interpolation_in_floating_point_is_not_what_pillow_gives() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3)))
    pixels = pixels.to(torch.uint8)
    floating = torch.nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2) / 255, (42, 42), mode="bicubic", antialias=True
    )
    assert (floating - to_images(pixels, 42)).abs().max() > 0.4 / 255


def test_images_are_pixels_over_255() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_images(pixels, 8), pixels.permute(0, 3, 1, 2) / 255)
    assert to_images(pixels, 16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("one", "other"), [(224, 48), (48, 224)])
def test_weights_of_a_pixel_sum_to_one(one: int, other: int) -> None:
    sums = pillow_weights(one, other).sum(1) / 2**22
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
