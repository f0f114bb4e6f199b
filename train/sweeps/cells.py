"""A grid of settings: the product of lists, as a sweep's TOML file spells it.

[base]                          [grid]
student = "vit_small_..."       normalizer = ["phi-s", "none"]
num_steps = 2000                seed = [0, 1, 2]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phistill.errors import UsageError

from ..config import TrainConfig

SHARED_KEYS = (
    "teachers",
    "cache_weights",
    "labels",
    "row_filter",
    "max_rows",
    "partition",
    "order",
    "order_seed",
    "batch_size",
    "epochs",
    "num_steps",
    "device",
)
"""Settings that decide which rows a step reads: cells that agree on them share one pass."""

LONGEST_NAME = 120
"""Bytes of a folder name that every file system takes, with room for a suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Its folder: ``KEY=VALUE`` of the settings that vary, joined by commas."""

    settings: dict[str, Any]
    """The settings that vary."""

    config: TrainConfig

    @property
    def shared(self) -> str:
        """Equal for cells that can be trained from one pass over the cache."""
        values = self.config.to_dict()
        return json.dumps([values[key] for key in SHARED_KEYS])


def read_grid(path: Path | str) -> list[Cell]:
    """The cells of a TOML file with tables ``base`` and ``grid``; UsageError says what is wrong."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error
    unknown = set(document) - {"base", "grid"}
    if unknown:
        raise UsageError(f"{path} has {sorted(unknown)}; it may hold [base] and [grid] only.")
    return cells(document.get("base", {}), document.get("grid", {}))


def cells(base: Mapping[str, Any], grid: Mapping[str, Any]) -> list[Cell]:
    """Every combination of the grid's lists over the base settings, each a valid TrainConfig."""
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise UsageError(f"grid.{key}={values!r} must be a list of at least one value.")
        if key in base:
            raise UsageError(f"{key!r} is in both base and grid.")
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        config = TrainConfig.from_dict({**base, **settings})
        found.append(Cell(name=_name(settings), settings=settings, config=config))
    if len({cell.name for cell in found}) != len(found):
        raise UsageError("the grid lists a value twice.")
    return found


def _name(settings: Mapping[str, Any]) -> str:
    name = ",".join(f"{key}={_spelt(value)}" for key, value in settings.items()) or "only"
    name = "".join(c if c.isascii() and (c.isalnum() or c in "=,.-_+") else "~" for c in name)
    if len(name) <= LONGEST_NAME and "~" not in name:
        return name
    # Shortened or rewritten names could meet; the digest keeps them apart.
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{digest}"


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
