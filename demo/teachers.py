"""The bundled teachers `demo:clip`, `demo:ssl` and `demo:mask`, behind the usual adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phistill.compute.seeds import seeded
from phistill.errors import UsageError, did_you_mean
from phistill.pipeline.teachers.contract import Preprocessing, Teacher
from phistill.pipeline.teachers.models.weights import load_weights
from phistill.pipeline.teachers.open_clip import OpenClipTeacher
from phistill.pipeline.teachers.options import boolean, integer, take_options
from phistill.pipeline.teachers.timm import TimmTeacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .captions import Tokenizer

FOLDER = Path(__file__).parent
NAMES = ("clip", "ssl", "mask")
DECODER = "decoder."
LICENCE = "apache-2.0"
"""Of this project; the teachers were trained for it on images in the public domain."""


def build(model: str, options: dict[str, str]) -> Teacher:
    """``demo:NAME``; with ``random=SEED`` the same architecture without its training.

    ``registers=true`` keeps the register tokens of `ssl`; the others have none.
    """
    refuse_unknown(model)
    take_options(options, options_of(model), f"demo:{model}")
    settings = read_settings(model)
    net = network(model, settings, integer(options, "random"))
    identity = {"source": "demo", "model": model}
    if settings["library"] == "open_clip":
        return OpenClipTeacher(
            net,
            preprocessing_of(settings),
            identity,
            space="joint",
            licence=LICENCE,
            tokenize=tokenizer(),
        )
    dense = settings["summary"] is None
    return TimmTeacher(
        net,
        preprocessing_of(settings),
        identity,
        norm=not dense,
        summary="none" if dense else "head",
        registers=boolean(options, "registers", default=False),
        licence=LICENCE,
    )


def options_of(model: str) -> tuple[str, ...]:
    """Only ``ssl`` has register tokens."""
    return ("random", "registers") if model == "ssl" else ("random",)


def refuse_unknown(model: str) -> None:
    """UsageError for a teacher that is not bundled."""
    if model not in NAMES:
        near = did_you_mean(model, NAMES)
        raise UsageError(f"demo:{model} does not exist; choose one of {', '.join(NAMES)}.{near}")


def network(name: str, settings: Mapping[str, Any], seed: int | None) -> nn.Module:
    """The whole model of a teacher (for `clip` with its text tower), trained unless seeded."""
    with seeded(seed or 0):
        if settings["library"] == "open_clip":
            import open_clip

            net: nn.Module = open_clip.CLIP(**settings["model"])
        else:
            import timm

            net = timm.create_model(settings["model"], pretrained=False, **settings["kwargs"])
    if seed is None:
        state = {k: v for k, v in read_tensors(name).items() if not k.startswith(DECODER)}
        load_weights(net, state, str(FOLDER / f"{name}.safetensors"))
    return net.eval().requires_grad_(False)


def preprocessing_of(settings: Mapping[str, Any]) -> Preprocessing:
    r, g, b = settings["mean"]
    std_r, std_g, std_b = settings["std"]
    return Preprocessing(
        size=(settings["size"], settings["size"]),
        mean=(r, g, b),
        std=(std_r, std_g, std_b),
        interpolation=settings["interpolation"],
    )


def tokenizer() -> Tokenizer:
    """The words `clip` knows."""
    from .captions import Tokenizer

    return Tokenizer(tuple(read_settings("clip")["vocabulary"]))


def text_summaries(captions: list[str], seed: int | None = None) -> Tensor:
    """Captions in the joint space of `clip`: float32 (n, 128), L2-normalised."""
    import torch
    from torch.nn.functional import normalize

    net: Any = network("clip", read_settings("clip"), seed)
    with torch.no_grad():
        return normalize(net.encode_text(tokenizer()(captions)), dim=1)


def matte_decoder() -> tuple[Tensor, Tensor]:
    """Weight (25, 188) and bias (25,) from a token of `mask` to the alpha logits under it."""
    tensors = read_tensors("mask")
    return tensors[f"{DECODER}weight"], tensors[f"{DECODER}bias"]


def read_settings(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return document


def read_tensors(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """Weights as float32, which is what every model here computes in."""
    from safetensors.torch import load_file

    return {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
