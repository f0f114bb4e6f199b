"""What a caller can set: what decides a cache besides images and teachers, and how a run goes.

Both are checked once, before any work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from phistill.cache import CacheInfo
from phistill.cache.format.compression import compressor
from phistill.cache.format.info import FILE_BYTES
from phistill.errors import CacheMismatch, UsageError
from phistill.stats.compacting import MIN_PILOT, PILOT_ROWS, Bits, check_bits

from .decode.rgb import DecodeRules
from .decode.shards import Mode
from .decode.views import View
from .images.source import DEFAULTS, SourceOptions

MAX_DEFAULT_ROWS = 2**12
UNIT_PIXELS = {"cpu": 2**25, "cuda": 2**30, "mps": 2**27}
"""A shard is the unit of commit: what a killed run computes again. By default its inputs for the
teacher that takes the largest have this many pixels at most, by device, which is a minute or a few
of work: 1,024 rows of 1024 x 1024 on a GPU, 32 on a CPU (docs/scale.md). A rule and
no measurement, so that every machine with such a device chooses the same."""

AUTO = "auto"
CACHE_OPTIONS = {"views": "--view", "decode": "--background and --min-side"}
RUN_OPTIONS = {
    "rows_per_forward": "--batch-size",
    "num_workers": "--workers",
    "time_limit_s": "--time-limit",
}
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
    """Rows per shard, the unit of commit, a power of two; default by the teachers' inputs."""
    file_bytes: int | None = None
    """Values in one file of an array at most; a shard of large rows has several. Default 64 MiB."""

    compression: str | None = None
    """zstd:LEVEL, gzip:LEVEL or blosc:CNAME:LEVEL; default none."""

    def __post_init__(self) -> None:
        self.new_cache(num_rows=1)  # refuses what no cache can have
        if self.compression:
            compressor(self.compression)

    def new_cache(self, *, num_rows: int, input_pixels: int = 0, device: str = "cpu") -> CacheInfo:
        """The settings of a new cache with every default filled in; ``input_pixels`` has the
        largest input of a teacher that runs on ``device``, 0 where none does."""
        return CacheInfo(
            seed=0 if self.seed is None else self.seed,
            holdout=0.05 if self.holdout is None else self.holdout,
            pixel_size=224 if self.pixel_size is None else self.pixel_size,
            views=tuple(view.to_dict() for view in self.views or (View(),)),
            decode=(self.decode or DecodeRules()).to_dict(),
            compression=self.compression or "",
            shard_rows=self.shard_rows
            or default_shard_rows(num_rows=num_rows, input_pixels=input_pixels, device=device),
            file_bytes=FILE_BYTES if self.file_bytes is None else self.file_bytes,
        )

    def check(self, info: CacheInfo, where: str) -> None:
        """Raise CacheMismatch naming the first setting that differs from an existing cache's."""
        wanted: dict[str, Any] = {
            "seed": self.seed,
            "holdout": self.holdout,
            "pixel_size": self.pixel_size,
            "views": None if self.views is None else tuple(view.to_dict() for view in self.views),
            "decode": None if self.decode is None else self.decode.to_dict(),
            "shard_rows": self.shard_rows,
            "file_bytes": self.file_bytes,
            "compression": self.compression,
        }
        for field, value in wanted.items():
            stored = getattr(info, field)
            if value is not None and value != stored:
                if field == "views":
                    stored, value = (", ".join(map(_view_text, views)) for views in (stored, value))
                option = CACHE_OPTIONS.get(field, f"--{field.replace('_', '-')}")
                more = "add further views with --add-views, " if field == "views" else ""
                raise CacheMismatch(
                    f"{where} was made with {field}={stored!r}, but this run asks for {value!r}. "
                    f"Leave {option} out, {more}or extract into another cache."
                )


def _view_text(record: dict[str, Any]) -> str:
    return str(View.from_dict(record))


