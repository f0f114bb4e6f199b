"""Teachers from timm: any backbone with a token grid or a feature map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from ..cache.errors import TeacherError, UsageError
from .contract import Features, Preprocessing
from .teachers import take_options
from .weights import boolean, integer, load_weights, read_weights, seeded, weights_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIONS = ("size", "layer", "norm", "summary", "registers", "weights", "random", "revision")
SUMMARIES = ("head", "mean", "none")


class TimmTeacher:
    """A timm model as a teacher.

    ``layer`` counts blocks from the end (-1 is the last). ``norm`` applies the final norm to
    the patches. ``summary`` is ``head`` (what the model pools before its classifier), ``mean`` (of
    the patches) or ``none``. ``registers`` keeps the register tokens too.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        identity: Mapping[str, Any],
        *,
        layer: int = -1,
        norm: bool = True,
        summary: str = "head",
        registers: bool = False,
    ) -> None:
        if summary not in SUMMARIES:
            raise UsageError(
                f"summary={summary!r} is not known; choose one of {', '.join(SUMMARIES)}."
            )
        self.model = model.eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._identity = dict(identity)
        self._layer, self._norm, self._summary = layer, norm, summary
        self._registers = registers

    def identity(self) -> Mapping[str, Any]:
        return {
            **self._identity,
            "weights_sha256": weights_sha256(self.model),
            "layer": self._layer,
            "norm": self._norm,
            "summary": self._summary,
        }

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        patches, registers, final = tokens(self.model, images, layer=self._layer, norm=self._norm)
        if self._summary == "none":
            summary = None
        elif self._summary == "mean":
            summary = patches.flatten(1, 2).mean(1)
        else:
            model: Any = self.model
            features = model.forward_features(images) if final is None else final
            summary = model.forward_head(features, pre_logits=True)
        return Features(patches, summary, registers if self._registers else None)


def tokens(
    model: nn.Module, images: Float[torch.Tensor, "b 3 h w"], *, layer: int = -1, norm: bool = True
) -> tuple[
    Float[torch.Tensor, "b h w c"],
    Float[torch.Tensor, "b g c"] | None,
    torch.Tensor | None,
]:
    """Patches (b, h, w, c), registers (b, g, c) or None, and the model's last features.

    The last features are None when an intermediate layer was asked for. Class and register tokens
    come first in timm's sequences: class, registers, patches.
    """
    net: Any = model
    if layer == -1 and norm:
        final = net.forward_features(images)
        if final.ndim == 3:
            return (*_split(net, final, images), final)
        return _map(net, final), None, final
    depth = len(net.blocks) if hasattr(net, "blocks") else None
    index = layer if depth is None else depth + layer
    if depth is not None and not 0 <= index < depth:
        raise UsageError(f"layer={layer} does not exist; the model has {depth} blocks, -1 is last.")
    extra = {"return_prefix_tokens": True} if net_has_prefix(net) else {}
    (found,) = net.forward_intermediates(
        images, indices=[index], norm=norm, output_fmt="NCHW", intermediates_only=True, **extra
    )
    if isinstance(found, tuple):
        found, prefix = found
        first = net.num_prefix_tokens - _num_registers(net)
        registers = prefix[:, first:] if _num_registers(net) else None
    else:
        registers = None
    return found.permute(0, 2, 3, 1), registers, None


def net_has_prefix(net: Any) -> bool:
    """Whether the model puts class or register tokens before the patches."""
    return bool(getattr(net, "num_prefix_tokens", 0))


def _num_registers(net: Any) -> int:
    return int(getattr(net, "num_reg_tokens", 0) or 0)


def _split(
    net: Any, sequence: torch.Tensor, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    num_prefix = int(getattr(net, "num_prefix_tokens", 0))
    patches = sequence[:, num_prefix:]
    patch_h, patch_w = net.patch_embed.patch_size
    grid = (images.shape[2] // patch_h, images.shape[3] // patch_w)
    if grid[0] * grid[1] != patches.shape[1]:
        raise TeacherError(
            f"{type(net).__name__} gives {patches.shape[1]} patch tokens for a grid of "
            f"{grid[0]} x {grid[1]}; its tokens are not a plain grid."
        )
    registers = None
    if num_registers := _num_registers(net):
        registers = sequence[:, num_prefix - num_registers : num_prefix]
    return patches.unflatten(1, grid), registers


def _map(net: Any, features: torch.Tensor) -> torch.Tensor:
    """A feature map as (b, h, w, c), whichever order the model uses."""
    if features.ndim != 4:
        raise TeacherError(f"{type(net).__name__} gives {features.ndim}-d features, wanted a map.")
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        return features
    return features.permute(0, 2, 3, 1)


def build(model: str, options: dict[str, str]) -> TimmTeacher:
    """``timm:MODEL``: MODEL as timm names it (``hf-hub:`` and ``local-dir:`` forms too)."""
    import timm

    take_options(options, OPTIONS, f"timm:{model}")
    seed, size = integer(options, "random"), integer(options, "size")
    kwargs: dict[str, Any] = {"num_classes": 0}
    if "revision" in options:
        model = f"{model}@{options['revision']}"
    if size is not None:
        kwargs["img_size"] = size
    local = Path(options["weights"]) if "weights" in options else None
    if seed is not None and local is not None:
        raise UsageError("options weights and random exclude each other; give one.")
    try:
        with seeded(seed or 0):
            net = timm.create_model(model, pretrained=seed is None and local is None, **kwargs)
    except RuntimeError as error:
        if "Unknown model" in str(error):
            raise _unknown(model) from error
        raise
    if local is not None:
        load_weights(net, read_weights(local), str(local))
    return TimmTeacher(
        net,
        preprocessing_of(net, size),
        {"source": "timm", "model": model},
        layer=-1 if (layer := integer(options, "layer")) is None else layer,
        norm=boolean(options, "norm", default=True),
        registers=boolean(options, "registers", default=False),
        summary=options.get("summary", "none" if _is_dense(net) else "head"),
    )


def preprocessing_of(net: nn.Module, size: int | None = None) -> Preprocessing:
    """What timm's pretrained config says, at ``size`` when given."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config({}, model=net)
    _, height, width = config["input_size"]
    return Preprocessing(
        size=(height, width) if size is None else (size, size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _is_dense(net: nn.Module) -> bool:
    """SAM's image encoder has no summary: its head pools what was never trained to be pooled."""
    return type(net).__name__ == "VisionTransformerSAM"


def _unknown(model: str) -> UsageError:
    import timm

    base = model.split(".")[0].split("@")[0]
    close = timm.list_models(f"*{base[:12]}*")[:8] or timm.list_models("vit_small*")[:8]
    return UsageError(f"timm has no model {model!r}; near it are: {', '.join(close)}.")
