"""Reading a run's caches from a disk near by: copied there first, and only once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.cache.upkeep.copying import CopyProgress
from phistill.cache.upkeep.stage import Selection, stage

from .. import checkpoint
from ..config import TrainConfig
from ..targets import chosen_teachers


def stage_caches(
    cache: Cache | JoinedCaches,
    folder: Path | str,
    config: TrainConfig,
    *,
    progress: CopyProgress | None = None,
) -> Cache | JoinedCaches:
    """The same cache or caches, with equal row numbers, read from below ``folder``.

    Each lies in ``folder/NAME-DIGEST``, the digest of where it came from. What is there already is
    kept; of several processes of one machine one copies and the others wait.
    """
    teachers = chosen_teachers(cache, config.teachers)
    if isinstance(cache, JoinedCaches):
        cache.require_alike(teachers)
        return JoinedCaches([_staged(one, folder, teachers, progress) for one in cache.caches])
    return _staged(cache, folder, teachers, progress)


def _staged(
    cache: Cache, folder: Path | str, teachers: tuple[str, ...], progress: CopyProgress | None
) -> Cache:
    digest = hashlib.sha256(cache.files.absolute.encode()).hexdigest()[:8]
    dest = Path(folder) / f"{cache.files.name}-{digest}"
    return stage(cache, dest, Selection(teachers=teachers), wait=True, progress=progress).cache


def is_finished(run: Path) -> bool:
    """Whether the run folder has its last checkpoint, so that nothing will be read."""
    try:
        num_steps = json.loads((run / "config.json").read_bytes())["num_steps"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return num_steps in checkpoint.steps(run)
