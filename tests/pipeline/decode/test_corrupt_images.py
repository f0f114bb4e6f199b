"""Damaged and odd images: each is used or rejected with a reason, and no decoder dies.

The mutants are a subset here. The full size, 1,000 of each format and more, runs with
PHISTILL_FULL=1.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phistill.pipeline.decode.pending import DecodedShard, ShardRows
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.shards import decode_shards
from phistill.pipeline.decode.views import Rendering, View

FULL = os.environ.get("PHISTILL_FULL") == "1"
MUTANTS = 1000 if FULL else 100
RENDERING = Rendering((16, 16), "bicubic")
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "MPO": {},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "AVIF": {},
    "JPEG2000": {},
    "PPM": {},
    "TGA": {"compression": "tga_rle"},
    "PCX": {},
    "SGI": {},
    "ICO": {},
}


def decoded(images: Sequence[bytes], rules: DecodeRules | None = None) -> DecodedShard:
    rows = [str(number) for number in range(len(images))]
    nothing = [-1] * len(rows)
    (shard,) = decode_shards(
        lambda uri, offset, length: images[int(uri)],
        [ShardRows(0, rows, nothing, nothing, [0] * len(rows), rows)],
        rules=rules or DecodeRules(),
        views=[View()],
        renderings=[RENDERING],
        num_workers=2,
        mode="processes",
    )
    return shard


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def seed_image(mode: str = "RGB") -> Image.Image:
    """Smooth and noisy halves, so that every part of a decoder is used."""
    generator = np.random.default_rng(0)
    pixels = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    pixels[16:] = generator.integers(0, 256, (16, 32, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def mutant(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One of: flipped bits, changed bytes, a cut, a doubled or removed part, two files spliced."""
    changed = bytearray(data)
    size = len(data)
    how = int(generator.integers(6))
    start, stop = sorted(generator.integers(0, size, 2).tolist())
    if how == 0:
        for place in generator.integers(0, size, int(generator.integers(1, 9))).tolist():
            changed[place] ^= 1 << int(generator.integers(8))
    elif how == 1:  # in the header, where sizes and offsets stand
        for place in generator.integers(0, min(64, size), 3).tolist():
            changed[place] = int(generator.choice([0, 1, 127, 128, 255]))
    elif how == 2:
        changed = changed[:start]
    elif how == 3:
        changed[start:start] = changed[start:stop]
    elif how == 4:
        del changed[start:stop]
    else:
        changed[start:] = other[min(start, len(other) - 1) :]
    return bytes(changed)


