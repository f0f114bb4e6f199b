"""Teachers from open_clip: the image tower of a contrastive model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from phistill.compute.seeds import seeded
from phistill.errors import TeacherError, UsageError

from .contract import Features, Preprocessing, Teacher
from .models.token_layout import patch_of, tokens
from .models.weights import WeightOptions, cast, licence_of_card, parameter_dtype, weights_sha256
from .options import OF_SOURCE, boolean, integer, require_whole_patches, size_of, take_options
from .timm import fitted_state

if TYPE_CHECKING:
    import torch
    from torch import nn

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
SPACES = ("trunk", "joint")
TEXTS = 256
"""Texts in one forward pass."""

Tokenize = Callable[[list[str]], "torch.Tensor"]
LOCAL = "local-dir:"


class OpenClipTeacher(Teacher):
    """The image tower of an open_clip model.

    ``space="trunk"``: patches before the projection, summary the projected image embedding.
    ``space="joint"``: patches and summary both projected into the space shared with text and
    L2-normalised. ``layer`` counts blocks (stages of a map) from the end, ``norm`` applies the
    last norm to the patches where the tower has one per token. ``tokenize`` makes ids (n, length)
    of texts, where the text tower is to be asked.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        identity: Mapping[str, Any],
        *,
        space: str = "trunk",
        layer: int = -1,
        norm: bool = True,
        licence: str | None = None,
        tokenize: Tokenize | None = None,
    ) -> None:
        if space not in SPACES:
            raise UsageError(f"space={space!r} is not known; choose one of {', '.join(SPACES)}.")
        clip: Any = model
        self.visual = clip.visual.eval().requires_grad_(False)
        if space == "joint":
            if getattr(self.visual, "proj", None) is None or _pools_by_attention(self.visual):
                raise UsageError("space=joint needs a tower with a projection; use space=trunk.")
            if layer != -1 or not norm:
                raise UsageError("space=joint is a space of the last layer after its norm.")
        if layer > -1:
            raise UsageError(f"layer={layer} must count from the end: -1 is the last.")
        self._preprocessing = preprocessing
        self._identity, self._space = dict(identity), space
        self._layer, self._norm = layer, norm
        self.licence = licence
        self._tokenize = tokenize
        self._clip: Any = None if tokenize is None else clip

    def identity(self) -> Mapping[str, Any]:
        return {
            **self._identity,
            "weights_sha256": weights_sha256(self.visual),
            "space": self._space,
            "layer": self._layer,
            "norm": self._norm,
            "dtype": str(parameter_dtype(self.visual)).removeprefix("torch."),
        }

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self.visual.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        images = images.to(parameter_dtype(self.visual))
        if hasattr(self.visual, "trunk"):  # a timm tower: SigLIP, EVA, MobileCLIP, ConvNeXt
            trunk = self.visual.trunk
            patches, _, final = tokens(trunk, images, layer=self._layer, norm=self._norm)
            return Features(patches, self.visual.head(trunk.forward_head(final)))
        return self._own(images)

    def text_features(self, texts: Sequence[str]) -> Float[torch.Tensor, "n d"]:
        import torch
        from torch.nn.functional import normalize

        if self._clip is None or self._tokenize is None:
            return super().text_features(texts)
        clip = self._clip.eval()
        device = next(clip.parameters()).device
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS):
                tokens = self._tokenize(list(texts[start : start + TEXTS])).to(device)
                blocks.append(normalize(clip.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(blocks)

    def let_text_go(self) -> None:
        self._clip = self._tokenize = None

    def _own(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        """open_clip's ViT and ResNet towers."""
        from torch.nn.functional import normalize

        visual = self.visual
        if not hasattr(visual, "forward_intermediates"):
            raise TeacherError(
                f"open_clip's {type(visual).__name__} does not give its patches; choose a ViT, a "
                "ResNet or a model with a timm tower."
            )
        # CoCa's pooler changes the width before the norm, so its tokens have none of their own.
        blocks = visual.transformer.resblocks if hasattr(visual, "transformer") else ()
        output = visual.forward_intermediates(
            images,
            # A ResNet counts its stem and four stages, and cannot count from the end.
            indices=[self._layer + (len(blocks) or 5)],
            output_fmt="NCHW",
            normalize_intermediates=self._norm and not _pools_by_attention(visual),
        )
        patches = output["image_intermediates"][0].permute(0, 2, 3, 1)
        summary = output["image_features"]
        if self._space == "joint":
            patches = normalize(patches @ visual.proj, dim=-1)
            summary = normalize(summary, dim=-1)
        return Features(patches, summary)


def _pools_by_attention(visual: Any) -> bool:
    return getattr(visual, "attn_pool", None) is not None


@contextmanager
def _unlogged() -> Iterator[None]:
    """What open_clip says through the root logger is printed only where somebody set logging up: it
    would otherwise set it up itself, and repeat on stderr what our messages say."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def build(model: str, options: dict[str, str]) -> OpenClipTeacher:
    """``open_clip:MODEL/PRETRAINED``, or ``open_clip:hf-hub:ORG/REPO``, ``local-dir:FOLDER``."""
    import open_clip

    take_options(options, OF_SOURCE["open_clip"], f"open_clip:{model}")
    weights, size = WeightOptions.of(options), size_of(options)
    schema = model.startswith(("hf-hub:", "local-dir:"))
    architecture, _, tag = (model, "", "") if schema else model.rpartition("/")
    if not schema and not architecture:
        architecture, tag = tag, ""
    random = not weights.from_hub
    _check_known(architecture, tag, schema, own_weights=random)
    trained = {} if schema else open_clip.get_pretrained_cfg(architecture, tag)
    with seeded(weights.seed or 0), _unlogged():
        net = open_clip.create_model(
            architecture,
            pretrained=None if random or schema else tag,
            load_weights=not random,
            require_pretrained=not random,
            # What the weights were trained with wins over the architecture's config, which
            # open_clip only warns of.
            force_quick_gelu=bool(trained.get("quick_gelu")),
            force_preprocess_cfg={key: trained[key] for key in PREPROCESSING if key in trained},
            force_image_size=size,
        )
    notes = weights.load(net.visual, _fitted)
    preprocessing = preprocessing_of(net)
    visual: Any = net.visual
    patch = patch_of(visual.trunk) if hasattr(visual, "trunk") else None
    patch = patch or getattr(visual, "patch_size", None)
    if size is not None and patch is not None:
        require_whole_patches(preprocessing.size, patch, f"open_clip:{model}")
    teacher = OpenClipTeacher(
        cast(net, weights.dtype),
        preprocessing,
        {"source": "open_clip", "model": model},
        space=options.get("space", "trunk"),
        layer=-1 if (layer := integer(options, "layer")) is None else layer,
        norm=boolean(options, "norm", default=True),
        licence=licence_of_card(Path(model[len(LOCAL) :])) if model.startswith(LOCAL) else None,
        # Made when it is asked for: some tokenizers are on the hub.
        tokenize=lambda texts: open_clip.get_tokenizer(architecture)(texts),
    )
    teacher.notes = notes
    return teacher


def _fitted(visual: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An image tower's state dict at the tower's own size: positions resampled as open_clip does,
    or timm where the tower is timm's."""
    from open_clip.model import resize_pos_embed

    if hasattr(visual, "trunk"):
        trunk, begins = visual.trunk, "trunk."
        inside = {n[len(begins) :]: v for n, v in state.items() if n.startswith(begins)}
        rest = {name: value for name, value in state.items() if not name.startswith(begins)}
        return {begins + name: value for name, value in fitted_state(trunk, inside).items()} | rest
    whole = {f"visual.{name}": value for name, value in state.items()}
    resize_pos_embed(whole, SimpleNamespace(visual=visual))
    return {name.removeprefix("visual."): value for name, value in whole.items()}


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
