"""Options that change a teacher's input or the grid of its patches, whatever its source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch

from phistill.errors import TeacherError, UsageError
from phistill.pipeline.teachers.contract import Preprocessing
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.pipeline.teachers.timm import TimmTeacher
from phistill.pipeline.teachers.wrapper import TeacherWrapper, WrapperOptions, resampled


def test_without_options_a_teacher_is_itself(tiny: str) -> None:
    teacher = TeacherSpec.parse(tiny).build()
    assert WrapperOptions().apply(teacher) is teacher
    assert not isinstance(teacher, TeacherWrapper)


def test_input_options_replace_what_the_config_says(tiny: str) -> None:
    text = f"{tiny}?mean=0.1,0.2,0.3&std=0.5&interpolation=bilinear&scale=2"
    teacher = TeacherSpec.parse(text).build()
    assert teacher.preprocessing() == Preprocessing(
        size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation="bilinear"
    )
    assert teacher.identity() == TeacherSpec.parse(f"{tiny}?scale=2").build().identity()


@pytest.mark.parametrize(
    "option",
    ["mean=a", "mean=1,2", "std=0", "interpolation=best", "grid=0x3", "grid=x", "grid=-1",
     "resample=area", "grid=2x2&resample=max", "pad_from=17", "pad_from=0", "size=1"],
)  # fmt: skip
def test_a_wrong_value_is_refused(tiny: str, option: str) -> None:
    text = f"{tiny}?{option}"
    if option == "size=1":
        text = f"timm:vit_tiny_patch16_224?random=1&{option}x2x3"
    with pytest.raises(UsageError):
        TeacherSpec.parse(text).build()


def test_the_area_rule_averages_what_a_cell_covers() -> None:
    patches = torch.arange(36.0).reshape(1, 6, 6, 1)
    found = resampled(patches, (3, 2), "area")
    expected = np.arange(36.0).reshape(3, 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found[0, :, :, 0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["area", "bilinear"])
def test_resampling_keeps_constants_and_the_same_grid(how: str) -> None:
    constant = torch.full((1, 7, 5, 3), 2.5)
    torch.testing.assert_close(resampled(constant, (4, 9), how), torch.full((1, 4, 9, 3), 2.5))
    patches = torch.randn(2, 5, 6, 3)
    torch.testing.assert_close(resampled(patches, (5, 6), how), patches)


def test_another_grid_is_another_teacher(tiny: str) -> None:
    identities = [
        TeacherSpec.parse(f"{tiny}{query}").build().identity()
        for query in ("", "?grid=2x2", "?grid=2x2&resample=bilinear", "?pad_from=8")
    ]
    assert identities[1]["resampled_to"] == [2, 2, "area"]
    assert len({str(sorted(identity.items())) for identity in identities}) == 4


def test_a_small_view_is_padded_and_its_features_cropped() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model("convnext_atto", num_classes=0).eval()
    own = Preprocessing(size=(128, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    teacher = WrapperOptions(pad_from=64).apply(TimmTeacher(net, own, {}, summary="none"))
    assert teacher.preprocessing().size == (64, 64)
    images = torch.randn(1, 3, 64, 64)
    padded = torch.zeros(1, 3, 128, 128)
    padded[:, :, :64, :64] = images
    with torch.inference_mode():
        found = teacher.features(images)
        whole = net.forward_features(padded).permute(0, 2, 3, 1)
    torch.testing.assert_close(found.patches, whole[:, :2, :2], rtol=0, atol=0)
    cut = WrapperOptions(pad_from=40).apply(TimmTeacher(net, own, {}, summary="none"))
    with pytest.raises(TeacherError, match="Take a multiple of 32 pixels"):
        cut.features(torch.zeros(1, 3, 40, 40))


def test_a_licence_is_what_the_config_states() -> None:
    licences = {
        name: TeacherSpec.parse(f"timm:{name}?random=0&grid=2x2").build().licence
        for name in ("convnextv2_atto.fcmae", "vit_tiny_patch16_224.augreg_in21k")
    }
    assert licences["convnextv2_atto.fcmae"] == "cc-by-nc-4.0"
    assert set(licences.values()) <= {"cc-by-nc-4.0", "apache-2.0", None}


def test_weights_in_half_precision_give_features_near_the_full_ones() -> None:
    full = TeacherSpec.parse("timm:vit_tiny_patch16_224?random=3&size=32").build()
    half = TeacherSpec.parse("timm:vit_tiny_patch16_224?random=3&size=32&dtype=bfloat16").build()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, found = full.features(images).patches, half.features(images).patches
    assert found.dtype == torch.bfloat16
    assert full.identity()["dtype"] == "float32"
    # bfloat16 keeps 8 bits; a twelve-block network accumulates some of them.
    assert float((found.float() - expected).abs().mean() / expected.abs().mean()) < 0.03


def test_layers_that_are_padded_alike_share_one_forward() -> None:
    base = "timm:samvit_base_patch16.sa1b?random=0&size=64&pad_from=32"
    one, other = (TeacherSpec.parse(base + more).build() for more in ("", "&layer=-6&grid=1x1"))
    assert isinstance(one, TeacherWrapper)
    assert isinstance(other, TeacherWrapper)
    assert one.shares_forward(other)
    different = TeacherSpec.parse(base.replace("pad_from=32", "pad_from=48")).build()
    assert not one.shares_forward(different)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = one.features_together([one, other], images)
        for found, teacher in zip(together, (one, other), strict=True):
            torch.testing.assert_close(found.patches, teacher.features(images).patches)
    assert together[0].patches.shape[1:3] == (2, 2)
