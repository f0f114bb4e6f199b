"""Teachers from transformers, where it is installed: tokens and summary of the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phistill.errors import UsageError
from phistill.pipeline.teachers.contract import Preprocessing
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.pipeline.teachers.transformers import TransformersTeacher, build

transformers = pytest.importorskip("transformers")

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def model(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **more})
    return getattr(transformers, f"{kind}Model")(config).eval()


@pytest.mark.parametrize(
    ("kind", "more", "num_prefix", "num_registers"),
    [
        ("ViT", {}, 1, 0),
        ("Dinov2", {}, 1, 0),
        ("Dinov2WithRegisters", {"num_register_tokens": 4}, 5, 4),
        ("DINOv3ViT", {"num_register_tokens": 4}, 5, 4),
        ("CLIPVision", {}, 1, 0),
        ("SiglipVision", {}, 0, 0),
    ],
)
def test_tokens_are_stripped_and_the_pooler_is_the_models_own(
    kind: str, more: dict[str, Any], num_prefix: int, num_registers: int
) -> None:
    net = model(kind, **more)
    images = torch.randn(2, 3, 32, 32)
    teacher = TransformersTeacher(net, PREPROCESSING, {}, registers=num_registers > 0)
    with torch.inference_mode():
        found, own = teacher.features(images), net(images)
    tokens = own.last_hidden_state
    assert tokens.shape[1] == num_prefix + 16
    torch.testing.assert_close(found.patches.flatten(1, 2), tokens[:, num_prefix:])
    assert found.summary is not None
    torch.testing.assert_close(found.summary, own.pooler_output)
    if num_registers:
        assert found.registers is not None
        torch.testing.assert_close(found.registers, tokens[:, 1:5])


def test_a_saved_model_is_built_with_the_input_it_states(tmp_path: Path) -> None:
    net = model("Dinov2")
    net.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "resample": 2,'
        ' "do_center_crop": true, "size": {"shortest_edge": 40},'
        ' "crop_size": {"height": 32, "width": 32}, "image_processor_type": "BitImageProcessor"}'
    )
    teacher = build(str(tmp_path), {})
    assert teacher.preprocessing() == Preprocessing(
        size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation="bilinear"
    )
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = net(images).last_hidden_state[:, 1:]
        found = teacher.features(images)
    torch.testing.assert_close(found.patches.flatten(1, 2), expected)


def test_an_earlier_layer_is_a_hidden_state() -> None:
    net = model("Dinov2")
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        found = TransformersTeacher(net, PREPROCESSING, {}, layer=-2, summary="class").features(
            images
        )
        hidden = net(images, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(found.patches.flatten(1, 2), hidden[:, 1:])
    assert found.summary is not None
    torch.testing.assert_close(found.summary, hidden[:, 0])


@pytest.mark.parametrize("layer", [-1, -2])
def test_sams_neck_and_layers_keep_rows_and_columns(layer: int) -> None:
    more = {"output_channels": 16, "global_attn_indexes": [1], "window_size": 2, "image_size": 64}
    net = model("SamVision", **more)
    for parameter in net.parameters():  # the neck's are left uninitialised
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, :8, 56:] += 5.0  # the upper right patch
    teacher = TransformersTeacher(net, PREPROCESSING, {}, layer=layer)
    with torch.inference_mode():
        one, two = teacher.features(images), teacher.features(changed)
    assert one.patches.shape == (1, 8, 8, 16 if layer == -1 else 32)
    assert one.summary is None
    difference = (two.patches - one.patches).abs().sum(-1)
    # The neck's 3 x 3 convolution may move the largest change to a neighbour.
    assert int(difference.flatten().argmax()) in (6, 7, 14, 15)


@pytest.mark.parametrize("revision", ["", "&revision=main"])
def test_a_repositorys_own_code_needs_a_commit(revision: str) -> None:
    spec = TeacherSpec("r", "transformers", "nvidia/RADIO", ())
    options = dict([("remote_code", "true"), *([("revision", "main")] if revision else [])])
    with pytest.raises(UsageError, match="revision=40 hexadecimal digits"):
        build(spec.model, options)


STATED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 3}


@pytest.mark.parametrize(
    ("config", "side", "size"),
    [
        # An old config: whole numbers, and no word on which class it is of.
        ({**STATED, "size": 32, "crop_size": 32, "do_center_crop": True}, 32, 32),
        ({**STATED, "do_normalize": False, "size": {"height": 24, "width": 24}}, 24, 24),
        ({**STATED, "do_rescale": False, "do_normalize": False, "size": 32}, 32, 32),
        ({**STATED, "rescale_factor": 1 / 127.5, "size": 32}, 32, 32),
        ({"feature_extractor_type": "CLIPFeatureExtractor", **STATED, "size": 40, "crop_size": 32},
         40, 32),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40},
          "crop_size": {"height": 32, "width": 32}}, 40, 32),
        ({"image_processor_type": "BitImageProcessor", **STATED, "size": {"shortest_edge": 40},
          "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}, 40, 32),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224},
          "crop_pct": 0.875}, 256, 224),
        ({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 40},
          "crop_size": {"height": 32, "width": 32}}, 40, 32),
    ],
)  # fmt: skip
def test_the_processor_itself_is_the_reference(
    config: dict[str, Any], side: int, size: int, tmp_path: Path
) -> None:
    model("ViT").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    # A picture that the processor need not resize: its crop is compared to rounding.
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    (expected,) = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    teacher = build(str(tmp_path), {})
    preprocessing = teacher.preprocessing()
    assert preprocessing.size == (size, size) == tuple(expected.shape[1:])
    first = (side - size) // 2
    crop = torch.from_numpy(pixels[first : first + size, first : first + size]).permute(2, 0, 1)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    ours = (crop / 255 - mean) / std
    if config.get("image_processor_type", "").startswith("MobileViT"):
        assert teacher.identity()["channels"] == "bgr"
        ours = ours.flip(0)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-4)
    assert preprocessing.interpolation in ("bicubic", "bilinear")


def test_numbers_of_a_config_are_kept_as_they_are_stated(tmp_path: Path) -> None:
    model("ViT").save_pretrained(tmp_path)
    stated = [0.48145466, 0.4578275, 0.40821073]
    config = {"size": 32, "image_mean": stated, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert build(str(tmp_path), {}).preprocessing().mean == tuple(stated)


def test_a_processor_that_cuts_images_into_pieces_is_refused(tmp_path: Path) -> None:
    model("ViT").save_pretrained(tmp_path)
    config = {"image_processor_type": "Siglip2ImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="wanted \\(1, 3, h, w\\)"):
        build(str(tmp_path), {})


def test_positions_are_resampled_at_another_size() -> None:
    net = model("ViT")
    larger = Preprocessing(size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        patches = TransformersTeacher(net, larger, {}).features(images).patches
        own = net(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    assert patches.shape == (1, 6, 6, 32)
    torch.testing.assert_close(patches.flatten(1, 2), own)


def test_a_masked_autoencoder_sees_every_patch_in_its_place() -> None:
    net = model("ViTMAE", mask_ratio=0.75)
    images = torch.randn(2, 3, 32, 32)
    teacher = TransformersTeacher(net, PREPROCESSING, {})
    with torch.inference_mode():
        patches = teacher.features(images).patches
        again = teacher.features(images).patches
        # Its own way: in a random order, and put back; attention does not mind the order.
        own = net(images)
        order = own.ids_restore[..., None].expand(-1, -1, 32)
        expected = own.last_hidden_state[:, 1:].gather(1, order)
    torch.testing.assert_close(patches, again)
    torch.testing.assert_close(patches.flatten(1, 2), expected)


SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


@pytest.mark.parametrize(
    ("kind", "config", "grid"),
    [
        ("Swin", {**SWIN, "image_size": 64, "patch_size": 4}, (8, 8)),
        ("Swinv2", {**SWIN, "image_size": 64, "patch_size": 4}, (8, 8)),
        ("DINOv3ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "image_size": 64},
         (2, 2)),
        ("Levit", {"image_size": 224}, (4, 4)),
    ],
)  # fmt: skip
def test_a_coarser_grid_follows_from_the_number_of_tokens(
    kind: str, config: dict[str, Any], grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
    side = config["image_size"]
    images = torch.randn(1, 3, side, side)
    size = Preprocessing(size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.inference_mode():
        patches = TransformersTeacher(net.eval(), size, {}).features(images).patches
        tokens = net(images).last_hidden_state
    assert patches.shape[1:3] == grid
    torch.testing.assert_close(patches.flatten(1, 2), tokens[:, -grid[0] * grid[1] :])
