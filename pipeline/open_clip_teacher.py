"""Teachers from open_clip: the image tower of a contrastive model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from ..cache.errors import TeacherError, UsageError
from . import timm_teacher
from .contract import Features, Preprocessing
from .teachers import take_options
from .weights import integer, load_weights, read_weights, seeded, weights_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIONS = ("size", "space", "weights", "random")
SPACES = ("trunk", "joint")


class OpenClipTeacher:
    """The image tower of an open_clip model.

    ``space="trunk"``: patches after the last norm and before the projection, summary the projected
    image embedding. ``space="joint"``: patches and summary both projected into the space shared
    with text and L2-normalised.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        identity: Mapping[str, Any],
        *,
        space: str = "trunk",
    ) -> None:
        if space not in SPACES:
            raise UsageError(f"space={space!r} is not known; choose one of {', '.join(SPACES)}.")
        clip: Any = model
        self.visual = clip.visual.eval().requires_grad_(False)
        if space == "joint" and hasattr(self.visual, "trunk"):
            raise UsageError("space=joint needs a tower with a projection; use space=trunk.")
        self._preprocessing = preprocessing
        self._identity, self._space = dict(identity), space

    def identity(self) -> Mapping[str, Any]:
        return {
            **self._identity,
            "weights_sha256": weights_sha256(self.visual),
            "space": self._space,
        }

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self.visual.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        if hasattr(self.visual, "trunk"):  # a timm tower: SigLIP, EVA, MobileCLIP, ConvNeXt
            patches, _, final = timm_teacher.tokens(self.visual.trunk, images)
            summary = self.visual.head(self.visual.trunk.forward_head(final))
            return Features(patches, summary)
        return self._vit(images)

    def _vit(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        from torch.nn.functional import normalize

        visual = self.visual
        if not hasattr(visual, "grid_size") or visual.attn_pool is not None:
            raise TeacherError(
                f"open_clip's {type(visual).__name__} has no plain patch grid; choose a ViT tower "
                "without attention pooling, or a model with a timm tower."
            )
        last = len(visual.transformer.resblocks) - 1
        output = visual.forward_intermediates(
            images, indices=[last], output_fmt="NCHW", normalize_intermediates=True
        )
        patches = output["image_intermediates"][0].permute(0, 2, 3, 1)
        summary = output["image_features"]
        if self._space == "joint":
            patches = normalize(patches @ visual.proj, dim=-1)
            summary = normalize(summary, dim=-1)
        return Features(patches, summary)


def build(model: str, options: dict[str, str]) -> OpenClipTeacher:
    """``open_clip:MODEL/PRETRAINED``, or ``open_clip:hf-hub:ORG/REPO``, ``local-dir:FOLDER``."""
    import open_clip

    take_options(options, OPTIONS, f"open_clip:{model}")
    seed, size = integer(options, "random"), integer(options, "size")
    local = Path(options["weights"]) if "weights" in options else None
    if seed is not None and local is not None:
        raise UsageError("options weights and random exclude each other; give one.")
    schema = model.startswith(("hf-hub:", "local-dir:"))
    architecture, _, tag = (model, "", "") if schema else model.rpartition("/")
    if not schema and not architecture:
        architecture, tag = tag, ""
    _check_known(architecture, tag, schema, own_weights=seed is not None or local is not None)
    random = seed is not None or local is not None
    with seeded(seed or 0):
        net = open_clip.create_model(
            architecture,
            pretrained=None if random or schema else tag,
            load_weights=not random,
            require_pretrained=not random,
            force_image_size=size,
        )
    if local is not None:
        load_weights(net, read_weights(local), str(local))
    return OpenClipTeacher(
        net,
        preprocessing_of(net),
        {"source": "open_clip", "model": model},
        space=options.get("space", "trunk"),
    )


def preprocessing_of(net: nn.Module) -> Preprocessing:
    """What the image tower's preprocessing config says."""
    clip: Any = net
    config = clip.visual.preprocess_cfg
    size = config["size"]
    return Preprocessing(
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config.get("interpolation", "bicubic"),
    )


def _check_known(architecture: str, tag: str, schema: bool, *, own_weights: bool) -> None:
    import open_clip

    if schema:
        return
    if architecture not in open_clip.list_models():
        close = [name for name in open_clip.list_models() if name[:5] == architecture[:5]][:8]
        raise UsageError(
            f"open_clip has no model {architecture!r}; near it are: "
            f"{', '.join(close or open_clip.list_models()[:8])}."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and not own_weights:
        raise UsageError(
            f"open_clip:{architecture} has no pretrained weights {tag!r}; "
            f"known are {', '.join(tags) or 'none'}. Write open_clip:{architecture}/PRETRAINED."
        )