def default_shard_rows(*, num_rows: int, input_pixels: int, device: str) -> int:
    """The largest power of two of rows within UNIT_PIXELS, of which MIN_SHARDS shards can be made,
    at least 8 where the pixels allow it and at most MAX_DEFAULT_ROWS."""
    by_work = UNIT_PIXELS.get(device, UNIT_PIXELS["cpu"]) // max(input_pixels, 1)
    limit = max(1, min(by_work, max(8, num_rows // MIN_SHARDS), MAX_DEFAULT_ROWS))
    return int(2 ** (limit.bit_length() - 1))


@dataclass(frozen=True, slots=True)
class WorkerShards:
    """Worker ``index`` of ``count``, from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"worker {self.index}/{self.count}: workers are counted from 0, so of {self.count} "
                f"the last is {self.count - 1}/{self.count}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """``r/R``.

        Worker r of R takes the shards whose number leaves the remainder r when divided by R: a
        restarted worker, and one of a cache that has grown, finds the same shards again.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise UsageError(f"worker {text!r} is not r/R: 0/4, 1/4, 2/4 and 3/4 are four workers.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, shards: Iterable[int]) -> list[int]:
        """Those of ``shards`` that are this worker's."""
        return [shard for shard in shards if shard % self.count == self.index]

    def split(self, index: int, count: int) -> WorkerShards:
        """Part ``index`` of ``count`` of this worker: one that is several processes."""
        return WorkerShards(self.index + self.count * index, self.count * count)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSettings:
    """How the patches of new teachers are coded; teachers that the cache has keep their codecs."""

    bits: Bits | None = None
    """Bits per channel and token: of all, or by teacher, the others being stored as they are."""
    lost_share: float | None = None
    """In the place of bits: the share of the variance that may be lost, of all."""
    pilot_images: int = PILOT_ROWS
    """Training images that a codec is fitted to, at most."""

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.lost_share is None):
            raise UsageError("give either --bits or --lost, which chooses the bits.")
        if self.lost_share is not None and not 0 < self.lost_share < 1:
            raise UsageError(
                f"--lost {self.lost_share:g} must lie between 0 and 1, as 2% or 0.02 does."
            )
        if self.pilot_images < MIN_PILOT:
            raise UsageError(f"--pilot {self.pilot_images} must be at least {MIN_PILOT} images.")
        named = self.bits if isinstance(self.bits, Mapping) else {"every teacher": self.bits}
        for name, bits in named.items():
            if bits is not None:
                check_bits(name, bits)

    def bits_of(self, teacher: str) -> float | None:
        """None where no bits are asked for."""
        return self.bits.get(teacher) if isinstance(self.bits, Mapping) else self.bits

    def check_names(self, teachers: Iterable[str]) -> None:
        """UsageError for bits of a teacher that is not extracted."""
        names = list(teachers)
        for name in self.bits if isinstance(self.bits, Mapping) else ():
            if name not in names:
                raise UsageError(
                    f"bits are given for {name!r}, which is none of the teachers to extract: "
                    f"{', '.join(names)}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractOptions:
    """How a run goes about it; nothing here is part of what the cache is."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    autocast: str | None = None
    """Arithmetic of a new teacher: float32, bfloat16, float16; bfloat16 on GPUs that
    have it unless said, else float32."""
    rows_per_forward: int | Literal["auto"] | None = None
    """Rows in one forward pass of a new teacher, stored with it; ``auto`` measures which number is
    fastest here, None follows a rule."""
    compiled: bool = False
    """Run the teachers through torch.compile. Other kernels round differently: recorded with every
    shard, and shards that were made without are compared first."""
    channels_last: bool = False
    """Hand images to the teachers in that memory format; recorded and compared in the same way."""
    num_workers: int | None = None
    """Decoding workers; default one per core."""
    decode: Mode = "auto"
    """Decode in ``threads`` or in ``processes``, which a bad decoder cannot take down; ``auto``
    takes processes for long runs."""
    max_reject_frac: float | None = None
    """The run stops when more than this fraction of all rows is rejected; None: one percent, but
    never for ten rejects or fewer."""
    time_limit_s: float | None = None
    """The run stops after the shard in which this is exceeded."""
    append: bool = False
    """Add images of the source that the cache does not have, as a new segment."""
    add_views: bool = False
    """Add the settings' views that the cache does not have, as a new segment."""
    holdout_file: Path | None = None
    """Ids that are held out, one per line; images that are new to the cache follow it."""
    labels_file: Path | None = None
    """Which image, folder or class number is which class; for images that are new to the cache."""
    codes: CodeSettings | None = None
    """Store the patches of new teachers as codes."""
    fit: bool = False
    """Take the statistics in passing, while features are in memory: once every shard is there they
    are those of ``fit_stats``, and no token was read again."""
    source: SourceOptions = DEFAULTS
    """What of the images is taken; what nothing is said of is as the cache remembers it."""
    repair: bool = False
    """Check every byte first and extract damaged shards again."""
    worker: WorkerShards | None = None
    """Extract only these shards: other processes, here or on other machines, take the rest."""
    scheduler: str | None = None
    """Address of a dask.distributed scheduler, or the ``.json`` file that it wrote: its workers do
    the work. They must see images and cache under the same paths."""
    local_rank: int | None = None
    """Number of this process on its machine: it takes that CUDA device."""

    @property
    def kernels(self) -> dict[str, bool]:
        """What belongs to the environment of a shard besides versions and the device."""
        return {"compiled": self.compiled, "channels_last": self.channels_last}

    def __post_init__(self) -> None:
        if self.max_reject_frac is not None and not 0.0 <= self.max_reject_frac <= 1.0:
            raise UsageError(f"--max-reject-frac {self.max_reject_frac} must be in [0, 1].")
        for name in ("rows_per_forward", "num_workers", "time_limit_s"):
            value: Any = getattr(self, name)
            if value not in (None, AUTO) and value <= 0:
                raise UsageError(f"{RUN_OPTIONS[name]} {value:g} must be positive.")
        if self.scheduler is not None and self.worker is not None:
            raise UsageError(
                "scheduler and worker exclude each other: the cluster shares out shards."
            )
        if self.repair and self.worker is not None and self.worker.count > 1:
            raise UsageError(
                "repair needs the whole cache, because it reads all of it first: run it in one "
                "process without a worker's number, or delete what `phistill verify` names."
            )