@pytest.mark.guarantee(
    "G13", f"{MUTANTS:,} mutants of a format: accepted + rejected = all, 0 decoders lost"
)
@pytest.mark.parametrize("format", FORMATS)
def test_every_mutant_is_used_or_rejected_with_a_reason(format: str) -> None:
    mode = "L" if format == "SGI" else "RGB"
    one = encoded(seed_image(mode), format, **FORMATS[format])
    two = encoded(seed_image(mode).rotate(90), format, **FORMATS[format])
    generator = np.random.default_rng(sum(format.encode()))
    images = [one, two, *(mutant(one, two, generator) for _ in range(MUTANTS))]
    shard = decoded(images)
    assert 0 not in shard.reasons
    assert 1 not in shard.reasons
    assert len(shard.pixels[RENDERING]) == len(images)
    accepted = [row for row, size in enumerate(shard.size) if size is not None]
    assert len(accepted) + len(shard.reasons) == len(images)
    assert not set(accepted) & set(shard.reasons)
    assert all(reason.strip() for reason in shard.reasons.values())
    bad = ("the decoder", "decoding took", "decoding ran")
    lost = [reason for reason in shard.reasons.values() if reason.startswith(bad)]
    assert lost == []
    # A cut file is noticed; many flipped bits of an uncompressed format cannot be.
    assert len(shard.reasons) > (0 if format in ("BMP", "PPM", "ICO") else MUTANTS // 10)


def png_claiming(width: int, height: int, rows: bytes) -> bytes:
    """A well-formed PNG of grey pixels that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + tail

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(seed_image().resize((20, 10)), "JPEG", exif=exif)


CURATED: dict[str, tuple[Callable[[], bytes], str | tuple[int, int]]] = {
    # what it is: bytes, and the reason or the size
    "zero bytes": (lambda: b"", "empty file"),
    "one byte": (lambda: b"\xff", "cannot be decoded"),
    "HTML named .jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "cannot be decoded"),
    "zeros": (lambda: bytes(10_000), "cannot be decoded"),
    "CMYK": (lambda: encoded(seed_image("CMYK"), "JPEG"), (32, 32)),
    "16 bits": (
        lambda: encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
        (30, 20),
    ),
    "floats": (lambda: encoded(Image.new("F", (5, 4), 0.5), "TIFF"), (5, 4)),
    "floats that are NaN": (
        lambda: encoded(Image.new("F", (5, 4), float("nan")), "TIFF"),
        "pixels that are NaN or infinite",
    ),
    "32-bit integers": (
        lambda: encoded(Image.new("I", (5, 4), 70_000), "TIFF"),
        "32-bit integers, whose range the file does not state",
    ),
    "floats of unknown range": (
        lambda: encoded(Image.new("F", (5, 4), 200.0), "TIFF"),
        "floats beyond [0, 1], whose range the file does not state",
    ),
    "palette with alpha": (
        lambda: encoded(seed_image().convert("P"), "PNG", transparency=bytes(range(256))),
        (32, 32),
    ),
    "grey with alpha": (lambda: encoded(seed_image("LA"), "PNG"), (32, 32)),
    "one bit": (lambda: encoded(seed_image("1"), "PNG"), (32, 32)),
    "Lab": (lambda: encoded(Image.new("LAB", (5, 4)), "TIFF"), (5, 4)),
    "animated": (
        lambda: encoded(
            seed_image(), "GIF", save_all=True, append_images=[seed_image().rotate(90)]
        ),
        (32, 32),
    ),
    "1 x 4000": (lambda: encoded(Image.new("RGB", (1, 4000)), "PNG"), (1, 4000)),
    "4000 x 1": (lambda: encoded(Image.new("RGB", (4000, 1)), "PNG"), (4000, 1)),
    "bomb of claimed size": (lambda: png_claiming(200_000, 200_000, b""), "more than the cap"),
    "bomb that is deflated": (
        lambda: png_claiming(30_000, 30_000, bytes(30_001 * 1000)),
        "more than the cap",
    ),
    # Its stream is complete, so Pillow fills the rest with black; a cut file is rejected.
    "fewer rows than claimed": (lambda: png_claiming(300, 300, bytes(301 * 10)), (300, 300)),
    "0 pixels": (lambda: png_claiming(0, 10, b""), "cannot be decoded"),
    "two images in one file": (lambda: encoded(seed_image(), "JPEG") * 2, (32, 32)),
    "EPS, for which Pillow would run a program": (
        lambda: encoded(seed_image(), "EPS"),
        "cannot be decoded",
    ),
    **{
        f"orientation {n}": ((lambda n=n: oriented(n)), (10, 20) if n > 4 else (20, 10))  # type: ignore[misc]
        for n in range(1, 9)
    },
}


@pytest.mark.guarantee("G13", f"{len(CURATED)} odd images go as stated")
def test_the_curated_list_goes_as_stated() -> None:
    shard = decoded([make() for make, _ in CURATED.values()])
    for row, (what, (_, expected)) in enumerate(CURATED.items()):
        if isinstance(expected, str):
            assert expected in shard.reasons.get(row, "accepted"), what
        else:
            assert row not in shard.reasons, (what, shard.reasons[row])
            assert shard.size[row] == expected, what


def test_a_largest_allowed_image_fits_into_a_workers_memory() -> None:
    side = 10_000 if FULL else 4_000
    rules = DecodeRules(max_pixels=side * side)
    data = png_claiming(side, side, bytes((side + 1) * side))
    assert decoded([data], rules).reasons == {}
