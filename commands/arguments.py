"""Arguments that several commands share, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

cache_path = click.Path(path_type=str)
"""Where a cache lies: a folder, kept as it was typed because it may be something else too."""

cache_argument = click.argument("cache", type=cache_path)
caches_argument = click.argument(
    "caches", metavar="CACHE...", nargs=-1, required=True, type=cache_path
)

teacher_option = click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="[NAME=]SOURCE:MODEL[?KEY=VALUE&...]",
    help="Teacher to run, repeatable.",
)


def fraction_or_file(text: str | None) -> tuple[float | None, Path | None]:
    """``0.05`` as a fraction, anything else as the path of a file."""
    if text is None:
        return None, None
    try:
        return float(text), None
    except ValueError:
        return None, Path(text)


def count_or_auto(option: str, text: str | None) -> int | str | None:
    """``auto`` or a number; None stays None."""
    from phistill.errors import UsageError

    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is neither a number nor auto.") from None


def seconds_of(text: str | None) -> float | None:
    """``3h50m``, ``90m``, ``45s`` or a number of seconds."""
    import re

    from phistill.errors import UsageError

    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if not text.strip() or found is None:
        raise UsageError(f"--time-limit {text!r} is not like 3h50m, 90m or 45s.")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def names_of(text: str | None) -> list[str] | None:
    """``a,b`` as a list without repeats; None stays None. UsageError for a text without a name.

    An empty text comes from a shell variable that is not set, and must not mean "all".
    """
    from phistill.errors import UsageError

    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--teachers {text!r} names no teacher. Leave it out to take all of them.")
    return list(dict.fromkeys(names))


def numbers_of(option: str, text: str) -> list[float]:
    """``0.7,0.3`` as numbers; UsageError names the option."""
    from phistill.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not like 0.7,0.3.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    from phistill.errors import UsageError

    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8 ({error.reason}).") from error


def read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    from phistill.errors import UsageError

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def assignment_of(text: str) -> tuple[str, Any]:
    """``key=value`` with the value as in TOML; what is not TOML is a string."""
    import tomllib

    from phistill.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r} is not KEY=VALUE.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def bytes_of(option: str, text: str | None) -> int:
    """``200G``, ``1.5TiB``, ``500M`` or a number of bytes; 0 for None. G is 10^9, GiB 2^30."""
    import re

    from phistill.errors import UsageError

    if text is None:
        return 0
    found = re.fullmatch(r"([0-9.]+)\s*(?:([kMGTP])(i?)B?|B)?", text.strip())
    try:
        number = float(found.group(1)) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise UsageError(f"{option} {text!r} is not like 200G, 1.5TiB or 500M.")
    exponent = " kMGTP".index(found.group(2) or " ")
    return int(number * (1024 if found.group(3) else 1000) ** exponent)


def grid_of(text: str) -> tuple[str, tuple[int, int]]:
    """``NAME=H,W`` as a name and a grid."""
    from phistill.errors import UsageError

    name, _, sides = text.rpartition("=")
    height, _, width = sides.partition(",")
    if not (name and height.strip().isdigit() and width.strip().isdigit()):
        raise UsageError(f"--grid {text!r} is not NAME=H,W, for example dino=16,16.")
    return name, (int(height), int(width))
