"""Teachers from transformers, where it is installed: tokens and summary of the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
