"""What an extraction was asked for, checked before any work."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.format import names
from phistill.cache.storage.files import Files
from phistill.cache.storage.open_files import open_files
from phistill.cache.storage.publish import TEMPORARY_SUFFIX
from phistill.compute.devices import choose_device
from phistill.errors import UsageError

from .add_views import missing_views
from .images.annotations import hold_out, label
from .images.listings import last_listing
from .images.local_files import in_a_thread
from .images.open_source import open_source
from .images.source import ImageSource, listing_text
from .settings import CacheSettings, ExtractOptions
from .teachers.spec import TeacherSpec

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be extracted; neither images nor teachers were looked at yet."""

    source: ImageSource
    files: Files
    specs: tuple[TeacherSpec, ...]
    settings: CacheSettings
    options: ExtractOptions
    device: torch.device

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that were asked for; none means those of the cache."""
        return [spec.name for spec in self.specs]

    @property
    def must_list(self) -> bool:
        """Whether the images have to be listed: where rows are added, and not when a run goes on,
        because the index says all that is needed."""
        return self.options.append or self.options.add_views or not store.exists(self.files)

    @cached_property
    def records(self) -> pa.Table:
        """The images of the source, some of them held out by name."""
        records = in_a_thread(self.source.records)
        log.info(listing_text(self.source, records.num_rows))
        if self.options.holdout_file is not None:
            records = hold_out(records, self.options.holdout_file)
        if self.options.labels_file is not None:
            records, missing = label(records, self.options.labels_file)
            if missing:
                log.info(
                    f"{missing:,} of {records.num_rows:,} images have no label in "
                    f"{self.options.labels_file}."
                )
        return records

    def open(self) -> Cache | None:
        """The cache, or None when it is not made yet; CacheMismatch when it has other settings."""
        if not store.exists(self.files):
            return None
        cache = store.open(self.files)
        names.refuse_one_folder((*cache.teachers, *self.teachers))
        settings = self.settings
        if self.options.add_views:
            missing_views(cache, settings.views)
            settings = dataclasses.replace(settings, views=None)
        settings.check(cache.info, cache.location)
        return cache


def make_request(
    images: str | Path | ImageSource,
    cache_path: str | Path | Files,
    teachers: Sequence[str] = (),
    settings: CacheSettings | None = None,
    options: ExtractOptions | None = None,
) -> Request:
    """What ``extract`` was asked for, checked before any work."""
    options = options or ExtractOptions()
    specs = tuple(TeacherSpec.parse(text) for text in teachers)
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise UsageError(f"two teachers are named {name!r}; name one with NAME=SOURCE:MODEL.")
    names.refuse_one_folder(spec.name for spec in specs)
    if options.codes is not None:
        if not specs:
            raise UsageError("--bits and --lost are for teachers that are added: name --teacher.")
        options.codes.check_names(spec.name for spec in specs)
    files = open_files(cache_path)
    if not store.exists(files):
        if not specs:
            raise UsageError("a new cache needs at least one --teacher, for example demo:clip.")
        keep_out_of_the_way(files)
    return Request(
        source=open_source(images, options.source, last_listing(files))
        if isinstance(images, str | Path)
        else images,
        files=files,
        specs=specs,
        settings=settings or CacheSettings(),
        options=options,
        device=choose_device(options.device, options.local_rank),
    )


def keep_out_of_the_way(files: Files) -> None:
    """A folder with other things in it does not become a cache."""
    # Another worker may be making the cache at this moment, or was killed while it did.
    root = {names.ROOT, names.ROOT + TEMPORARY_SUFFIX}
    ours = {"index", "teachers", "pixels", "commits", *names.WRITERS, *root}
    if others := set(files.names_in("")) - ours:
        raise UsageError(
            f"{files.location} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )
