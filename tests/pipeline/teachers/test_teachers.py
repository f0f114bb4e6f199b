"""The grammar of teachers, and features that equal the models' own forward."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch

from phistill.errors import PhistillError, TeacherError, UsageError
from phistill.pipeline.teachers.contract import Preprocessing, Teacher
from phistill.pipeline.teachers.open_clip import OpenClipTeacher
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.pipeline.teachers.timm import TimmTeacher

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("text", "name", "model", "options"),
    [
        ("timm:vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m", None, ()),
        ("d=timm:vit_tiny?size=64&random=1", "d", "vit_tiny", (("random", "1"), ("size", "64"))),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "ViT-B-32-laion2b_s34b_b79k", None, ()),
        ("demo:ssl", "ssl", "ssl", ()),
        ("module:pkg.mod:build", "build", "pkg.mod:build", ()),
        ("timm:hf-hub:org/repo", "repo", "hf-hub:org/repo", ()),
    ],
)  # fmt: skip
def test_a_teacher_is_parsed_and_written_back(
    text: str, name: str, model: str | None, options: tuple[tuple[str, str], ...]
) -> None:
    spec = TeacherSpec.parse(text)
    assert spec.name == name
    assert model is None or spec.model == model
    assert spec.options == options
    assert TeacherSpec.parse(f"{name}={spec.text}") == spec


@pytest.mark.parametrize("text", ["vit", "=timm:x", "a/b=timm:x", "timm:", "timm:x?size"])
def test_what_is_no_teacher_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        TeacherSpec.parse(text)


def test_two_architectures_of_one_tag_have_two_names() -> None:
    names = [TeacherSpec.parse(f"open_clip:{a}/openai").name for a in ("ViT-B-32", "RN50")]
    assert names == ["ViT-B-32-openai", "RN50-openai"]


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known are demo, module, open_clip, timm, transformers"):
        TeacherSpec.parse("hub:x").build()


def test_an_unknown_timm_model_lists_near_ones() -> None:
    with pytest.raises(UsageError, match="vit_small_patch16_224"):
        TeacherSpec.parse("timm:vit_small_patch99").build()


def test_unknown_open_clip_weights_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"known are .*laion2b_s34b_b79k"):
        TeacherSpec.parse("open_clip:ViT-B-32/nothing").build()


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown options colour; known are size"):
        TeacherSpec.parse("timm:vit_tiny_patch16_224?colour=red").build()


def test_weights_that_cannot_be_had_are_an_error_and_never_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The variable HF_HUB_OFFLINE is read once, when the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PhistillError, match="could not be built"):
        TeacherSpec.parse("timm:vit_tiny_patch16_224.augreg_in21k").build()


def test_seeded_random_weights_are_the_same_every_time() -> None:
    spec = TeacherSpec.parse("timm:vit_tiny_patch16_224?random=7&size=32")
    first, second = spec.build().identity(), spec.build().identity()
    other = TeacherSpec.parse("timm:vit_tiny_patch16_224?random=8&size=32").build().identity()
    assert first == second
    assert first["weights_sha256"] != other["weights_sha256"]


def test_class_and_register_tokens_are_stripped_from_the_patches() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, reg_tokens=4, num_classes=0, depth=2
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    spec = TimmTeacher(net, PREPROCESSING, {}, registers=True)
    with torch.inference_mode():
        tokens = net.forward_features(images)
        found = spec.features(images)
        head = net(images)
    assert tokens.shape == (2, 1 + 4 + 16, 192)
    torch.testing.assert_close(found.patches.flatten(1, 2), tokens[:, 5:], rtol=0, atol=0)
    assert found.registers is not None
    torch.testing.assert_close(found.registers, tokens[:, 1:5], rtol=0, atol=0)
    assert found.summary is not None
    torch.testing.assert_close(found.summary, head, rtol=0, atol=0)


def test_patches_before_the_norm_become_the_models_own_after_it() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    raw = TimmTeacher(net, PREPROCESSING, {}, norm=False, summary="none")
    with torch.inference_mode():
        patches = net.norm(raw.features(images).patches.flatten(1, 2))
        tokens = net.forward_features(images)
    torch.testing.assert_close(patches, tokens[:, 1:])


def test_a_convolutional_map_keeps_its_orientation() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model("convnext_atto", num_classes=0).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found = TimmTeacher(net, PREPROCESSING, {}).features(images)
        expected = net.forward_features(images)
    assert found.patches.shape == (1, 2, 3, 320)
    torch.testing.assert_close(found.patches[0, 1, 2], expected[0, :, 1, 2], rtol=0, atol=0)


def small_clip() -> torch.nn.Module:
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    model: torch.nn.Module = open_clip.CLIP(32, vision, text)
    return model.eval()


@pytest.mark.parametrize("space", ["trunk", "joint"])
def test_clip_gives_projected_summary_and_patches_in_the_chosen_space(space: str) -> None:
    net: Any = small_clip()
    images = torch.randn(2, 3, 32, 32)
    visual = net.visual
    with torch.inference_mode():
        found = OpenClipTeacher(net, PREPROCESSING, {}, space=space).features(images)
        summary = net.encode_image(images, normalize=space == "joint")
        visual.output_tokens = True
        _, tokens = visual(images)
        if space == "joint":
            tokens = torch.nn.functional.normalize(tokens @ visual.proj, dim=-1)
    assert found.summary is not None
    torch.testing.assert_close(found.summary, summary)
    torch.testing.assert_close(found.patches.flatten(1, 2), tokens)


def test_four_methods_are_a_teacher_without_a_base_class(tiny: str) -> None:
    teacher = TeacherSpec.parse(tiny).build()
    assert isinstance(teacher, Teacher)
    assert teacher.licence is None
    assert not teacher.shares_forward(teacher)
    images = torch.zeros(2, 3, 16, 16)
    (one,) = teacher.features_together([teacher], images)
    torch.testing.assert_close(one.patches, teacher.features(images).patches)


def test_what_is_no_teacher_is_named_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colorsys.half_a_teacher", lambda model, options: object(), raising=False)
    with pytest.raises(TeacherError, match="object is no teacher: it has no identity, prepro"):
        TeacherSpec.parse("t=module:colorsys:half_a_teacher").build()
