"""Each family at its real configuration (depth cut, random weights): the teacher's patches and
summary are those of the model's own forward."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch

from phistill.errors import TeacherError, UsageError
from phistill.pipeline.teachers.contract import Features, Preprocessing
from phistill.pipeline.teachers.models.token_layout import num_registers_of
from phistill.pipeline.teachers.models.weights import load_weights
from phistill.pipeline.teachers.open_clip import OpenClipTeacher
from phistill.pipeline.teachers.timm import TimmTeacher, fitted_state, preprocessing_of

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def create(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **kwargs).eval()


def run(teacher: Any, images: torch.Tensor) -> Features:
    with torch.inference_mode():
        found: Features = teacher.features(images)
    return found


def equal(found: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


VITS = [
    # name, prefix tokens, registers, patch size
    ("vit_small_patch14_reg4_dinov2", 5, 4, 14),
    ("vit_small_patch14_dinov2", 1, 0, 14),
    ("vit_small_patch16_dinov3", 5, 4, 16),
    ("vit_base_patch16_siglip_224", 0, 0, 16),
    ("vit_base_patch32_clip_224", 1, 0, 32),
    ("eva02_tiny_patch14_224", 1, 0, 14),
    ("beit_base_patch16_224", 1, 0, 16),
    ("deit_tiny_distilled_patch16_224", 2, 0, 16),
    ("naflexvit_base_patch16_gap", 4, 4, 16),
]


@pytest.mark.parametrize(("name", "num_prefix", "num_registers", "patch"), VITS)
def test_prefix_tokens_are_stripped_and_the_head_is_the_models_own(
    name: str, num_prefix: int, num_registers: int, patch: int
) -> None:
    size = {} if name.startswith("naflex") else {"img_size": (2 * patch, 3 * patch)}
    net = create(name, depth=2, **size)
    images = torch.randn(2, 3, 2 * patch, 3 * patch)
    assert num_registers_of(net) == num_registers
    found = run(TimmTeacher(net, PREPROCESSING, {}, registers=num_registers > 0), images)
    with torch.inference_mode():
        sequence, head = net.forward_features(images), net(images)
    assert sequence.shape[1] == num_prefix + 6
    assert found.patches.shape == (2, 2, 3, net.embed_dim)
    equal(found.patches.flatten(1, 2), sequence[:, num_prefix:])
    if name.startswith("deit"):  # two heads; the summary is the mean of what they see
        equal(found.summary, net.forward_head(sequence, pre_logits=True))
    else:
        equal(found.summary, head)
    if num_registers:
        equal(found.registers, sequence[:, num_prefix - num_registers : num_prefix])


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"],
)
def test_an_intermediate_layer_with_its_norm_is_the_model_cut_there(name: str) -> None:
    patch = 14 if "14" in name else 16
    net = create(name, depth=3, img_size=2 * patch)
    images = torch.randn(2, 3, 2 * patch, 2 * patch)
    with torch.inference_mode():
        whole = net(images)
    found = run(TimmTeacher(net, PREPROCESSING, {}, layer=-2), images)
    equal(found.summary, whole)
    net.blocks = net.blocks[:-1]
    with torch.inference_mode():
        cut = net.forward_features(images)[:, net.num_prefix_tokens :]
    equal(found.patches.flatten(1, 2), cut)


def test_layers_count_from_either_end_and_are_the_same_teacher() -> None:
    net = create("vit_tiny_patch16_224", depth=3, img_size=32)
    first = TimmTeacher(net, PREPROCESSING, {}, layer=0)
    last = TimmTeacher(net, PREPROCESSING, {}, layer=-3)
    assert first.identity() == last.identity()
    with pytest.raises(UsageError, match="layer=3 does not exist; the model has 3 layers"):
        TimmTeacher(net, PREPROCESSING, {}, layer=3)


@pytest.mark.parametrize("neck", [False, True])
def test_sams_encoder_is_dense_before_and_after_its_neck(neck: bool) -> None:
    net = create("samvit_base_patch16", depth=2, global_attn_indexes=(1,))
    # Smaller than SAM's own 1024 pixels: the encoder resamples its positions.
    images = torch.randn(1, 3, 64, 96)
    found = run(TimmTeacher(net, PREPROCESSING, {}, norm=neck, summary="none"), images)
    with torch.inference_mode():
        after = net.forward_features(images)
        expected = after.permute(0, 2, 3, 1)
        if not neck:
            after_own = net.neck(found.patches.permute(0, 3, 1, 2))
    if neck:
        assert found.patches.shape == (1, 4, 6, 256)
        equal(found.patches, expected)
    else:
        assert found.patches.shape == (1, 4, 6, 768)
        equal(after_own, after)
    assert found.summary is None


MAPS = [
    ("convnext_atto", {}, (2, 3)),
    ("resnet18", {}, (2, 3)),
    ("fastvit_mci0", {}, (2, 3)),
    ("swin_tiny_patch4_window7_224", {"img_size": (64, 96), "depths": (1, 1, 1, 1)}, (2, 3)),
]


@pytest.mark.parametrize(("name", "kwargs", "grid"), MAPS)
def test_maps_in_either_order_keep_rows_and_columns(
    name: str, kwargs: dict[str, Any], grid: tuple[int, int]
) -> None:
    net = create(name, **kwargs)
    images = torch.randn(2, 3, 64, 96)
    found = run(TimmTeacher(net, PREPROCESSING, {}), images)
    with torch.inference_mode():
        own = net.forward_features(images)
        head = net.forward_head(own, pre_logits=True)
    if tuple(own.shape[1:3]) != grid:
        own = own.permute(0, 2, 3, 1)
    assert found.patches.shape[1:3] == grid
    equal(found.patches, own)
    equal(found.summary, head)


@pytest.mark.parametrize(("name", "kwargs", "grid"), MAPS)
def test_an_earlier_stage_of_a_map_is_finer(
    name: str, kwargs: dict[str, Any], grid: tuple[int, int]
) -> None:
    net = create(name, **kwargs)
    images = torch.randn(2, 3, 64, 96)
    last = run(TimmTeacher(net, PREPROCESSING, {}), images)
    found = run(TimmTeacher(net, PREPROCESSING, {}, layer=-2), images)
    assert found.patches.shape[1:3] == (2 * grid[0], 2 * grid[1])
    assert last.summary is not None
    equal(found.summary, last.summary)


def test_hieras_shuffled_tokens_are_put_back_in_order() -> None:
    net = create("hiera_tiny_224")
    images = torch.zeros(1, 3, 224, 224)
    changed = images.clone()
    changed[:, :, :32, 192:] = 3.0  # the upper right patch
    with torch.inference_mode():
        naive = net.forward_features(images)
    assert naive.shape == (1, 49, 768)  # no grid to be seen
    teacher = TimmTeacher(net, PREPROCESSING, {})
    difference = (run(teacher, changed).patches - run(teacher, images).patches).abs().sum(-1)
    assert difference.shape == (1, 7, 7)
    assert int(difference.flatten().argmax()) == 6


def test_a_state_dict_in_another_layout_loads_by_timms_own_rules() -> None:
    net = create("vit_tiny_patch16_224", depth=1, img_size=32)
    other = create("vit_tiny_patch16_224", depth=1, img_size=64)
    state = dict(other.state_dict())
    state["head.weight"], state["head.bias"] = torch.zeros(10, 192), torch.zeros(10)
    del state["norm.bias"]
    with pytest.raises(TeacherError, match=r"lacks norm\.bias, holds the unknown none"):
        load_weights(net, fitted_state(net, state), "file")
    state["norm.bias"] = torch.zeros(192)
    state["pos_embed"] = torch.randn(1, 5, 192)
    load_weights(net, fitted_state(net, state), "file")


def small_tower(name: str, **vision: Any) -> Any:
    """An open_clip model with its real image tower, and hardly any text tower."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"].update(vision)
    config["text_cfg"] = {"layers": 1, "vocab_size": 50, "width": 64, "heads": 2}
    for key in ("custom_text", "multimodal_cfg"):
        config.pop(key, None)
    return open_clip.CustomTextCLIP(**config).eval()


