"""What a run is: every choice that decides the student, in one frozen object.

The same dictionary goes into the run folder, each checkpoint and the log. This module imports no
torch, so that a command can build a configuration before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phistill.errors import UsageError

from .settings_values import UNBOUNDED, check_choice, coerce, spell_range

PATCH_LOSSES = ("mse", "cosine", "hybrid-mse", "hybrid-smooth-l1")
SUMMARY_LOSSES = ("cosine", "balanced-angle", "mse", "none")
BALANCES = ("equal", "fixed", "adaloss")
HEADS = ("mlp", "linear")
SUMMARY_SOURCES = ("auto", "class", "class-per-teacher", "mean")
GRID_SIDES = ("student", "teacher", "smaller")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
PARTITIONS = ("all", "one")
OPTIMIZERS = ("adamw", "lamb")
PRECISIONS = ("auto", "float32", "bf16")

SAFE_KEYS = frozenset(
    {
        "device",
        "compile",
        "loader_workers",
        "read_ahead",
        "memory_bytes",
        "log_every",
        "gradient_norm_every",
        "validate_every",
        "validate_rows",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
        "wandb",
    }
)
"""Fields a resumed run may change: they move bytes or write logs, they do not decide the weights.
``device`` and ``compile`` keep the meaning of the run but not its last bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. 0 or ``auto``, where a field says so, is resolved and recorded."""

    # ---- what is learnt from -------------------------------------------------------------------
    teachers: tuple[str, ...] = ()
    """Teachers of the cache to distill; empty takes all of them."""

    normalizer: str = "phi-s"
    """Normalizer of the patch targets: none, global, standardize, isotropic, phi-s, pca, zca, hca
    (``phistill.stats.METHODS``)."""

    normalizer_options: dict[str, Any] = field(default_factory=dict)
    """Options of the normalizer's fit."""

    labels: tuple[str, ...] = ()
    """Keep only rows with one of these labels; empty keeps all."""

    cache_weights: tuple[float, ...] = ()
    """Of a run on several caches: weight of each, in their order; the rows drawn from a cache are
    its weight's share. Empty: every training image counts the same, as in one large cache."""

    row_filter: str = ""
    """``package.module:function`` taking the cache's index table and returning a boolean array, one
    per line of the table; empty keeps all."""

    max_rows: int = 0
    """Keep this many of a cache's eligible training rows (they are in a seeded random order, so the
    first ones are a fair sample); 0 keeps all."""

    partition: str = "all"
    """``all``: every image is learnt from every teacher. ``one``: each image from one of them,
    chosen by a hash of its id (the setting of the paper's ablations)."""

    order: str = "full"
    """The order of an epoch's rows: ``full`` (a permutation), ``block`` (shards at random, rows
    mixed within a window of them: reads whole shards), ``none`` (as they lie in the cache)."""

    order_seed: int = 0
    """Seed of the row order. Runs that share it see the same rows at the same steps."""

    # ---- the student ---------------------------------------------------------------------------
    student: str = "vit_small_patch16_224"
    """A timm model with a token grid, or ``package.module:function`` returning one."""

    student_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the student (``patch_size``, ``depth``, ``embed_dim``, ...)."""

    pretrained: bool = False
    """Start from timm's weights instead of a seeded random initialisation."""

    image_size: int = 0
    """Side in pixels of what the student sees; 0 takes the cache's pixels as they are."""

    extra_image_sizes: tuple[int, ...] = ()
    """Further sides; with any, each step draws one of all sizes (a function of seed and step)."""

    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted from the student's input, in units of 0 to 1."""

    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Divides the student's input."""

    summary_from: str = "auto"
    """What the summary heads read: ``class`` (the class token), ``class-per-teacher`` (a prefix
    token for each teacher with a summary), ``mean`` of the patch tokens; ``auto`` takes ``class``
    where the student has one, else ``mean``."""

    head: str = "mlp"
    """``mlp``: the MLP v2 of PHI-S; ``linear``; or ``package.module:function``."""

    head_width: int = 1520
    """Hidden width of an ``mlp`` head (1520 in the paper)."""

    grid_side: str = "student"
    """Which side moves when grids differ: the student's prediction to the teacher's grid, the
    teacher's target to the student's, or both to the smaller one (per axis)."""

    grid_interpolation: str = "bilinear"
    """How it moves: bilinear, bicubic or nearest."""

    grid_align_corners: bool = False
    """Whether corner token centres (True) or image edges (False) stay in place."""

    # ---- the objective -------------------------------------------------------------------------
    patch_loss: str = "mse"
    """mse, cosine, hybrid-mse, hybrid-smooth-l1, or ``package.module:function``."""

    summary_loss: str = "cosine"
    """cosine, balanced-angle, mse (on normalised summaries), none, or a ``module:function``."""

    hybrid_beta: float = 0.9
    """Share of the cosine in the hybrid losses (AM-RADIO uses 0.9)."""

    balance: str = "equal"
    """``equal``: every term weighted 1. ``fixed``: by ``weights``. ``adaloss``: each term divided
    by its running mean."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight by ``TEACHER`` or ``TEACHER/KIND`` (which wins), 1 where absent; ``fixed`` only."""

    adaloss_decay: float = 0.99
    """Decay of the running mean, per step; its start-up bias is divided out as in Adam."""

    # ---- what the student sees -----------------------------------------------------------------
    brightness: float = 0.0
    """Photometric change on the student's input only: a factor in [1 - b, 1 + b] per image."""

    contrast: float = 0.0
    """The same around the image's mean grey."""

    saturation: float = 0.0
    """The same around each pixel's grey."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the pixels, in units of 0 to 1."""

    crop_min: float = 1.0
    """Below 1: the student sees a patch-aligned square crop whose side is between this share of the
    image and all of it, with the loss on the tokens both sides see."""

    crop_resize: bool = False
    """Enlarge the crop back to the full input size (the student at another resolution)."""

    mirror: bool = False
    """Refused: a mirrored grid is not the feature of the mirrored image. Store a flipped view."""

    # ---- optimisation --------------------------------------------------------------------------
    epochs: float = 20.0
    """Passes over the training rows; used when ``num_steps`` is 0."""

    num_steps: int = 0
    """Optimizer steps; 0 derives them from ``epochs``."""

    batch_size: int = 128
    """Rows per optimizer step, summed over ranks and accumulated parts."""

    accumulate: int = 1
    """Parts the batch of one rank is cut into; gradients are added over them."""

    optimizer: str = "adamw"
    """adamw or lamb (the paper's; timm's implementation)."""

    lr: float = 1e-3
    """Highest learning rate."""

    min_lr: float = 1e-6
    """Learning rate the cosine ends at."""

    warmup: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""

    weight_decay: float = 0.02
    """Decoupled weight decay of matrices; vectors (biases, norms) are not decayed."""

    betas: tuple[float, ...] = (0.9, 0.999)
    """Decays of the optimizer's moments."""

    clip_norm: float = 1.0
    """Largest gradient norm over all parameters; 0 clips nothing."""

    ema_decay: float = 0.0
    """Decay per step of an average of the weights, which evaluation and export use; 0: none."""

    precision: str = "auto"
    """float32, bf16 (autocast), or auto: bf16 where the device has matrix units for it."""

    seed: int = 0
    """Seed of the weights, of dropout and of the student's own augmentation."""

    device: str = "auto"
    """auto takes CUDA when there is one; or cpu, cuda, cuda:1, ..."""

    compile: bool = False
    """Run the student through ``torch.compile``."""

    # ---- reading -------------------------------------------------------------------------------
    loader_workers: int = 1
    """Threads that read ahead; 0 reads in the loop itself. The rows are the same for any number."""

    read_ahead: int = 4
    """Batches kept ready."""

    memory_bytes: int = 2 * 2**30
    """Rows that fit into this many bytes are read once and stay in memory; 0 always streams."""

    # ---- seeing and keeping --------------------------------------------------------------------
    log_every: int = 10
    """Steps between lines of metrics."""

    gradient_norm_every: int = 0
    """Steps between measurements of each term's gradient at the student's last shared features;
    0 never."""

    validate_every: int = 0
    """Steps between evaluations on held-out rows; 0 only at the end (when rows are held out)."""

    validate_rows: int = 512
    """Held-out rows used for those (the final evaluation of the ``evaluate`` verb uses all)."""

    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always writes one. 0 writes only the last."""

    keep_checkpoints: int = 2
    """Latest checkpoints kept, beside the best."""

    tensorboard: bool = True
    """Write TensorBoard events too, where the package is installed."""

    wandb: bool = False
    """Log to Weights & Biases too; refused where the package is not installed."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known, plugin=name in _PLUGGABLE)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"{name}={value} must be {spell_range(low, high)}.")
        if self.mirror:
            raise UsageError(
                "mirror=True is refused: a mirrored cached grid is not the feature of the mirrored "
                "image. Extract a second view with a flip instead; the trainer alternates views."
            )
        if self.weights and self.balance != "fixed":
            raise UsageError(f"weights={self.weights} needs balance='fixed', not {self.balance!r}.")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.cache_weights):
            raise UsageError(
                f"cache_weights={list(self.cache_weights)} must be above 0. "
                "A cache that is not to be drawn from is left out."
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate} "
                f"({self.batch_size} % {self.accumulate} = {self.batch_size % self.accumulate})."
            )
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise UsageError(
                f"pixel_mean={self.pixel_mean} and pixel_std={self.pixel_std} must be three "
                "numbers each, the second above 0."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas={self.betas} must be two numbers in [0, 1).")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back to an equal object."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from a dictionary; unknown keys and wrong types are a UsageError."""
        hints = typing.get_type_hints(cls)
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in fields:
                close = difflib.get_close_matches(key, fields, n=3)
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                raise UsageError(f"{key!r} is not a setting of a training run.{hint}")
        return cls(**{key: coerce(key, value, hints[key]) for key, value in values.items()})


_CHOICES: dict[str, tuple[str, ...]] = {
    "partition": PARTITIONS,
    "summary_from": SUMMARY_SOURCES,
    "head": HEADS,
    "grid_side": GRID_SIDES,
    "grid_interpolation": INTERPOLATIONS,
    "patch_loss": PATCH_LOSSES,
    "summary_loss": SUMMARY_LOSSES,
    "balance": BALANCES,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
}
_PLUGGABLE = frozenset({"head", "patch_loss", "summary_loss"})
_RANGES: dict[str, tuple[float, float]] = {
    "max_rows": (0, UNBOUNDED),
    "image_size": (0, 2**14),
    "head_width": (1, 2**20),
    "hybrid_beta": (0, 1),
    "adaloss_decay": (0, 1 - 1e-9),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "noise": (0, 1),
    "crop_min": (0.1, 1),
    "epochs": (0, 1e9),
    "num_steps": (0, UNBOUNDED),
    "batch_size": (1, 2**24),
    "accumulate": (1, 2**16),
    "lr": (0, 1e3),
    "min_lr": (0, 1e3),
    "warmup": (0, 1),
    "weight_decay": (0, 1e3),
    "clip_norm": (0, UNBOUNDED),
    "ema_decay": (0, 1 - 1e-9),
    "seed": (0, 2**63 - 1),
    "order_seed": (0, 2**63 - 1),
    "loader_workers": (0, 256),
    "read_ahead": (1, 1024),
    "memory_bytes": (0, UNBOUNDED),
    "log_every": (1, UNBOUNDED),
    "gradient_norm_every": (0, UNBOUNDED),
    "validate_every": (0, UNBOUNDED),
    "validate_rows": (1, UNBOUNDED),
    "checkpoint_every": (0, UNBOUNDED),
    "keep_checkpoints": (1, UNBOUNDED),
}
