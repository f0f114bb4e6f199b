"""A picture looks the same to a teacher whatever gamut its file stores it in."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from phistill.pipeline.decode.rgb import DecodeRules, decode

SRGB = ImageCms.createProfile("sRGB")
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
GAMUTS = {
    # red, green, blue, white (x, y), and the gamma
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65, 2.2),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65, 2.2),
    "ProPhoto RGB": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50, 1.8),
}
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "TIFF": {},
    "WEBP": {"lossless": True},
}


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(name: str) -> bytes:
    """A matrix profile of ICC version 2: primaries adapted to D50 after Bradford, and a gamma."""
    *primaries, white, gamma = GAMUTS[name]
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    point = np.array([white[0] / white[1], 1, (1 - sum(white)) / white[1]])
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ point)) @ bradford
    matrix = adapt @ (columns * np.linalg.solve(columns, point))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80),
        b"cprt": b"text" + bytes(4) + b"x\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(*d50),
        **{
            kind: b"XYZ " + bytes(4) + fixed(*matrix[:, number])
            for number, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for kind, data in tags.items():
        table += kind + struct.pack(">II", start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(">I", start + len(content)) + bytes(4) + struct.pack(">I", 0x02400000)
    head += b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(*d50) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + content


def picture() -> Image.Image:
    """Colours that every gamut here can show, in sRGB."""
    levels = np.linspace(40, 215, 8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, 32, 3)
    return Image.fromarray(cube.round().astype(np.uint8))


def stored(image: Image.Image, name: str, format: str = "PNG", **options: Any) -> bytes:
    target = ImageCms.getOpenProfile(io.BytesIO(profile(name)))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    wide = ImageCms.profileToProfile(image, SRGB, target, renderingIntent=intent)
    assert wide is not None
    sink = io.BytesIO()
    wide.save(sink, format, icc_profile=profile(name), **options)
    return sink.getvalue()


def difference(data: bytes, image: Image.Image) -> float:
    """The mean of all pixels, in levels: 8 bits in a wider gamut are coarser, a level there is up
    to three here."""
    found = np.asarray(decode(data, DecodeRules())).astype(float)
    return float(np.abs(found - np.asarray(image.convert("RGB"))).mean())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", GAMUTS)
def test_a_wide_gamut_becomes_srgb_again(name: str, format: str) -> None:
    data = stored(picture(), name, format, **FORMATS[format])
    with Image.open(io.BytesIO(data)) as image:  # without its profile it is another picture
        ignored = np.abs(np.asarray(image).astype(float) - np.asarray(picture())).mean()
    assert ignored > 5
    assert difference(data, picture()) < (2.5 if format == "JPEG" else 1)


def test_transparency_and_palettes_have_their_colours_too() -> None:
    image = picture()
    image.putalpha(255)
    assert difference(stored(image, "Display P3"), image) < 1
    few = picture().quantize(16)
    exact = few.convert("RGB")
    sink = io.BytesIO()
    wide = Image.open(io.BytesIO(stored(exact, "Adobe RGB"))).quantize(16)
    wide.save(sink, "PNG", icc_profile=profile("Adobe RGB"))
    assert difference(sink.getvalue(), exact) < 1


@pytest.mark.parametrize(
    "icc",
    [
        ImageCms.ImageCmsProfile(SRGB).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        b"no profile at all",
        profile("Display P3")[:200],
        profile("Display P3")[:132] + bytes(300),
        bytes(5_000_000),
    ],
    ids=["sRGB", "of another space", "text", "cut", "zeros", "large"],
)
def test_srgb_and_what_is_no_profile_of_rgb_change_no_bit(icc: bytes) -> None:
    sink = io.BytesIO()
    picture().save(sink, "PNG", icc_profile=icc)
    assert difference(sink.getvalue(), picture()) == 0


def test_profiles_of_other_kinds_of_pictures_are_ignored() -> None:
    for mode in ("L", "CMYK", "LA"):
        image = picture().convert(mode)
        sink = io.BytesIO()
        image.save(sink, "TIFF", icc_profile=profile("Display P3"))
        bare = io.BytesIO()
        image.save(bare, "TIFF")
        found, expected = (
            np.asarray(decode(data.getvalue(), DecodeRules())) for data in (sink, bare)
        )
        assert np.array_equal(found, expected)
