"""From encoded bytes to an RGB image, by rules that are stated here and recorded in the cache.

* Orientation from EXIF is applied. The first frame of an animation is used. Wide gamuts become
  sRGB.
* Transparency is composited over a background colour (grey by default: white drawings vanish on
  white). Palettes, grey scale, CMYK and YCbCr become RGB; 16-bit and float images are scaled.
* An image is rejected, with a reason, when its bytes cannot be decoded completely, when it is
  larger than a cap, or when a side is below a floor.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from phistill.errors import UsageError

from .colour import to_srgb

MAX_IMAGE_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
"""A decoded RGB image of this many pixels takes 300 MB."""

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG"),
    *("PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
"""What is tried, whatever a file is named. Pillow knows more, among them EPS, for which it runs
another program."""

FLOAT_MARGIN = 0.01
"""Beyond [0, 1], as a filter leaves it."""
MAX_TEXT_BYTES = 64 * 2**20
"""Of one text or profile in a PNG, unpacked."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
SIGNED, WHITE_IS_ZERO, IN_PLANES = 2, 0, 2
"""Values of a TIFF's SampleFormat, PhotometricInterpretation and PlanarConfiguration."""
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class Reject(Exception):
    """This image cannot be used; the message is the reason that is recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRules:
    """What decides the pixels besides the bytes; recorded in the cache."""

    background: tuple[int, int, int] = (128, 128, 128)
    """Colour behind transparent pixels."""
    max_pixels: int = MAX_IMAGE_PIXELS
    min_side: int = 1
    """Images with a shorter side are rejected."""

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_pixels < 1:
            raise UsageError(
                f"min_side={self.min_side} and max_pixels={self.max_pixels} must be at least 1."
            )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "background": list(self.background)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DecodeRules:
        return cls(**{**record, "background": tuple(record["background"])})


def decode(data: bytes, rules: DecodeRules) -> Image.Image:
    """An RGB image, oriented upright. Raises Reject."""
    if not data:
        raise Reject("empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise Reject(f"{len(data):,} bytes, more than the cap of {MAX_IMAGE_BYTES:,}")
    try:
        try:
            return _decode(data, rules)
        except (SyntaxError, ValueError, UnidentifiedImageError) as error:
            failure = error
        for dropped in (PNG_TEXTS, (*PNG_TEXTS, b"iCCP")):
            bare = bare_png(data, dropped)
            if len(bare) < len(data):
                with contextlib.suppress(SyntaxError, ValueError, UnidentifiedImageError):
                    return _decode(bare, rules)
        raise failure
    except Reject:
        raise
    except UnidentifiedImageError as error:
        raise Reject(f"cannot be decoded: {_missing_plugin(data) or _one_line(error)}") from error
    except Image.DecompressionBombError as error:
        raise Reject(f"more than {rules.max_pixels:,} pixels") from error
    except MemoryError as error:
        raise Reject("decoding ran out of memory") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise Reject(f"cannot be decoded: {_one_line(error)}") from error


def _decode(data: bytes, rules: DecodeRules) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        _check_size(image.size, rules)
        _mend_planes(image)
        image.load()
        return _to_rgb(image, rules)


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow, or a plug-in for HEIF or JPEG XL, can open.

    Long texts and colour profiles in a PNG are no reason to reject it.
    """
    Image.init()
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT_BYTES)
    PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, 2 * MAX_TEXT_BYTES)
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself
    return [name for name in FORMATS if name in Image.OPEN]


def prepare_decoder() -> None:
    """Process-wide settings for a process that decodes: our pixel cap replaces Pillow's warning,
    and Pillow's remarks about odd metadata, which say nothing about the pixels, are not shown."""
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\..*")


def _check_size(size: tuple[int, int], rules: DecodeRules) -> None:
    width, height = size
    if width * height > rules.max_pixels:
        raise Reject(f"{width} x {height} pixels, more than the cap of {rules.max_pixels:,}")
    if min(size) < rules.min_side:
        raise Reject(f"{width} x {height} pixels, a side is below {rules.min_side}")


