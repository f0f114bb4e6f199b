"""Any bytes give an RGB image by the stated rules, or a reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from phistill.pipeline.decode.rgb import DecodeRules, Reject, decode

RULES = DecodeRules()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def corner_image() -> Image.Image:
    """8 x 6 pixels, the upper left quarter red."""
    image = Image.new("RGB", (8, 6), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 4, 3))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation: int) -> None:
    upright = corner_image()
    # What a camera stores: the transform that the orientation tag asks to be undone.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(stored, exif=exif), RULES)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))


def test_transparency_is_composited_over_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (255, 255, 255, 255))
    found = np.asarray(decode(encoded(image), RULES))
    np.testing.assert_array_equal(found, [[[128, 128, 128], [255, 255, 255]]])


def test_a_palette_with_a_transparent_entry_is_composited() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    found = np.asarray(decode(encoded(image, transparency=0), RULES))
    np.testing.assert_array_equal(found, [[[128, 128, 128], [200, 100, 50]]])


def test_sixteen_bits_are_scaled_where_pillow_alone_turns_them_white() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    data = encoded(Image.fromarray(values))
    with Image.open(io.BytesIO(data)) as naive:
        assert np.asarray(naive.convert("RGB"))[0, 1, 0] == 255
    found = np.asarray(decode(data, RULES))
    np.testing.assert_array_equal(found[0, :, 0], [0, 100, 255])


def test_the_clear_grey_of_a_sixteen_bit_png_is_composited() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), transparency=257 * 100)
    assert b"tRNS" in data
    found = np.asarray(decode(data, RULES))
    np.testing.assert_array_equal(found[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_in_planes_are_read_where_pillow_alone_reads_eight(order: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    planes = (rgb.transpose(2, 0, 1) * 257).astype(f"{order}u2").tobytes()
    size = len(planes) // 3
    start = 8 + 2 + 11 * 12 + 4
    lists = struct.pack(f"{order}3H3I3I", 16, 16, 16, *(start + 30 + n * size for n in range(3)),
                        *[size] * 3)  # fmt: skip
    short, long = 3, 4
    tags = [(256, short, 1, 7), (257, short, 1, 5), (258, short, 3, start), (259, short, 1, 1),
            (262, short, 1, 2), (273, long, 3, start + 6), (274, short, 1, 1), (277, short, 1, 3),
            (278, short, 1, 5), (279, long, 3, start + 18), (284, short, 1, 2)]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(f"{order}HH" if (kind, count) == (short, 1) else f"{order}I",
                      *((value, 0) if (kind, count) == (short, 1) else (value,)))
        for tag, kind, count, value in tags
    )  # fmt: skip
    head = b"II*\0" if order == "<" else b"MM\0*"
    data = head + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + lists + planes
    with Image.open(io.BytesIO(data)) as naive:
        assert not np.array_equal(np.asarray(naive), rgb)
    np.testing.assert_array_equal(np.asarray(decode(data, RULES)), rgb)


@pytest.mark.parametrize("largest", [1023, 65535])
def test_the_scale_of_a_pgm_is_what_it_declares_and_not_its_brightest_pixel(largest: int) -> None:
    def mean(value: int) -> float:
        pixels = np.full((8, 8), value, ">u2").tobytes()
        return float(np.asarray(decode(f"P5 8 8 {largest}\n".encode() + pixels, RULES)).mean())

    assert [mean(value) for value in (0, 255, 256, largest)] == pytest.approx(
        [0, 255 * 255 / largest, 255 * 256 / largest, 255], abs=1
    )


def test_long_text_in_a_png_is_no_reason_to_reject_it() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2**21, zip=True)
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    assert np.asarray(decode(encoded(image, pnginfo=text), RULES))[0, 0].tolist() == [1, 2, 3]


def test_metadata_of_an_odd_type_leaves_the_picture_as_it_is() -> None:
    image = Image.new("RGB", (8, 4), (1, 2, 3))
    # An orientation that is a text of three letters.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
    assert decode(encoded(image, exif=exif), RULES).size == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    data = encoded(image, exif=image.getexif())
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(np.asarray(decode(data, RULES)), expected)


def test_cmyk_becomes_rgb() -> None:
    found = decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), RULES)
    red, green, blue = np.asarray(found)[2, 2].tolist()
    assert red > 200
    assert green < 60
    assert blue < 60


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(decode(data, RULES))[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html><body>404</body></html>", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        decode(data, RULES)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_image_is_rejected_and_never_padded_with_grey(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format)
    decode(data, RULES)
    with pytest.raises(Reject):
        decode(data[: len(data) * 2 // 3], RULES)


def test_an_image_over_the_pixel_cap_is_rejected_before_it_is_decoded() -> None:
    with pytest.raises(Reject, match=r"4000 x 4000 pixels, more than the cap of 1,000,000"):
        decode(encoded(Image.new("1", (4000, 4000))), DecodeRules(max_pixels=1_000_000))


def test_a_reason_is_the_same_in_every_run() -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(Reject) as caught:
            decode(bytes(100), RULES)
        reasons.add(str(caught.value))
    assert len(reasons) == 1
