"""Arguments that several commands share, and how text is read as a value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Text that a function reads; its ValueError says what the text should be like."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ListOption(click.Option):
    """A list with commas, of a type that reads one; given again, it goes on."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **{"multiple": True, **given})

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        each = super().process_value(ctx, value)
        return self.type.convert(",".join(value), self, ctx) if each else None


def _duration(text: str) -> float:
    import re

    from dask.utils import parse_timedelta

    parts = re.findall(r"[0-9.]+\s*[a-z]*", text)
    try:
        if "".join(parts) != text or not parts:
            raise ValueError
        return float(sum(parse_timedelta(part) for part in parts))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{text!r} is not like 3h50m, 90m or 45s.") from error


def _num_bytes(text: str) -> int:
    from dask.utils import parse_bytes

    try:
        num_bytes = parse_bytes(text) if text[:1].isdigit() else 0
    except ValueError:
        num_bytes = 0
    if num_bytes <= 0:
        raise ValueError(f"{text!r} is not like 200G (10^9 bytes each), 1.5TiB or 500M.")
    return int(num_bytes)


def _names(text: str) -> list[str]:
    """An empty text comes from a shell variable that is not set, and must not mean "all"."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{text!r} names no teacher. Leave it out to take all of them.")
    return list(dict.fromkeys(names))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} must be whole numbers, as in 0,1,2.") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"{text!r} must be numbers from 0 on that differ.")
    return seeds


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} is not like 0.7,0.3.") from error


def _fraction_or_file(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _count_or_auto(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a number nor auto.") from None


def _device(text: str) -> str:
    if text.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device {text!r} is not known; write auto, cpu, cuda, cuda:1 or mps.")
    return text


def _named_grid(text: str) -> tuple[str, tuple[int, int]]:
    name, _, sides = text.rpartition("=")
    height, _, width = sides.partition(",")
    if not (name and height.strip().isdigit() and width.strip().isdigit()):
        raise ValueError(f"{text!r} is not NAME=H,W, for example dino=16,16.")
    return name, (int(height), int(width))


def _named_layout(text: str) -> tuple[str, str]:
    """The teacher, "" for all of them, and the layout."""
    name, _, layout = text.rpartition("=")
    return name, layout.lower()


def _teacher_bits(text: str) -> float | dict[str, float]:
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        named = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ValueError(f"{text!r} is not like 2 or dino=2,sam=0.5.") from None
    if len(named) != len(pairs) or "" in named:
        raise ValueError(f"{text!r} must name each teacher once.")
    return named


def _share(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{text!r} is not like 2% or 0.02.") from None
    return number / 100 if text.endswith("%") else number


def _assignment(text: str) -> tuple[str, Any]:
    """The value is read as TOML; what is not TOML is a string."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r} is not KEY=VALUE.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    from phistill.errors import UsageError

    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8 ({error.reason}).") from error


def _toml(text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(Path(text).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{text} is not TOML: {error}.") from error
    except OSError as error:
        raise ValueError(f"{text} cannot be read ({error.strerror}).") from error


DEVICE = Parsed("device", _device)
DURATION = Parsed("duration", _duration)
"""``3h50m``, ``90m``, ``45s`` or a number of seconds, in seconds."""
NUM_BYTES = Parsed("bytes", _num_bytes)
"""``200G``, ``1.5TiB``, ``500M`` or a number of bytes. G is 10^9, GiB 2^30."""
NAMES = Parsed("names", _names)
"""``a,b``, without repeats."""
NUMBERS = Parsed("numbers", _numbers)
SEEDS = Parsed("seeds", _seeds)
"""``0,1,2``: whole numbers, without repeats."""
FRACTION_OR_FILE = Parsed("fraction or file", _fraction_or_file)
COUNT_OR_AUTO = Parsed("count or auto", _count_or_auto)
NAMED_GRID = Parsed("grid", _named_grid)
NAMED_LAYOUT = Parsed("layout", _named_layout)
TEACHER_BITS = Parsed("bits", _teacher_bits)
"""``2``, or ``dino=2,sam=0.5``."""
SHARE = Parsed("share", _share)
"""``2%`` or ``0.02``."""
ASSIGNMENT = Parsed("assignment", _assignment)
TOML = Parsed("toml", _toml)
PATH = click.Path(path_type=Path)
LOCATION = click.Path(path_type=str)
"""Where a cache lies: a folder, kept as it was typed because it may be something else too."""

cache_argument = click.argument("cache", type=LOCATION)
caches_argument = click.argument(
    "caches", metavar="CACHE...", nargs=-1, required=True, type=LOCATION
)
teacher_option = click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="[NAME=]SOURCE:MODEL[?KEY=VALUE&...]",
    help="Teacher to run, repeatable.",
)
teachers_option = click.option(
    "--teachers",
    cls=ListOption,
    type=NAMES,
    metavar="A,B",
    help="Only these teachers, comma-separated.  [default: all of the cache]",
)
device_option = click.option(
    "--device", type=DEVICE, default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
autocast_option = click.option(
    "--autocast",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Arithmetic of the teachers.  [default: bfloat16 on GPUs that have it, else float32]",
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what of IMAGES is taken; a command gets them as
    ``reading``, a dict for SourceOptions."""
    options = (
        click.option(
            "--kind",
            default="",
            type=click.Choice(["", "folder", "list", "parquet", "arrow", "tar"]),
            metavar="folder|list|parquet|arrow|tar",
            help="What holds the images.  [default: what holds most, or as the cache remembers]",
        ),
        click.option(
            "--member",
            default="",
            help="Which image of a sample: in tars what follows the key, jpg or left.png; in "
            "tables the column; one of each by default.",
        ),
        click.option(
            "--allow-cut-tars", is_flag=True, help="Take what is there of a tar that was cut."
        ),
        click.option(
            "--label-column",
            default="",
            metavar="NAME|none",
            help="Column of a table that holds the class.  [default: label, class, ...]",
        ),
    )

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        names = ("kind", "member", "allow_cut_tars", "label_column")
        reading = {name: given.pop(name) for name in names}
        return command(*args, reading=reading, **given)

    decorated: Callable[..., Any] = gathered
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def layout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the arrays of a new cache are cut into shards and files."""
    options = (
        click.option(
            "--shard-rows",
            type=int,
            help="Rows per shard, the unit of commit, a power of two.  [default: by the work]",
        ),
        click.option(
            "--file-bytes",
            type=NUM_BYTES,
            metavar="64MiB",
            help="Largest file; a shard of large rows has several.  [default: 64MiB]",
        ),
        click.option(
            "--compression", metavar="zstd:3", help="Compress every array.  [default: none]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def split_option(default: str) -> Callable[..., Any]:
    return click.option(
        "--split",
        type=click.Choice(["train", "heldout", "all"]),
        default=default,
        show_default=True,
        help="Only these rows.",
    )