def _to_rgb(image: Image.Image, rules: DecodeRules) -> Image.Image:
    orientation = _orientation(image)
    if image.mode in SIXTEEN_BIT or image.mode in ("I", "F"):
        image = _to_eight_bit(image)
    elif _tiff_tag(image, TiffTag.SAMPLE_FORMAT) == SIGNED:
        raise Reject("signed integers, whose range the file does not state")
    image = to_srgb(image)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        colour = image.convert("RGBA")
        canvas = Image.new("RGBA", colour.size, (*rules.background, 255))
        return Image.alpha_composite(canvas, colour).convert("RGB")
    return image.convert("RGB")


class TiffTag(IntEnum):
    """Tags that say what a TIFF's numbers mean."""

    BITS = 258
    PLANES = 284
    PHOTOMETRIC = 262
    SAMPLE_FORMAT = 339


def _mend_planes(image: Image.Image) -> None:
    """16 bits in planes that are not compressed: Pillow reads each plane as if it had 8."""
    if _tiff_tag(image, TiffTag.BITS) != 16 or _tiff_tag(image, TiffTag.PLANES) != IN_PLANES:
        return
    tiff: Any = image
    order = "L" if tiff.tag_v2.prefix == b"II" else "B"
    tiff.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and len(tile.args[0]) == 1
        else tile
        for tile in tiff.tile
    ]


def _tiff_tag(image: Image.Image, tag: TiffTag) -> int | None:
    """A tag of a TIFF, the first value of several; None where there is none."""
    value: Any = getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) and value else value


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where the image states none, or nothing that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata raises nearly anything, and says nothing about the pixels
        return 1


def bare_png(data: bytes, dropped: Sequence[bytes]) -> bytes:
    """A PNG without these kinds of chunks, and without what is damaged but no part of the picture;
    other bytes as they are. Metadata that cannot be read is no reason to reject a picture."""
    if not data.startswith(PNG):
        return data
    kept, start = [PNG], len(PNG)
    while start + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        chunk = data[start : start + 12 + length]
        whole = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        is_critical = kind[:1].isupper()
        if is_critical or (whole and kind not in dropped):
            kept.append(chunk)
        start += len(chunk)
        if kind == b"IEND":
            break
    return b"".join([*kept, data[start:]])


def _missing_plugin(data: bytes) -> str:
    """What would have to be installed for a picture that was not recognised, where that helps."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return "HEIC, which needs pillow-heif: pip install 'phistill[heif]'"
    if data.startswith(JXL) and "JXL" not in Image.OPEN:
        return "JPEG XL, which needs its plug-in: pip install 'phistill[jxl]'"
    return ""


def _to_eight_bit(image: Image.Image) -> Image.Image:
    """By what the file declares, and never by the largest value in it: 16 bits by their full range,
    floats as [0, 1]. Pillow's own convert clips both, which turns a photograph white."""
    values = np.asarray(image).astype(np.float64)
    clear = values == image.info.get("transparency")  # of a 16-bit PNG one grey is
    if not np.isfinite(values).all():
        raise Reject("pixels that are NaN or infinite")
    if image.mode == "F":
        if values.min(initial=0.0) < -FLOAT_MARGIN or values.max(initial=0.0) > 1 + FLOAT_MARGIN:
            raise Reject("floats beyond [0, 1], whose range the file does not state")
        values = values * 255.0
    elif image.mode in SIXTEEN_BIT or image.format in (
        "PPM",
        "PNG",
    ):  # Pillow scales a PGM's maxval
        values = values / 257.0
    else:
        wide = _tiff_tag(image, TiffTag.BITS) in (None, 32)
        kind = "32-bit" if wide else "signed"
        raise Reject(f"{kind} integers, whose range the file does not state")
    if _tiff_tag(image, TiffTag.PHOTOMETRIC) == WHITE_IS_ZERO:  # of 8 bits Pillow does it itself
        values = 255.0 - values
    grey = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if not np.any(clear):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Pillow names the buffer's address, which would make two runs differ.
    return text.split(" <_io.BytesIO")[0][:200]
