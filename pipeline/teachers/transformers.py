"""Teachers from Hugging Face transformers, an optional extra: vision models by ``AutoModel``.

Code from a model's repository runs only with ``remote_code=true`` and a ``revision`` that is a
commit; both are part of the teacher's identity.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from phistill.compute.seeds import seeded
from phistill.errors import TeacherError, UsageError

from .contract import Features, Preprocessing, Teacher
from .models.image_processor import pair, processing_of
from .models.weights import RANDOM, cast, licence_of_card, parameter_dtype, weights_sha256
from .options import OF_SOURCE, boolean, integer, require_whole_patches, size_of, take_options

if TYPE_CHECKING:
    import torch
    from torch import nn

SUMMARIES = ("pooler", "class", "mean", "none")


class TransformersTeacher(Teacher):
    """A vision model of transformers.

    ``layer`` counts hidden states from the end: -1 is the model's output, after its last norm.
    ``summary`` is ``pooler`` (the model's own), ``class`` (the class token), ``mean`` (of the
    patches) or ``none``; ``None`` takes the first that the model has. ``bgr`` hands the channels
    over in that order.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        identity: Mapping[str, Any],
        *,
        layer: int = -1,
        summary: str | None = None,
        registers: bool = False,
        bgr: bool = False,
        licence: str | None = None,
    ) -> None:
        if summary is not None and summary not in SUMMARIES:
            raise UsageError(
                f"summary={summary!r} is not known; choose one of {', '.join(SUMMARIES)}."
            )
        if layer > -1:
            raise UsageError(f"layer={layer} must count from the end: -1 is the last.")
        self.model: Any = _tower(model).eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._identity = dict(identity)
        self._layer, self._summary, self._registers = layer, summary, registers
        self._bgr = bgr
        self.licence = licence
        own = getattr(_config(self.model), "image_size", None)
        self._resized = own is not None and pair(own) != preprocessing.size
        self._more: dict[str, Any] = {}
        if self._resized and _takes(self.model, "interpolate_pos_encoding"):
            self._more["interpolate_pos_encoding"] = True
        self._patch = _patch(self.model)
        if _masks(self.model):
            self.model.config.mask_ratio = 0.0

    def identity(self) -> Mapping[str, Any]:
        return {
            **self._identity,
            "weights_sha256": weights_sha256(self.model),
            "layer": self._layer,
            "summary": self._summary or "own",
            "dtype": str(parameter_dtype(self.model)).removeprefix("torch."),
        }

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        images = images.to(parameter_dtype(self.model))
        if self._bgr:
            images = images.flip(1)
        more: dict[str, Any] = dict(self._more)
        if self._layer != -1:
            more["output_hidden_states"] = True
        if _masks(self.model):  # in order, and none left out
            num = _num_patches(images, self._patch)
            more["noise"] = images.new_tensor(range(num)).expand(len(images), num)
        output = self.model(images, **more)
        if hasattr(output, "features") and hasattr(output, "summary"):  # RADIO
            return Features(_grid(output.features, images, 0), output.summary)
        values = output.last_hidden_state
        if self._layer != -1:
            values = output.hidden_states[self._layer]
        if values.ndim == 4:
            patches, prefix = _map(self.model, values), None
        else:
            num_prefix = _num_prefix(values.shape[1], images, self._patch)
            plain = num_prefix + _num_patches(images, self._patch) == values.shape[1]
            if plain and self._resized:
                name = type(self.model).__name__
                require_whole_patches((images.shape[2], images.shape[3]), self._patch, name)
            patches, prefix = _grid(values, images, num_prefix), values[:, :num_prefix]
        registers = None
        if self._registers and prefix is not None and prefix.shape[1] > 1:
            registers = prefix[:, 1:]
        return Features(patches, self._pooled(output, patches, prefix), registers)

    def _pooled(
        self, output: Any, patches: torch.Tensor, prefix: torch.Tensor | None
    ) -> torch.Tensor | None:
        how = self._summary
        pooled = getattr(output, "pooler_output", None)
        if how in (None, "pooler") and pooled is not None:
            return pooled.flatten(1)
        if how == "pooler":
            raise UsageError(
                f"{type(self.model).__name__} pools nothing; use summary=mean or none."
            )
        if how in (None, "class") and prefix is not None and prefix.shape[1]:
            return prefix[:, 0]
        if how == "class":
            raise UsageError(f"{type(self.model).__name__} has no class token.")
        return patches.flatten(1, 2).mean(1) if how == "mean" else None


