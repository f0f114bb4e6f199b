"""The cells of a sweep, as its TOML file spells them.

seeds = [0, 1, 2]               every cell once for each
preset = "methods"              those of presets.py

[base]                          settings of all cells
num_steps = 2000

[grid]                          a cell for every combination
normalizer = ["phi-s", "none"]

[[grids]]                       further grids
lr = [1e-3, 3e-3]

[[cells]]                       single ones; they may have a name, and win over the base
name = "long"
num_steps = 9000
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phistill.errors import UsageError, did_you_mean

from ..config import TrainConfig
from .presets import preset

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
    """Its folder: the name it was given, or ``KEY=VALUE`` of its settings, joined by commas."""

    setting: str
    """What a table calls it: everything but the seed."""

    settings: dict[str, Any]
    """What it has beside the base."""

    config: TrainConfig

    @property
    def shared(self) -> str:
        """Equal for cells that can be trained from one pass over the cache."""
        values = self.config.to_dict()
        return json.dumps([values[key] for key in SHARED_KEYS])


LISTS, TABLES, OTHERS = ("grids", "cells"), ("base", "grid"), ("preset", "seeds")
"""What a file may hold: [[lists of tables]], [tables] and plain values."""


def read_grid(
    path: Path | str | None,
    *,
    preset: str = "",
    seeds: Sequence[int] = (),
    loggers: Sequence[str] = (),
) -> list[Cell]:
    """The cells of a TOML file; UsageError says what is wrong.

    ``preset`` and ``seeds`` win over those of the file, which may then be left out, ``loggers``
    over those of its base.
    """
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}.") from error
        _refuse_mistakes(path, document)
    if preset:
        document["preset"] = preset
    if seeds:
        document["seeds"] = list(seeds)
    if loggers:
        document["base"] = {**document.get("base", {}), "loggers": list(loggers)}
    return study(document)


def study(document: Mapping[str, Any]) -> list[Cell]:
    """The cells that a file's tables describe, each with a valid TrainConfig.

    Cells that come to the same settings are one.
    """
    base, seeds = document.get("base", {}), document.get("seeds", [])
    grids = [*([document["grid"]] if "grid" in document else []), *document.get("grids", [])]
    single = [dict(cell) for cell in document.get("cells", [])]
    single += [dict(cell) for cell in preset(document["preset"])] if "preset" in document else []
    if not (grids or single):
        grids = [{}]
    found = [cell for grid in grids for cell in cells(base, _with_seeds(grid, seeds))]
    for settings in single:
        name = settings.pop("name", "")
        for seed in [None] if "seed" in settings else [*seeds] or [None]:
            own = settings if seed is None else {**settings, "seed": seed}
            found.append(_cell(own, TrainConfig.from_dict({**base, **own}), name))
    by_config: dict[str, Cell] = {}
    for cell in found:
        by_config.setdefault(json.dumps(cell.config.to_dict()), cell)
    unlike = list(by_config.values())
    for number, cell in enumerate(unlike):
        if any(other.name == cell.name for other in unlike[:number]):
            raise UsageError(f"two cells are called {cell.name!r}. Give them names that differ.")
    return unlike


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
        found.append(_cell(settings, TrainConfig.from_dict({**base, **settings})))
    if len({cell.name for cell in found}) != len(found):
        raise UsageError("the grid lists a value twice.")
    return found


def _refuse_mistakes(path: Path | str, document: Mapping[str, Any]) -> None:
    known = (*TABLES, *LISTS, *OTHERS)
    for key, value in document.items():
        is_list = isinstance(value, list) and all(isinstance(one, dict) for one in value)
        if key in TABLES and not isinstance(value, dict):
            further = " Several grids are [[grids]], single cells [[cells]]." if is_list else ""
            raise UsageError(f"{path}: write [{key}], with single brackets.{further}")
        if key in LISTS and not is_list:
            raise UsageError(f"{path}: write [[{key}]], with double brackets, once for each.")
        if key in TrainConfig.__struct_fields__:
            raise UsageError(f"{path}: {key!r} is a setting; write it below [base] or [grid].")
        if key not in known:
            raise UsageError(
                f"{path} has {key!r}; it may hold [base] and [grid], [[grids]], [[cells]], preset "
                f"and seeds only.{did_you_mean(key, known)}"
            )
    seeds = document.get("seeds", [])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UsageError(f"{path}: seeds={seeds!r} must be a list of whole numbers.")
    if not isinstance(document.get("preset", ""), str):
        raise UsageError(f"{path}: preset={document['preset']!r} must be a text.")
    for cell in document.get("cells", []):
        if not isinstance(cell.get("name", ""), str):
            raise UsageError(f"{path}: the name {cell['name']!r} of a cell must be a text.")


def _with_seeds(grid: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """The grid once for each seed, unless it lists seeds of its own."""
    return {**grid, **({"seed": list(seeds)} if seeds and "seed" not in grid else {})}


def _cell(settings: dict[str, Any], config: TrainConfig, name: str = "") -> Cell:
    varying = {key: value for key, value in settings.items() if key != "seed"}
    spelt = [f"{key}={_plain(value)}" for key, value in varying.items()]
    folder = _folder_name(settings)
    if name:
        seed = f",seed={settings['seed']}" if "seed" in settings else ""
        folder = _safe(f"{name}{seed}", {"name": name, **settings})
    return Cell(
        name=folder,
        setting=name or ", ".join(spelt) or "all",
        settings=settings,
        config=config,
    )


def _folder_name(settings: Mapping[str, Any]) -> str:
    spelt = ",".join(f"{key}={_spelt(value)}" for key, value in settings.items()) or "only"
    return _safe(spelt, settings)


def _safe(name: str, settings: Mapping[str, Any]) -> str:
    """A name that every file system takes and none takes for another's."""
    wanted = "".join(c if c.isascii() and (c.isalnum() or c in "=,.-_+") else "~" for c in name)
    # Shortened or rewritten names could meet, and on many systems those that differ in case only;
    # the digest keeps them apart.
    is_plain = wanted == name == name.lower() and not name.startswith(".")
    if len(wanted) <= LONGEST_NAME and is_plain:
        return wanted
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:8]
    return f"{wanted.lstrip('.')[:LONGEST_NAME]}-{digest}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