@pytest.mark.parametrize(
    ("name", "vision", "grid"),
    [
        ("ViT-B-32", {"layers": 2}, (7, 7)),
        ("ViT-B-16-quickgelu", {"layers": 2, "image_size": 64}, (4, 4)),
        ("coca_ViT-B-32", {"layers": 2}, (7, 7)),
        ("ViT-B-16-SigLIP2", {}, (14, 14)),
        ("EVA02-B-16", {}, (14, 14)),
        ("MobileCLIP2-S0", {}, (8, 8)),
        ("MobileCLIP2-B", {}, (14, 14)),
        ("convnext_base_w", {}, (8, 8)),
        ("RN50", {}, (7, 7)),
    ],
)
def test_open_clips_towers_give_their_own_embedding_and_their_patches(
    name: str, vision: dict[str, Any], grid: tuple[int, int]
) -> None:
    model = small_tower(name, **vision)
    visual = model.visual
    size = visual.image_size
    images = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
    found = run(OpenClipTeacher(model, PREPROCESSING, {}), images)
    with torch.inference_mode():
        expected = visual(images)
        if hasattr(visual, "trunk"):
            own = visual.trunk.forward_features(images)
        elif hasattr(visual, "transformer"):
            own = visual.transformer(visual._embeds(images))
            own = own if visual.attn_pool is not None else visual.ln_post(own)
        else:
            own = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    equal(found.summary, expected[0] if isinstance(expected, tuple) else expected)
    assert tuple(found.patches.shape[1:3]) == grid
    tokens = own.flatten(2).transpose(1, 2) if own.ndim == 4 else own[:, -grid[0] * grid[1] :]
    equal(found.patches.flatten(1, 2), tokens)


def test_the_penultimate_layer_of_clip_is_the_tower_cut_there() -> None:
    model = small_tower("ViT-B-32", layers=3)
    images = torch.randn(1, 3, 224, 224)
    found = run(OpenClipTeacher(model, PREPROCESSING, {}, layer=-2, norm=False), images)
    model.visual.transformer.resblocks = model.visual.transformer.resblocks[:-1]
    with torch.inference_mode():
        own = model.visual.transformer(model.visual._embeds(images))[:, 1:]
    equal(found.patches.flatten(1, 2), own)


def test_the_inputs_of_the_families_are_those_of_their_configs() -> None:
    stated = {
        "vit_small_patch14_reg4_dinov2": (518, (0.485, 0.456, 0.406)),
        "vit_base_patch16_siglip_224": (224, (0.5, 0.5, 0.5)),
        "samvit_base_patch16": (1024, (0.485, 0.456, 0.406)),
    }
    for name, (side, mean) in stated.items():
        found = preprocessing_of(create(name, depth=1))
        assert (found.size, found.mean) == ((side, side), mean)
