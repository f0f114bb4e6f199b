"""Reading a run's caches from a disk near by: copied there first, and only once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.cache.upkeep.copying import CopyProgress
from phistill.cache.upkeep.stage import Selection, stage
from phistill.stats.fit.reuse import reuse_statistics

from ..config import TrainConfig
from ..targets import chosen_teachers


def stage_caches(
    caches: JoinedCaches,
    folder: Path | str,
    config: TrainConfig,
    *,
    progress: CopyProgress | None = None,
) -> JoinedCaches:
    """The same caches, with equal row numbers, read from below ``folder``.

    Each lies in ``folder/NAME-DIGEST``, the digest of where it came from. What is there already is
    kept; of several processes of one machine one copies and the others wait.
    """
    teachers = chosen_teachers(caches, config.teachers)
    caches.require_alike(teachers)

    def staged(cache: Cache) -> Cache:
        digest = hashlib.sha256(cache.files.absolute.encode()).hexdigest()[:8]
        copy = Path(folder) / f"{cache.files.name}-{digest}"
        report = stage(
            cache,
            copy,
            Selection(teachers=teachers),
            wait=True,
            progress=progress,
            reuse=reuse_statistics,
        )
        return report.cache

    return JoinedCaches([staged(cache) for cache in caches.caches])
