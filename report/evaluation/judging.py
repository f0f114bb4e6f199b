"""A run judged with everything at hand: labels, words, captions, label maps; on a cache, or on
images that no cache holds, which its teachers look at now."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill import cache as store
from phistill.cache import Cache, Split
from phistill.cache.joined import JoinedCaches, open_caches
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.views import View
from phistill.train import Verdict, load_run, mask_scores, verdict
from phistill.train.checkpoint import caches_of_run
from phistill.train.evaluation.fidelity import EvalProgress

from .label_maps import label_maps
from .text_towers import scores_by_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """What is asked of a run, and what it is asked with."""

    run: Path
    which: str = "latest"
    split: Split = "heldout"
    device: str = "auto"
    text_classes: Path | None = None
    """A class per line: its label and, after a tab, its words."""
    templates: tuple[str, ...] = ()
    captions: Path | None = None
    """An image's id, a tab and its caption per line."""
    masks: str | None = None
    """See ``label_maps``."""

    def of_cache(
        self, caches: Sequence[str] = (), progress: EvalProgress | None = None
    ) -> tuple[Verdict, tuple[str, ...]]:
        """On caches, by default the run's own; and lines on what could not be asked."""
        chosen = open_caches(list(caches) or caches_of_run(load_run(self.run).facts))
        return self._judge(chosen, self.split, None, progress)

    def of_images(
        self, images: str, progress: EvalProgress | None = None
    ) -> tuple[Verdict, tuple[str, ...]]:
        """On images that were never cached; the run's own caches teach kNN and probe."""
        with cache_of_unseen(self.run, images, which=self.which, device=self.device) as made:
            taught = teaching_caches(self.run, self.which)
            return self._judge(open_caches(made), "all", taught, progress)

    def _judge(
        self,
        caches: JoinedCaches,
        split: Split,
        taught: list[str] | None,
        progress: EvalProgress | None,
    ) -> tuple[Verdict, tuple[str, ...]]:
        how: dict[str, Any] = {"which": self.which, "split": split, "device": self.device}
        found = verdict(self.run, caches, **how, taught=taught, progress=progress)
        notes: tuple[str, ...] = ()
        asked = self.text_classes or self.captions or self.templates
        if asked or _num_labels(caches) > 1:
            scores, notes = scores_by_text(
                self.run,
                caches,
                classes=self.text_classes,
                templates=self.templates,
                captions=self.captions,
                **how,
            )
            if asked and not scores:
                refusal = "--text-classes, --text-template and --captions want a text tower; no "
                raise UsageError(" ".join([f"{refusal}teacher of this run has one.", *notes]))
            found = found.with_tasks(scores)
        if self.masks is not None:
            with label_maps(self.masks, caches.caches[0]) as maps:
                found = found.with_tasks(mask_scores(self.run, maps, caches, **how))
        return found, notes


def _num_labels(caches: JoinedCaches) -> int:
    indexes = [cache.index() for cache in caches.caches]
    columns = [index["label"] for index in indexes if "label" in index.column_names]
    return len({label for column in columns for label in column.drop_null().unique().to_pylist()})


@contextmanager
def cache_of_unseen(
    run: Path, images: str, *, which: str = "latest", device: str = "auto"
) -> Iterator[Cache]:
    """A temporary cache of the run's teachers over ``images``, for judging the run on.

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
        yield made


def teaching_caches(run: Path, which: str = "latest") -> list[str] | None:
    """The run's own caches, whose labelled training rows teach kNN and probe; None where one is not
    there any more."""
    paths = [str(entry["path"]) for entry in load_run(run, which=which).facts["caches"]]
    return paths if all(store.exists(path) for path in paths) else None


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
                stacklevel=4,
            )


def _images(cache: Cache) -> NDArray[Any]:
    """What tells the images of its usable rows apart: their sha256."""
    return np.unique(cache.facts().images[cache.rows(split="all")])
