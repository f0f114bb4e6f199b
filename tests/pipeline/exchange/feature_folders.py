"""Folders of features that another program might have written, and ids to look for in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from phistill.cache import Cache


def write(folder: Path, num: int = 40, **arrays: Any) -> Path:
    """Arrays, NAME__KIND=, and ids.txt with as many ids."""
    folder.mkdir(exist_ok=True)
    (folder / "ids.txt").write_text("".join(f"img/{row:03d}.png\n" for row in range(num)))
    for name, values in arrays.items():
        np.save(folder / f"{name.replace('__', '.')}.npy", values)
    return folder


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def ids_of(cache: Cache, rows: Any) -> list[str]:
    """The ids of some rows."""
    index = cache.index()
    lines = np.searchsorted(index["row"].to_numpy(), rows)
    return [index["id"][line].as_py() for line in lines.tolist()]
