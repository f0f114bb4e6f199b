"""What a cache remembers of the places that its images came from: one entry per listing.

listed = used + rejected + known before + left out: every file is accounted for.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.storage.files import Files

from .source import USED, ImageSource, few_kinds


def listing(source: ImageSource, num_new: int, num_known: int = 0) -> dict[str, Any]:
    """An entry of ``CacheInfo.sources``: what the source was read as, with which options, the
    images that came into the cache, those that it had before, and by kind what was left out."""
    used = {name: value for name, value in asdict(source.options).items() if name in USED and value}
    return {
        **used,
        "kind": source.kind,
        "num_images": num_new,
        "num_known": num_known,
        "left_out": few_kinds(source.left_out),
    }


def last_listing(cache: Cache | Files) -> dict[str, Any]:
    """What the cache's images were last listed with; nothing where there is no cache yet."""
    if not isinstance(cache, Cache):
        if not store.exists(cache):
            return {}
        cache = store.open(cache)
    return cache.info.sources[-1] if cache.info.sources else {}