def build(model: str, options: dict[str, str]) -> TransformersTeacher:
    """``transformers:ORG/REPO`` or a local folder written by ``save_pretrained``."""
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise UsageError(
            "teachers from transformers need it installed: pip install 'phistill[transformers]'."
        ) from error
    auto: Any = AutoModel
    take_options(options, OF_SOURCE["transformers"], f"transformers:{model}")
    revision = options.get("revision")
    remote = boolean(options, "remote_code", default=False)
    if remote and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise UsageError(
            f"transformers:{model}: remote_code=true runs the repository's own code and needs the "
            "commit it was read at, revision=40 hexadecimal digits."
        )
    source: dict[str, Any] = {"trust_remote_code": remote, "revision": revision or "main"}
    seed = integer(options, "random")
    if seed is None:
        net = auto.from_pretrained(model, **source)
    else:
        with seeded(seed):
            net = auto.from_config(
                AutoConfig.from_pretrained(model, **source), trust_remote_code=remote
            )
    own_size = getattr(_config(net), "image_size", None)
    processing = processing_of(model, source, own_size, size_of(options))
    identity = {"source": "transformers", "model": model, "remote_code": remote}
    if processing.bgr:
        identity["channels"] = "bgr"
    if revision is not None:
        identity["revision"] = revision
    teacher = TransformersTeacher(
        cast(net, options.get("dtype")),
        processing.preprocessing,
        identity,
        layer=-1 if (layer := integer(options, "layer")) is None else layer,
        summary=options.get("summary"),
        registers=boolean(options, "registers", default=False),
        bgr=processing.bgr,
        licence=licence_of_card(Path(model)),
    )
    teacher.notes = processing.notes if seed is None else (*processing.notes, RANDOM)
    return teacher


def _tower(model: nn.Module) -> Any:
    """The image part of a model that has others: CLIP's and SigLIP's text, SAM's prompts."""
    for name in ("vision_model", "vision_encoder"):
        if (tower := getattr(model, name, None)) is not None:
            return tower
    return model


def _map(net: Any, values: torch.Tensor) -> torch.Tensor:
    """A map as (b, h, w, c); SAM's layers, unlike its neck, have their channels last."""
    width = getattr(_config(net), "hidden_size", None)
    last = values.shape[-1] == width and values.shape[1] != width
    return values if last else values.permute(0, 2, 3, 1)


def _config(net: Any) -> Any:
    return getattr(net.config, "vision_config", net.config)


def _patch(net: Any) -> tuple[int, int]:
    """Of the first layer; (1, 1) of a model that states none."""
    patch = getattr(_config(net), "patch_size", None)
    return pair(patch) if isinstance(patch, int | list | tuple) else (1, 1)


def _masks(net: Any) -> bool:
    """Whether the model leaves out patches at random (ViTMAE)."""
    return hasattr(_config(net), "mask_ratio") and _takes(net, "noise")


def _takes(net: Any, argument: str) -> bool:
    return argument in inspect.signature(net.forward).parameters


def _num_patches(images: torch.Tensor, patch: tuple[int, int]) -> int:
    return (images.shape[2] // patch[0]) * (images.shape[3] // patch[1])


def _num_prefix(num_tokens: int, images: torch.Tensor, patch: tuple[int, int]) -> int:
    """Class and register tokens before the patches: what is more than the patches of the first
    layer; of a model whose grid becomes coarser, none, or one where none leaves no grid."""
    height, width = images.shape[2:]
    rest = num_tokens - _num_patches(images, patch)
    if rest >= 0:
        return rest
    return next((n for n in (0, 1) if _rows(num_tokens - n, height, width)), 0)


def _rows(num_patches: int, height: int, width: int) -> int:
    """Rows of a grid in the image's proportions; 0 when so many patches are none."""
    rows = round((num_patches * height / width) ** 0.5)
    return rows if rows and num_patches % rows == 0 else 0


def _grid(values: torch.Tensor, images: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """Tokens (b, prefix + h * w, c) as (b, h, w, c), the grid in the image's proportions."""
    patches = values[:, num_prefix:]
    height, width = images.shape[2:]
    rows = _rows(patches.shape[1], height, width)
    if num_prefix < 0 or not rows:
        raise TeacherError(
            f"{values.shape[1]} tokens for an image of {height} x {width} pixels are no grid."
        )
    return patches.unflatten(1, (rows, patches.shape[1] // rows))
