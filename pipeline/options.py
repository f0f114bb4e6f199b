"""How an extraction goes about it; nothing here is part of what the cache is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phistill.errors import UsageError

from .decode.shards import Mode
from .workers import WorkerShards

AUTO = "auto"
OPTIONS = {
    "rows_per_forward": "--batch-size",
    "num_workers": "--workers",
    "time_limit_s": "--time-limit",
}
"""Fields whose option on the command line has another name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractOptions:
    """How a run goes about it; nothing here is part of what the cache is."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    autocast: str | None = None
    """Arithmetic of a new teacher: float32, bfloat16, float16; default bfloat16 on CUDA."""
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
    window_tars: int = 8
    """Tars from afar whose images are mixed in a new cache; twice as many are on the disk."""
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
                raise UsageError(f"{OPTIONS[name]} {value:g} must be positive.")
        if self.scheduler is not None and self.worker is not None:
            raise UsageError(
                "scheduler and worker exclude each other: the cluster shares out shards."
            )
        if self.repair and self.worker is not None and self.worker.count > 1:
            raise UsageError(
                "repair needs the whole cache, because it reads all of it first: run it in one "
                "process without a worker's number, or delete what `phistill verify` names."
            )
