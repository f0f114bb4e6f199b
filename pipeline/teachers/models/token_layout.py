"""Where the patches of a timm model are: prefix tokens, grids, and the two orders of maps.

Sequences hold class, then register, then patch tokens, row-major. A model without a plain grid
(Hiera's shuffled tokens) gives its map through ``forward_intermediates``, which every timm backbone
has.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from phistill.errors import TeacherError

if TYPE_CHECKING:
    import torch
    from torch import nn


SHUFFLED = ("Hiera",)
"""Models whose last tokens are in another order than the image's, and are normalised only after
pooling: their map is an intermediate without a norm."""

Tokens = tuple["torch.Tensor", "torch.Tensor | None"]
"""Patches (b, h, w, c), and registers (b, g, c) where the model has them."""


def tokens(
    model: nn.Module,
    images: Float[torch.Tensor, "b 3 h w"],
    *,
    layer: int = -1,
    norm: bool = True,
    final: bool = True,
) -> tuple[
    Float[torch.Tensor, "b h w c"],
    Float[torch.Tensor, "b g c"] | None,
    torch.Tensor | None,
]:
    """Patches (b, h, w, c), registers (b, g, c) or None, and the model's last features.

    ``layer`` counts from the end, -1 is the last. The last features, which the model's own head
    pools, are None when ``final`` is false and they were not needed.
    """
    by_layer, last = tokens_of_layers(model, images, [layer], norm=norm, final=final)
    return *by_layer[layer], last


def tokens_of_layers(
    model: nn.Module,
    images: Float[torch.Tensor, "b 3 h w"],
    layers: Sequence[int],
    *,
    norm: bool = True,
    final: bool = True,
) -> tuple[dict[int, Tokens], torch.Tensor | None]:
    """As ``tokens`` for several layers, from one forward pass."""
    net: Any = model
    shuffled = type(net).__name__ in SHUFFLED
    by_last = norm and -1 in layers and not shuffled
    rest = sorted(set(layers) - ({-1} if by_last else set()))
    by_layer: dict[int, Tokens] = {}
    if rest:
        values, last = _intermediates(
            net, images, rest, norm=norm and not shuffled, final=final or by_last
        )
        by_layer = {
            layer: _of_intermediate(net, value) for layer, value in zip(rest, values, strict=True)
        }
    else:
        last = net.forward_features(images)
    if by_last:
        whole = _of_last(net, last, images)
        if whole is None:  # no plain grid is stated; the model knows how to make one
            ((value,), _) = _intermediates(net, images, [-1], norm=norm, final=False)
            whole = _of_intermediate(net, value)
        by_layer[-1] = whole
    return by_layer, last


def depth_of(model: nn.Module) -> int:
    """Layers that ``tokens`` can take: blocks of a transformer, stages of a map."""
    info = getattr(model, "feature_info", None)
    if info is None:
        raise TeacherError(
            f"{type(model).__name__} does not say which layers it has; wrap it in a teacher of "
            "your own (module:package.module:function)."
        )
    return len(info)


def patch_of(model: Any) -> tuple[int, int] | None:
    """Pixels (height, width) of a patch where the model leaves out what is less than one; None
    where it has no patches or fills up the last."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None or hasattr(embed, "backbone") or getattr(embed, "dynamic_img_pad", False):
        return None
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def num_registers_of(model: Any) -> int:
    """Register tokens of a sequence; timm's EVA class (DINOv3) does not state their number."""
    if (stated := getattr(model, "num_reg_tokens", None)) is not None:
        return int(stated)
    tokens = getattr(model, "reg_token", None)
    return 0 if tokens is None else int(tokens.shape[1])


def _intermediates(
    net: Any, images: torch.Tensor, layers: Sequence[int], *, norm: bool, final: bool
) -> tuple[list[Any], torch.Tensor | None]:
    if not hasattr(net, "forward_intermediates"):
        raise TeacherError(
            f"{type(net).__name__} gives its features at several scales and no map of one; wrap it "
            "in a teacher of your own (module:package.module:function)."
        )
    prefix = {}
    accepted = inspect.signature(net.forward_intermediates).parameters
    if getattr(net, "num_prefix_tokens", 0) and "return_prefix_tokens" in accepted:
        prefix["return_prefix_tokens"] = True
    result = net.forward_intermediates(
        images,
        indices=list(layers),
        norm=norm,
        stop_early=not final,
        output_fmt="NCHW",
        intermediates_only=not final,
        **prefix,
    )
    if not final:
        return list(result), None
    last, values = result
    return list(values), last


def _of_intermediate(net: Any, value: Any) -> Tokens:
    registers = None
    if isinstance(value, tuple):
        value, prefix = value
        if num_registers := num_registers_of(net):
            registers = prefix[:, prefix.shape[1] - num_registers :]
    return value.permute(0, 2, 3, 1), registers


def _of_last(net: Any, last: Any, images: torch.Tensor) -> Tokens | None:
    """Tokens of the model's last features; None when they are no plain grid."""
    import torch

    if not isinstance(last, torch.Tensor):  # several scales
        return None
    return (_map(net, last), None) if last.ndim == 4 else _split(net, last, images)


def _split(
    net: Any, sequence: torch.Tensor, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Patches on their grid and registers; None when the tokens are not a plain grid."""
    grid_of = getattr(getattr(net, "patch_embed", None), "dynamic_feat_size", None)
    if grid_of is None:
        return None
    height, width = grid_of((images.shape[2], images.shape[3]))
    num_prefix = int(getattr(net, "num_prefix_tokens", 0))
    patches = sequence[:, num_prefix:]
    if height * width != patches.shape[1]:
        raise TeacherError(
            f"{type(net).__name__} gives {patches.shape[1]} patch tokens for a grid of "
            f"{height} x {width}; its tokens are not a plain grid."
        )
    registers = None
    if num_registers := num_registers_of(net):
        registers = sequence[:, num_prefix - num_registers : num_prefix]
    return patches.unflatten(1, (height, width)), registers


def _map(net: Any, features: torch.Tensor) -> torch.Tensor:
    """A feature map as (b, h, w, c), whichever order the model uses."""
    if str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC"):
        return features
    return features.permute(0, 2, 3, 1)
