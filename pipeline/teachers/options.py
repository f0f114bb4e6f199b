"""The ``key=value`` options of a teacher, read from their texts."""

from __future__ import annotations

from collections.abc import Mapping

from phistill.errors import UsageError, did_you_mean

COMMON = ("mean", "std", "interpolation", "grid", "resample", "pad_from", "licence")
"""Options of every source, which ``wrapper`` reads."""
OF_WEIGHTS = ("weights", "prefix", "key", "random", "dtype")
"""Of ``WeightOptions``."""
OF_SOURCE = {
    "timm": (
        *("size", "layer", "norm", "neck", "summary", "registers"),
        *(*OF_WEIGHTS, "revision"),
    ),
    "open_clip": ("size", "layer", "norm", "space", *OF_WEIGHTS),
    "transformers": (
        *("size", "layer", "summary", "registers", "revision", "remote_code", "random", "dtype"),
    ),
}
"""Options of the sources of this package. They stand here, and not beside their source, because
those import torch."""
MAX_SIDE = 65_536


def take_options(options: dict[str, str], known: tuple[str, ...], teacher: str) -> None:
    """UsageError listing the known options when an unknown one is given."""
    if unknown := sorted(set(options) - set(known)):
        near = "".join(did_you_mean(name, (*known, *COMMON)) for name in unknown)
        raise UsageError(
            f"{teacher}: unknown options {', '.join(unknown)}; known are {', '.join(known)}, "
            f"and for every source {', '.join(COMMON)}.{near}"
        )


def integer(options: Mapping[str, str], key: str) -> int | None:
    """An option as an integer; None when it is not given."""
    if key not in options:
        return None
    try:
        return int(options[key])
    except ValueError as error:
        raise UsageError(f"option {key}={options[key]!r} must be an integer.") from error


def boolean(options: dict[str, str], key: str, *, default: bool) -> bool:
    """An option as true or false."""
    text = options.get(key, str(default).lower())
    if text not in ("true", "false"):
        raise UsageError(f"option {key}={text!r} must be true or false.")
    return text == "true"


def size_of(options: Mapping[str, str]) -> tuple[int, int] | None:
    """The option ``size``, ``224`` or ``224x336`` (height x width)."""
    if "size" not in options:
        return None
    height, cross, width = options["size"].partition("x")
    return side(height), side(width if cross else height)


def require_whole_patches(size: tuple[int, int], patch: tuple[int, int], teacher: str) -> None:
    """UsageError when the last pixels of a row or a column belong to no patch."""
    for pixels, step, name in zip(size, patch, ("height", "width"), strict=True):
        if pixels % step:
            raise UsageError(
                f"{teacher}: the {name} {pixels} is no multiple of the patch's {step} pixels, so "
                f"the last {pixels % step} would never be seen. Take "
                f"{pixels // step * step or step} or {(pixels // step + 1) * step}."
            )


def side(text: str) -> int:
    """A number of pixels or patches, from its text; UsageError beyond 1 to 65,536."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not 1 <= int(text) <= MAX_SIDE:
        raise UsageError(f"{text[:20]!r} is no number of pixels or patches from 1 to {MAX_SIDE:,}.")
    return int(text)
