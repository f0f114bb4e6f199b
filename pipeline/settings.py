"""What decides a cache besides images and teachers; checked once, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phistill.cache import CacheInfo
from phistill.cache.format.compression import compressor
from phistill.errors import CacheMismatch, UsageError

from .decode.rgb import DecodeRules
from .decode.views import View

TARGET_SHARD_BYTES = 128 * 2**20
"""A shard of the largest array has at most this many bytes, and more than half of it."""

OPTIONS = {"views": "--view", "decode": "--background and --min-side"}
"""Fields whose option on the command line has another name."""

MIN_SHARDS = 24
"""A small cache is still cut into some dozens of shards: the unit of resume and of progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """Settings of a new cache. On an existing one, None means what the cache has."""

    seed: int | None = None
    """Of the row permutation and the split; default 0."""
    holdout: float | None = None
    """Fraction of images held out, by hash; default 0.05. A split in the source wins."""
    pixel_size: int | None = None
    """Side of the student's stored pixels; default 224, 0 stores none."""
    views: tuple[View, ...] | None = None
    """Default: one, ``resize``."""
    decode: DecodeRules | None = None
    shard_rows: int | None = None
    """Rows per shard, a power of two; default from the largest array's row."""

    compression: str | None = None
    """zstd:LEVEL, gzip:LEVEL or blosc:CNAME:LEVEL; default none."""

    def __post_init__(self) -> None:
        self.new_cache(num_rows=1, max_row_bytes=1)  # refuses what no cache can have
        if self.compression:
            compressor(self.compression)

    def new_cache(self, *, num_rows: int, max_row_bytes: int) -> CacheInfo:
        """The settings of a new cache with every default filled in."""
        return CacheInfo(
            seed=0 if self.seed is None else self.seed,
            holdout=0.05 if self.holdout is None else self.holdout,
            pixel_size=224 if self.pixel_size is None else self.pixel_size,
            views=tuple(view.to_dict() for view in self.views or (View(),)),
            decode=(self.decode or DecodeRules()).to_dict(),
            compression=self.compression or "",
            shard_rows=self.shard_rows
            or default_shard_rows(num_rows=num_rows, row_bytes=max_row_bytes),
        )

    def check(self, info: CacheInfo, where: str) -> None:
        """Raise CacheMismatch naming the first setting that differs from an existing cache's."""
        asked: dict[str, Any] = {
            "seed": self.seed,
            "holdout": self.holdout,
            "pixel_size": self.pixel_size,
            "views": None if self.views is None else tuple(view.to_dict() for view in self.views),
            "decode": None if self.decode is None else self.decode.to_dict(),
            "shard_rows": self.shard_rows,
            "compression": self.compression,
        }
        for field, value in asked.items():
            found = getattr(info, field)
            if value is not None and value != found:
                if field == "views":
                    found, value = (", ".join(map(_view_text, views)) for views in (found, value))
                option = OPTIONS.get(field, f"--{field.replace('_', '-')}")
                more = "add further views with --add-views, " if field == "views" else ""
                raise CacheMismatch(
                    f"{where} was made with {field}={found!r}, but this run asks for {value!r}. "
                    f"Leave {option} out, {more}or extract into another cache."
                )


def _view_text(record: dict[str, Any]) -> str:
    return str(View.from_dict(record))


def default_shard_rows(*, num_rows: int, row_bytes: int) -> int:
    """Largest power of two within TARGET_SHARD_BYTES that leaves MIN_SHARDS shards, at least 8."""
    if num_rows < 1 or row_bytes < 1:
        raise UsageError(f"num_rows={num_rows} and row_bytes={row_bytes} must be positive.")
    limit = max(1, min(TARGET_SHARD_BYTES // row_bytes, max(8, num_rows // MIN_SHARDS), 2**16))
    return int(2 ** (limit.bit_length() - 1))
