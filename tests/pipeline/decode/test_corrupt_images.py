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
import pillow_heif
import pillow_jxl  # noqa: F401  # registers itself
import pytest
from PIL import Image

from phistill.pipeline.decode import rgb
from phistill.pipeline.decode.pending import DecodedShard, ShardRows
from phistill.pipeline.decode.rgb import DecodeRules, Reject, decode
from phistill.pipeline.decode.shards import decode_shards
from phistill.pipeline.decode.views import Rendering, View

pillow_heif.register_heif_opener()
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
    "QOI": {},
    "DIB": {},
    "HEIF": {},
    "JXL": {},
}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # what it is: format, mode, options
    **{name: (name, "L" if name == "SGI" else "RGB", options) for name, options in FORMATS.items()},
    "PNG, 16 bits": ("PNG", "I;16", {}),
    "PNG, palette with alpha": ("PNG", "P", {"transparency": bytes(range(256))}),
    "PNG, texts and profile": ("PNG", "RGB", {"icc_profile": bytes(range(256)) * 4}),
    "PNG, animated": ("PNG", "RGB", {"save_all": True, "append_images": 1}),
    "GIF, animated": ("GIF", "P", {"save_all": True, "append_images": 1}),
    "WebP, lossy and animated": ("WEBP", "RGBA", {"save_all": True, "append_images": 1}),
    "JPEG, CMYK": ("JPEG", "CMYK", {}),
    "JPEG, progressive with EXIF": ("JPEG", "RGB", {"progressive": True, "exif": 6}),
    "TIFF, floats": ("TIFF", "F", {}),
    "TIFF, 16 bits": ("TIFF", "I;16", {"compression": "tiff_adobe_deflate"}),
    "TIFF, CMYK": ("TIFF", "CMYK", {"compression": "packbits"}),
    "TIFF, JPEG inside": ("TIFF", "YCbCr", {"compression": "jpeg"}),
    "TIFF, fax": ("TIFF", "1", {"compression": "group4"}),
    "PGM, 16 bits": ("PPM", "I;16", {}),
    "PFM": ("PPM", "F", {}),
    "SGI, 16 bits": ("SGI", "RGB", {"bpc": 2}),
    "JPEG 2000, alpha": ("JPEG2000", "RGBA", {}),
    "HEIF, alpha": ("HEIF", "RGBA", {}),
    "JPEG XL, lossless": ("JXL", "RGBA", {"lossless": True}),
    "AVIF, animated": ("AVIF", "RGB", {"save_all": True, "append_images": 1}),
}
"""Every kind of number and of container that is decoded."""
UNCHECKED = ("BMP", "PPM", "ICO", "DIB", "QOI")
"""Formats without a checksum, of which flipped bits are another picture."""


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
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    return Image.fromarray(pixels).convert(mode)


def filled(options: dict[str, Any], image: Image.Image) -> dict[str, Any]:
    """The options with a second frame and an orientation where they ask for them."""
    options = dict(options)
    if "append_images" in options:
        options["append_images"] = [image.transpose(Image.Transpose.ROTATE_180)]
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options["exif"] = exif
    return options


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mutant_is_used_or_rejected_with_a_reason(variant: str) -> None:
    format, mode, options = VARIANTS[variant]
    one, two = (
        encoded(image, format, **filled(options, image))
        for image in (seed_image(mode), seed_image(mode).transpose(Image.Transpose.ROTATE_90))
    )
    generator = np.random.default_rng(sum(variant.encode()))
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
    assert len(shard.reasons) > (0 if format in UNCHECKED else MUTANTS // 10)


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


def heic(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(seed_image().resize((20, 10)), "HEIF", exif=exif.tobytes())


def with_chunk(kind: bytes, data: bytes, crc: bytes | None = None) -> bytes:
    """A good PNG with one chunk more before its pixels."""
    good = encoded(seed_image(), "PNG")
    at = good.index(b"IDAT") - 4
    tail = struct.pack(">I", zlib.crc32(kind + data)) if crc is None else crc
    return good[:at] + struct.pack(">I", len(data)) + kind + data + tail + good[at:]


def tiff(values: np.ndarray[Any, Any], *, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A bare grey TIFF, little-endian, one strip."""
    height, width = values.shape
    tags = {
        256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: photometric,
        273: 8 + 2 + 10 * 12 + 4, 277: 1, 278: height, 279: values.nbytes, 339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + values.astype(values.dtype.newbyteorder("<")).tobytes()


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
    "JPEG XL": (lambda: encoded(seed_image(), "JXL"), (32, 32)),
    "HEIC": (lambda: encoded(seed_image(), "HEIF"), (32, 32)),
    "HEIC on its side": (lambda: heic(6), (10, 20)),
    "texts that unpack to 100 MB": (
        lambda: with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000))),
        (32, 32),
    ),
    "a profile that unpacks to 80 MB": (
        lambda: with_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(80_000_000))),
        (32, 32),
    ),
    "damaged metadata": (lambda: with_chunk(b"tEXt", b"a\0b", crc=b"\0\0\0\0"), (32, 32)),
    "damaged pixels": (
        lambda: with_chunk(b"IDAT", b"\0" * 9, crc=b"\0\0\0\0"),
        "cannot be decoded",
    ),
    "signed integers": (
        lambda: tiff(np.full((4, 5), -3, np.int8), sample_format=2),
        "signed integers, whose range the file does not state",
    ),
    "signed integers of 16 bits": (
        lambda: tiff(np.full((4, 5), 3, np.int16), sample_format=2),
        "signed integers, whose range the file does not state",
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_white_is_zero_is_no_negative(dtype: type) -> None:
    ramp: np.ndarray[Any, Any] = np.linspace(0, np.iinfo(dtype).max, 20).reshape(4, 5).astype(dtype)
    plain, turned = tiff(ramp), tiff(np.iinfo(dtype).max - ramp, photometric=0)
    one, two = (np.asarray(decode(data, DecodeRules())) for data in (plain, turned))
    assert np.array_equal(one, two)
    assert one.min() == 0
    assert one.max() == 255


def test_a_picture_that_needs_a_plug_in_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rgb, "_formats", lambda: ["JPEG", "PNG"])
    for name, extra in (("HEIF", "heif"), ("JXL", "jxl")):
        data = encoded(seed_image(), name)
        monkeypatch.delitem(Image.OPEN, name)
        with pytest.raises(Reject, match=rf"pip install 'phistill\[{extra}\]'"):
            decode(data, DecodeRules())
