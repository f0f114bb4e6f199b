"""What a run is: every choice that decides the student, declared once.

The command line, TOML files, checkpoints and the page of settings read this declaration.
It imports no torch, so that a command can build a config before anything heavy is loaded.
"""

from __future__ import annotations

import functools
import json
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

from phistill.errors import UsageError, did_you_mean, nearest, suggestion

from .setting_words import LARGEST, spelt

PLUGIN = "package.module:function"
PATCH_LOSSES = ("mse", "cosine", "hybrid-mse", "hybrid-smooth-l1")
SUMMARY_LOSSES = ("cosine", "balanced-angle", "mse", "none")
HEADS = ("mlp", "linear")
LOGGERS = ("tensorboard", "wandb", "mlflow")

SAFE_KEYS = frozenset(
    {
        "device",
        "compile",
        "accumulate",
        "deterministic",
        "loader_workers",
        "read_ahead",
        "memory_bytes",
        "log_every",
        "gradient_norm_every",
        "validate_every",
        "validate_rows",
        "checkpoint_minutes",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
        "loggers",
    }
)
"""Fields a resumed run may change: they move bytes or write logs, they do not decide the weights.
``device``, ``compile``, ``accumulate`` and ``deterministic`` keep the meaning of the run but not
its last bits."""


def _or_plugin(names: tuple[str, ...], description: str = "") -> Meta:
    """A text that is one of ``names`` or names a plug-in."""
    pattern = f"^({'|'.join(names)}|[^:]+:[^:]+.*)$"
    return Meta(pattern=pattern, description=description, extra={"choices": (*names, PLUGIN)})


Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Side = Annotated[int, Meta(ge=1, le=2**14)]


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run. 0 or ``auto``, where a field says so, is resolved and recorded."""

    # fmt: off
    teachers: Annotated[tuple[str, ...], Meta(
        description="Teachers of the cache to distill; empty takes all of them.")] = ()
    normalizer: Annotated[str, Meta(
        description="Normalizer of the patch targets: none, global, standardize, isotropic, phi-s, "
        "pca, zca, hca (`phistill.stats.METHODS`).")] = "phi-s"
    normalizer_options: Annotated[dict[str, Any], Meta(
        description="Options of the normalizer's fit.")] = {}
    labels: Annotated[tuple[str, ...], Meta(
        description="Keep only rows with one of these labels; empty keeps all.")] = ()
    cache_weights: Annotated[tuple[Positive, ...], Meta(
        description="Of a run on several caches: weight of each, in their order; the rows drawn "
        "from a cache are its weight's share. Empty: every training image counts the "
        "same, as in one large cache. A cache that is not to be drawn from is left out.")] = ()
    row_filter: Annotated[str, Meta(
        description=f"`{PLUGIN}` taking the cache's index table and returning a boolean array, one "
        "per line of the table; empty keeps all.")] = ""
    max_rows: Annotated[int, Meta(ge=0,
        description="Keep this many of a cache's eligible training rows (they are in a seeded "
        "random order, so the first ones are a fair sample); 0 keeps all.")] = 0
    partition: Annotated[Literal["all", "one"], Meta(
        description="`all`: every image is learnt from every teacher. `one`: each image from one "
        "of them, chosen by a hash of its number (the setting of the paper's ablations).")] = "all"
    order: Annotated[Literal["full", "block", "none"], Meta(
        description="The order of an epoch's rows: `full` (a permutation), `block` (shards at "
        "random, rows mixed within a window of them: reads whole shards), `none` (as "
        "they lie in the cache).")] = "full"
    order_seed: Annotated[int, Meta(ge=0, le=2**63 - 1,
        description="Seed of the row order. Runs that share it see the same rows at the same steps."
    )] = 0

    student: Annotated[str, Meta(
        description=f"A timm model with a token grid, or `{PLUGIN}` returning one."
    )] = "vit_small_patch16_224"
    student_options: Annotated[dict[str, Any], Meta(
        description="Keyword arguments of the student (`patch_size`, `depth`, `embed_dim`, ...)."
    )] = {}
    pretrained: Annotated[bool, Meta(
        description="Start from timm's weights instead of a seeded random initialisation.")] = False
    image_size: Annotated[int, Meta(ge=0, le=2**14,
        description="Side in pixels of what the student sees; 0 takes the cache's pixels as they "
        "are.")] = 0
    extra_image_sizes: Annotated[tuple[Side, ...], Meta(
        description="Further sides; with any, each step draws one of all sizes (a function of seed "
        "and step).")] = ()
    pixel_mean: Annotated[tuple[Finite, Finite, Finite], Meta(
        description="Subtracted from the student's input, in units of 0 to 1.")] = (0.5, 0.5, 0.5)
    pixel_std: Annotated[tuple[Positive, Positive, Positive], Meta(
        description="Divides the student's input.")] = (0.5, 0.5, 0.5)
    summary_from: Annotated[Literal["auto", "class", "class-per-teacher", "mean"], Meta(
        description="What the summary heads read: `class` (the class token), `class-per-teacher` "
        "(a prefix token for each teacher with a summary), `mean` of the patch tokens; "
        "`auto` takes `class` where the student has one, else `mean`.")] = "auto"
    head: Annotated[str, _or_plugin(HEADS,
        f"`mlp`: the MLP v2 of PHI-S; `linear`; or `{PLUGIN}`.")] = "mlp"
    head_width: Annotated[int, Meta(ge=1, le=2**20,
        description="Hidden width of an `mlp` head (1520 in the paper).")] = 1520
    grid_side: Annotated[Literal["student", "teacher", "smaller"], Meta(
        description="Which side moves when grids differ: the student's prediction to the teacher's "
        "grid, the teacher's target to the student's, or both to the smaller one (per "
        "axis).")] = "student"
    grid_interpolation: Annotated[Literal["bilinear", "bicubic", "nearest"], Meta(
        description="How it moves: bilinear, bicubic or nearest.")] = "bilinear"
    grid_align_corners: Annotated[bool, Meta(
        description="Whether corner token centres (true) or image edges (false) stay in place."
    )] = False

    patch_loss: Annotated[str, _or_plugin(PATCH_LOSSES,
        f"mse, cosine, hybrid-mse, hybrid-smooth-l1, or `{PLUGIN}`, taking prediction "
        "and target (b, t, c) and returning one value per row (b,).")] = "mse"
    summary_loss: Annotated[str, _or_plugin(SUMMARY_LOSSES,
        f"cosine, balanced-angle, mse (on normalised summaries), none, or `{PLUGIN}`, as "
        "of `patch_loss` with t = 1.")] = "cosine"
    patch_loss_options: Annotated[dict[str, Any], Meta(
        description="Keyword arguments of a patch loss that is a plug-in.")] = {}
    summary_loss_options: Annotated[dict[str, Any], Meta(
        description="The same of a summary loss.")] = {}
    hybrid_beta: Annotated[float, Meta(ge=0, le=1,
        description="Share of the cosine in the hybrid losses (AM-RADIO uses 0.9).")] = 0.9
    balance: Annotated[Literal["equal", "fixed", "adaloss"], Meta(
        description="`equal`: every term weighted 1. `fixed`: by `weights`. `adaloss`: each term "
        "divided by its running mean.")] = "equal"
    weights: Annotated[dict[str, NotNegative], Meta(
        description="Weight by `TEACHER` or `TEACHER/KIND` (which wins), 1 where absent; `fixed` "
        "only.")] = {}
    adaloss_decay: Annotated[Decay, Meta(
        description="Decay of the running mean, per step; its start-up bias is divided out as in "
        "Adam.")] = 0.99

    brightness: Annotated[float, Meta(ge=0, le=1,
        description="Photometric change on the student's input only: a factor in [1 - b, 1 + b] "
        "per image.")] = 0.0
    contrast: Annotated[float, Meta(ge=0, le=1,
        description="The same around the image's mean grey.")] = 0.0
    saturation: Annotated[float, Meta(ge=0, le=1,
        description="The same around each pixel's grey.")] = 0.0
    noise: Annotated[float, Meta(ge=0, le=1,
        description="Standard deviation of Gaussian noise added to the pixels, in units of 0 to 1."
    )] = 0.0
    crop_min: Annotated[float, Meta(ge=0.1, le=1,
        description="Below 1: the student sees a patch-aligned square crop whose side is between "
        "this share of the image and all of it, with the loss on the tokens both sides "
        "see.")] = 1.0
    crop_resize: Annotated[bool, Meta(
        description="Enlarge the crop back to the full input size (the student at another "
        "resolution).")] = False

    epochs: Annotated[NotNegative, Meta(
        description="Passes over the training rows; used when `num_steps` is 0.")] = 20.0
    num_steps: Annotated[int, Meta(ge=0,
        description="Optimizer steps; 0 derives them from `epochs`.")] = 0
    batch_size: Annotated[int, Meta(ge=1, le=2**24,
        description="Rows per optimizer step, summed over ranks and accumulated parts.")] = 128
    accumulate: Annotated[int, Meta(ge=0, le=2**16,
        description="Parts the batch of one rank is cut into; gradients are added over them. 0: as "
        "many as free memory asks for, which is then said.")] = 0
    optimizer: Annotated[str, Meta(
        description="adamw, lamb (the paper's), sgd, lion, ...: any of timm.optim's names."
    )] = "adamw"
    optimizer_options: Annotated[dict[str, Any], Meta(
        description="Further arguments of the optimizer (`momentum`, ...).")] = {}
    lr: Annotated[float, Meta(ge=0, le=1e3, description="Highest learning rate.")] = 1e-3
    min_lr: Annotated[float, Meta(ge=0, le=1e3,
        description="Learning rate the cosine ends at.")] = 1e-6
    warmup: Annotated[float, Meta(ge=0, le=1,
        description="Share of the steps over which the learning rate rises linearly.")] = 0.05
    weight_decay: Annotated[float, Meta(ge=0, le=1e3,
        description="Weight decay of matrices; vectors (biases, norms) are not decayed.")] = 0.02
    betas: Annotated[tuple[Decay, ...], Meta(
        description="Decays of the optimizer's moments; empty takes the optimizer's own (0.9 and "
        "0.999 for adamw and lamb).")] = ()
    clip_norm: Annotated[NotNegative, Meta(
        description="Largest gradient norm over all parameters; 0 clips nothing.")] = 1.0
    ema_decay: Annotated[Decay, Meta(
        description="Decay per step of an average of the weights, which evaluation and export use; "
        "0: none.")] = 0.0
    precision: Annotated[Literal["auto", "float32", "bf16"], Meta(
        description="float32, bf16 (autocast), or auto: bf16 where the device has matrix units for "
        "it.")] = "auto"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1,
        description="Seed of the weights, of dropout and of the student's own augmentation.")] = 0
    device: Annotated[str, Meta(
        description="auto takes CUDA or Apple's GPU when there is one; or cpu, cuda, cuda:1, ..."
    )] = "auto"
    compile: Annotated[bool, Meta(description="Run the student through `torch.compile`.")] = False
    deterministic: Annotated[bool, Meta(
        description="Take only kernels that give the same bits every time: a run on a GPU can then "
        "be repeated and resumed bit for bit, and is slower. On a CPU it always can.")] = False

    loader_workers: Annotated[int, Meta(ge=0, le=256,
        description="Threads that read ahead; 0 reads in the loop itself. The rows are the same "
        "for any number.")] = 1
    read_ahead: Annotated[int, Meta(ge=1, le=1024, description="Batches kept ready.")] = 4
    memory_bytes: Annotated[int, Meta(ge=0,
        description="Rows that fit into this many bytes are read once and stay in memory, their "
        "targets normalised once where they fit as float32 too; 0 always streams.")] = 2 * 2**30

    log_every: Annotated[int, Meta(ge=1, description="Steps between lines of metrics.")] = 10
    gradient_norm_every: Annotated[int, Meta(ge=0,
        description="Steps between measurements of each term's gradient at the student's last "
        "shared features; 0 never.")] = 0
    validate_every: Annotated[int, Meta(ge=0,
        description="Steps between evaluations on held-out rows; 0 only at the end (when rows are "
        "held out).")] = 0
    validate_rows: Annotated[int, Meta(ge=1,
        description="Held-out rows used for those (the final evaluation of the `evaluate` verb "
        "uses all).")] = 512
    best_by: Annotated[Literal["error", "knn"], Meta(
        description="What the best checkpoint is chosen by, among those validated: the lowest mean "
        "error, or the highest kNN accuracy, which wants labels.")] = "error"
    checkpoint_minutes: Annotated[NotNegative, Meta(
        description="Minutes between checkpoints, beside those of the last step and of every best "
        "validation so far; 0: no others.")] = 10.0
    checkpoint_every: Annotated[int, Meta(ge=0,
        description="Further checkpoints after every so many steps, the same steps on any machine; "
        "0: none.")] = 0
    keep_checkpoints: Annotated[int, Meta(ge=1,
        description="Latest checkpoints kept, beside the best.")] = 2
    tensorboard: Annotated[bool, Meta(
        description="Unasked, TensorBoard events where the package is installed.")] = True
    loggers: Annotated[tuple[Annotated[str, _or_plugin(LOGGERS)], ...], Meta(
        description="tensorboard, wandb, mlflow (extras of these names), own ones.")] = ()
    # fmt: on

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            value = getattr(self, name)
            try:
                checked = msgspec.convert(value, hint)
            except msgspec.ValidationError:
                wanted = spelt(hint)
                near = did_you_mean(str(value), wanted.replace(",", "").split())
                raise UsageError(f"{name}={value!r} must be {wanted}.{near}") from None
            msgspec.structs.force_setattr(self, name, checked)
        if self.weights and self.balance != "fixed":
            raise UsageError(f"weights={self.weights} needs balance='fixed', not {self.balance!r}.")
        for name in ("patch_loss", "summary_loss"):
            options = getattr(self, f"{name}_options")
            if options and ":" not in getattr(self, name):
                raise UsageError(
                    f"{name}_options={options} are for a plug-in ({PLUGIN}), but "
                    f"{name}={getattr(self, name)!r}."
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back to an equal object."""
        return msgspec.json.decode(msgspec.json.encode(self), type=dict[str, Any])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from a dictionary; unknown keys and wrong values are a UsageError."""
        for key in values:
            if key not in cls.__struct_fields__:
                near = suggestion(nearest_settings(key))
                raise UsageError(f"{key!r} is not a setting of a training run.{near}")
        return cls(**values)


SECTIONS = {
    "teachers": "what is learnt from",
    "student": "the student",
    "patch_loss": "the objective",
    "brightness": "what the student sees",
    "epochs": "optimisation",
    "loader_workers": "reading",
    "log_every": "seeing and keeping",
}
"""By the name of its first setting."""


class Setting(NamedTuple):
    """One field of TrainConfig, for a person."""

    section: str
    name: str
    default: str
    """As TOML spells it."""

    meaning: str


def settings() -> list[Setting]:
    """Every setting in the order of its declaration."""
    defaults = TrainConfig().to_dict()
    found, section = [], ""
    for field in _declared():
        section = SECTIONS.get(field.name, section)
        meaning = field.type.extra_json_schema["description"]  # type: ignore[attr-defined]
        found.append(Setting(section, field.name, json.dumps(defaults[field.name]), meaning))
    return found


def settings_text() -> str:
    """For a terminal: a line per setting, its meaning below."""
    lines: list[str] = []
    section = ""
    for one in settings():
        if one.section != section:
            section = one.section
            lines += ["", section]
        lines += [f"  {one.name} = {one.default}", f"      {one.meaning}"]
    return "\n".join(lines[1:])


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig, include_extras=True)


@functools.cache
def _declared() -> tuple[inspect.Field, ...]:
    declared = inspect.type_info(TrainConfig)
    assert isinstance(declared, inspect.StructType)
    return declared.fields


def nearest_settings(key: str) -> list[str]:
    """Settings spelt nearly so; or else those whose meaning has all of several words of ``key``."""
    words = set(re.findall("[a-z]+", key.lower()))
    meant = [one.name for one in settings() if words <= set(re.findall("[a-z]+", one.meaning))]
    near = nearest(key, TrainConfig.__struct_fields__)
    return near or (meant[:2] if len(words) > 1 else [])
