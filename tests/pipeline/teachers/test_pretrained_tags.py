"""Every tag of open_clip and every pretrained config of timm: what the weights were trained with is
what we build."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import open_clip
import open_clip.factory
import open_clip.model
import pytest
import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import InterpolationMode, Normalize, Resize

from phistill.pipeline.teachers.open_clip import build
from phistill.pipeline.teachers.timm import preprocessing_of

TAGS = open_clip.list_pretrained()
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip builds image towers as shapes, and neither downloads nor loads anything."""
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: "/nothing")
    monkeypatch.setattr(open_clip.factory, "load_checkpoint", lambda *a, **k: {})
    monkeypatch.setattr(open_clip.factory, "_set_model_device_and_precision", lambda *a, **k: None)
    text = open_clip.model._build_text_tower

    def small(embed_dim: int, config: Any, *rest: Any) -> Any:  # some are on a hub
        small_config = open_clip.CLIPTextCfg(width=64, heads=1, layers=1)
        return text(embed_dim, small_config, *rest)

    monkeypatch.setattr(open_clip.model, "_build_text_tower", small)


def built(model: str, options: dict[str, str]) -> Any:
    with torch.device("meta"):
        return build(model, options)


# One tag says nothing of the activation, and its architecture says QuickGELU: open_clip remarks it.
@pytest.mark.filterwarnings("ignore:QuickGELU mismatch")
def test_every_tag_of_open_clip_is_built_as_it_was_trained(
    without_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick: list[bool] = []
    tower = open_clip.model._build_vision_tower

    def watched(embed_dim: int, vision_cfg: Any, quick_gelu: bool, cast_dtype: Any) -> Any:
        quick.append(quick_gelu)
        # The towers of one architecture differ in nothing but the activation: one block is enough.
        small = dict(vision_cfg if isinstance(vision_cfg, dict) else vars(vision_cfg))
        if isinstance(small.get("layers"), int):
            small["layers"] = 1
        return tower(embed_dim, small, quick_gelu, cast_dtype)

    for module in (open_clip.model, open_clip.coca_model):
        monkeypatch.setattr(module, "_build_vision_tower", watched)
    wrong = []
    for architecture, tag in TAGS:
        trained = open_clip.get_pretrained_cfg(architecture, tag)
        config = open_clip.get_model_config(architecture)
        expected = trained.get("quick_gelu", config.get("quick_gelu", False))
        preprocessing = built(f"{architecture}/{tag}", {}).preprocessing()
        found = (preprocessing.mean, preprocessing.std, preprocessing.interpolation)
        stated = (tuple(trained["mean"]), tuple(trained["std"]), trained["interpolation"])
        if quick[-1] != expected or found != stated:
            wrong.append((architecture, tag, quick[-1], expected, found, stated))
    assert not wrong
    assert len(quick) == len(TAGS) > 150
    assert any(quick)
    assert not all(quick)


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        ("ViT-B-32/openai", "QuickGELU"),
        ("ViT-B-32-quickgelu/openai", "QuickGELU"),
        ("ViT-B-16/dfn2b", "QuickGELU"),
        ("ViT-B-32/laion2b_s34b_b79k", "GELU"),
    ],
)
def test_the_activation_is_the_tags(model: str, activation: str, without_weights: None) -> None:
    teacher = built(model, {})
    names = {type(module).__name__ for module in teacher.visual.modules()}
    assert {name for name in names if "GELU" in name} == {activation}


def test_random_weights_and_own_files_keep_what_the_tag_says(without_weights: None) -> None:
    teacher = built("ViT-B-16-SigLIP2/webli", {"random": "0"})
    assert teacher.preprocessing().mean == (0.5, 0.5, 0.5)


def test_every_pretrained_config_of_timm_is_preprocessed_as_timm_does() -> None:
    """timm's own evaluation transform, made of the same config, is the reference."""
    wrong = []
    names = timm.list_models(pretrained=True)
    for name in names:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        net: Any = SimpleNamespace(pretrained_cfg=config.to_dict())
        found = preprocessing_of(net)
        parts = create_transform(**resolve_data_config({}, model=net)).transforms
        resize = next((part for part in parts if isinstance(part, Resize)), None)
        normalize = next(part for part in parts if isinstance(part, Normalize))
        expected = (
            tuple(config.input_size[1:]),
            tuple(normalize.mean.tolist()),
            tuple(normalize.std.tolist()),
        )
        ours = torch.tensor(found.mean).tolist(), torch.tensor(found.std).tolist()
        same = (found.size, *map(tuple, ours)) == expected
        how = None if resize is None else resize.interpolation
        if not same or (how is not None and INTERPOLATIONS[found.interpolation] != how):
            wrong.append((name, found, expected, how))
    assert not wrong
    assert len(names) > 1000


def test_what_open_clip_logs_is_not_printed() -> None:
    code = (
        "from phistill.pipeline.teachers.spec import TeacherSpec\n"
        "TeacherSpec.parse('open_clip:ViT-S-32-alt/none?random=1').build()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
