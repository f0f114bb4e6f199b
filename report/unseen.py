"""A run judged on images that no cache holds: its teachers look at them now."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill import cache as store
from phistill.cache import Cache
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.views import View
from phistill.train import Verdict, load_run, verdict
from phistill.train.evaluation.fidelity import EvalProgress


def verdict_on_images(
    run: Path,
    images: str,
    *,
    which: str = "latest",
    device: str = "auto",
    progress: EvalProgress | None = None,
) -> Verdict:
    """Extract the run's teachers over ``images`` into a temporary cache and judge the run on it.

    The constant remains the mean of the run's own training rows. Images that the run's cache has
    too are said, where that cache is still there. UsageError for imported teachers, which nobody
    here can run.
    """
    student = load_run(run, which=which)
    first = student.facts["caches"][0]
    specs = student.facts["specs"]
    if missing := [name for name, spec in specs.items() if not spec]:
        raise UsageError(
            f"{', '.join(missing)}: imported features have no teacher that could look at other "
            "images. Import theirs too, and give that cache with --cache."
        )
    settings = CacheSettings(
        seed=0,
        holdout=0.0,
        pixel_size=int(first["pixel_size"]),
        views=(View("center-crop" if student.preparation.view == "center-crop" else "resize"),),
        decode=DecodeRules.from_dict(first["decode"]) if first["decode"] else None,
    )
    with tempfile.TemporaryDirectory(prefix="phistill-") as folder:
        made = extract(
            images,
            Path(folder) / "unseen.cache",
            [f"{name}={spec}" for name, spec in specs.items()],
            settings=settings,
            options=ExtractOptions(device=device),
        ).cache
        _say_seen(made, [str(entry["path"]) for entry in student.facts["caches"]])
        return verdict(run, made, which=which, split="all", device=device, progress=progress)


def _say_seen(made: Cache, caches: list[str]) -> None:
    """A warning with the number of images that the run's caches hold, by their bytes."""
    shown = _images(made)
    for path in caches:
        if not store.exists(path):
            continue
        known = int(np.isin(shown, _images(store.open(path))).sum())
        if known:
            warnings.warn(
                f"{known:,} of {len(shown):,} images are in {path} too: the student may have "
                "learnt from them.",
                stacklevel=3,
            )


def _images(cache: Cache) -> NDArray[Any]:
    """What tells the images of its usable rows apart: their sha256."""
    return np.unique(cache.facts().images[cache.rows(split="all")])
