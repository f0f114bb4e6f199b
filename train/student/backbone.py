"""The student: a timm backbone with a token grid, and one head per target.

It maps pixels to predictions in each target's *normalised* space; ``predict.py`` takes them back.

b rows, H W pixels, h w token grid, d width of the backbone, p prefix tokens.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from phistill import plugins
from phistill.compute.seeds import seeded
from phistill.errors import UsageError

from ..config import TrainConfig
from ..targets import SUMMARY, Target
from .heads import make_head

RowsByTeacher = Mapping[str, Int[Tensor, " n"]]
"""Rows of the batch that each teacher's targets are wanted for."""


class StudentOutput(NamedTuple):
    """What one forward gives."""

    predictions: dict[str, Tensor]
    """Normalised, by target key: patches (b, h, w, c) on the student's grid, summary (b, c)."""

    shared: tuple[Tensor, ...]
    """The last features all heads read: patch tokens (b, h, w, d), then the prefix (b, p, d)."""


class Backbone(nn.Module):
    """Any timm model that keeps positions, with one output form."""

    def __init__(self, net: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.options = net, options
        """``options`` build the net again: the config's, and what was added (img_size, ...)."""
        self.gives_maps = False
        """Whether the net's features are a map, as a convolutional one's; known after a forward."""
        self.num_prefix = int(getattr(net, "num_prefix_tokens", 0))
        self.width = int(net.num_features)  # type: ignore[arg-type]

    def forward(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b p d"]]:
        """Patch tokens and prefix tokens."""
        x = self.net.forward_features(images)  # type: ignore[operator]
        self.gives_maps = x.ndim == 4
        if x.ndim == 4:
            if getattr(self.net, "output_fmt", "NCHW") == "NCHW":
                x = x.permute(0, 2, 3, 1)
            return x, x.new_zeros(x.shape[0], 0, x.shape[-1])
        h, w = self.grid(images.shape[-2], images.shape[-1])
        prefix, patches = x[:, : self.num_prefix], x[:, self.num_prefix :]
        return patches.reshape(x.shape[0], h, w, x.shape[-1]), prefix

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns for an input of that many pixels (token models only)."""
        embed: Any = self.net.patch_embed
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size((height, width))
            return rows, columns
        patch = embed.patch_size
        return height // int(patch[0]), width // int(patch[1])


class Student(nn.Module):
    """Backbone and heads. ``state_dict`` holds weights only."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: TrainConfig, targets: Sequence[Target], image_size: int) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.image_size = image_size
        summaries = [target for target in targets if target.kind == SUMMARY]
        self.backbone = Backbone(*_make_net(config, image_size, num_summaries=len(summaries)))
        self.summary_from = _summary_source(config, self.backbone, len(summaries))
        self.summary_slot = {target.key: i for i, target in enumerate(summaries)}
        self.heads = nn.ModuleDict(
            {
                module_name(target): make_head(
                    config.head, self.backbone.width, config.head_width, target.width
                )
                for target in targets
            }
        )
        for name, values in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
            buffer = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.grid = self._probe()
        self.patch_pixels = image_size // self.grid[0]
        if config.crop_min < 1 and self.grid[0] != self.grid[1]:
            raise UsageError(
                f"crop_min={config.crop_min} cuts square windows of whole patches, but the "
                f"student's grid is {self.grid[0]} x {self.grid[1]}. Take crop_min=1 or square "
                "patches."
            )

    def forward(
        self, images: Float[Tensor, "b 3 H W"], rows_of: RowsByTeacher | None = None
    ) -> StudentOutput:
        """Predictions for images in units of 0 to 1.

        With ``rows_of`` each head sees only its teacher's rows, possibly none of them.
        """
        tokens, prefix = self.backbone((images - self.pixel_mean) / self.pixel_std)
        predictions: dict[str, Tensor] = {}
        for target in self.targets:
            features = tokens if target.kind != SUMMARY else self._summary(target, tokens, prefix)
            if rows_of is not None:
                features = features[rows_of[target.teacher]]
            predictions[target.key] = self.head(target)(features)
        return StudentOutput(predictions, (tokens, prefix))

    def head(self, target: Target) -> nn.Module:
        """The head of one target."""
        return self.heads[module_name(target)]

    def no_weight_decay(self) -> set[str]:
        """Parameters that the backbone wants left alone, as position and class tokens."""
        exempt = getattr(self.backbone.net, "no_weight_decay", set)  # timm's name for it
        return {f"backbone.net.{name}" for name in exempt()}

    def unfuse_attention(self) -> None:
        """Take attention apart into two products and a softmax.

        On CPUs the fused bfloat16 kernel's backward pass is the slowest part of a small ViT: half
        of the step's time.
        """
        for module in self.backbone.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]

    def _summary(self, target: Target, tokens: Tensor, prefix: Tensor) -> Tensor:
        if self.summary_from == "mean":
            return tokens.mean((1, 2))
        slot = self.summary_slot[target.key] if self.summary_from == "class-per-teacher" else 0
        return prefix[:, slot]

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        """The grid at the configured size; UsageError when the model keeps no positions."""
        was_training = self.training
        self.eval()
        try:
            tokens, _ = self.backbone(torch.zeros(1, 3, self.image_size, self.image_size))
        except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
            raise UsageError(
                f"the student cannot take {self.image_size} x {self.image_size} pixels or has no "
                f"token grid ({error}). Give student_options such as patch_size, or image_size."
            ) from error
        self.train(was_training)
        if tokens.shape[-1] != self.backbone.width:
            raise UsageError(
                f"the student's features have shape {tuple(tokens.shape)}, but it names "
                f"{self.backbone.width} channels; it does not keep a token grid."
            )
        self._warn_of_unseen_pixels()
        return int(tokens.shape[1]), int(tokens.shape[2])

    def _warn_of_unseen_pixels(self) -> None:
        """A ViT drops what is left over at the right and at the bottom."""
        embed = getattr(self.backbone.net, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if not isinstance(patch, tuple) or getattr(embed, "dynamic_img_pad", False):
            return
        side = math.lcm(*map(int, patch))
        if any(self.image_size % int(along) for along in patch):
            left = max(self.image_size % int(along) for along in patch)
            better = self.image_size // side * side
            warnings.warn(
                f"patches of {max(patch)} pixels leave {left} of {self.image_size} pixels at the "
                "right or at the bottom unseen, and the student's grid is a little off the "
                f"teachers'. Take image_size={better or side}.",
                stacklevel=2,
            )


def build_student(config: TrainConfig, targets: Sequence[Target], image_size: int) -> Student:
    """The student at its first step: the same weights for the same config, on any device."""
    with seeded(config.seed):
        return Student(config, targets, image_size)


def module_name(target: Target) -> str:
    """Of a target's head. Module names hold no dots; teachers' may."""
    return target.key.replace(".", "%2E")


def _make_net(
    config: TrainConfig, image_size: int, *, num_summaries: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The net and the options it was built with."""
    options = dict(config.student_options)
    if ":" in config.student:
        net = plugins.load(config.student, "student")(image_size=image_size, **options)
        if not isinstance(net, nn.Module) or not hasattr(net, "forward_features"):
            raise UsageError(
                f"student={config.student!r} must return a torch module with forward_features and "
                "num_features, as timm's models have."
            )
        return net, options
    name = config.student.split(".")[0]
    if not timm.is_model(name):
        raise UsageError(f"student={config.student!r} is not a timm model.{_close_to(name)}")
    fixed = timm.get_pretrained_cfg(config.student)
    if fixed is not None and fixed.fixed_input_size:
        options.setdefault("img_size", image_size)
        if config.extra_image_sizes or (config.crop_min < 1 and not config.crop_resize):
            options.setdefault("dynamic_img_size", True)
    if config.summary_from == "class-per-teacher":
        # timm's prefix is the class token followed by register tokens; each serves one teacher.
        options.setdefault("reg_tokens", max(0, num_summaries - 1))
    try:
        net = timm.create_model(
            config.student, pretrained=config.pretrained, num_classes=0, **options
        )
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"student={config.student!r} cannot be built with {options} ({error})."
        ) from error
    except OSError as error:
        if not config.pretrained:
            raise
        raise UsageError(
            f"pretrained=true: the weights of {config.student!r} are neither on this machine nor "
            f"to be had from the hub ({error}). Without a network copy the hub's cache "
            "(~/.cache/huggingface, or HF_HOME) to this machine, or take pretrained=false."
        ) from error
    return net, options


def _close_to(name: str) -> str:
    """The timm models that hold the name, or are spelt nearly so."""
    close = timm.list_models(f"*{name}*")[:5]
    close = close or difflib.get_close_matches(name, timm.list_models(), n=5)
    if not close:
        return " See timm.list_models(), or give package.module:function."
    return f" Did you mean {' or '.join(close)}?"


def _summary_source(config: TrainConfig, backbone: Backbone, num_summaries: int) -> str:
    wanted = config.summary_from
    if wanted == "auto":
        return "class" if backbone.num_prefix else "mean"
    needed = {"class": 1, "class-per-teacher": num_summaries, "mean": 0}[wanted]
    if backbone.num_prefix < needed:
        raise UsageError(
            f"summary_from={wanted!r} needs {needed} prefix tokens, the student has "
            f"{backbone.num_prefix}. Take summary_from='mean'."
        )
    return wanted
