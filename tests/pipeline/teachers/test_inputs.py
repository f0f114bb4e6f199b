"""What a model does not look at, or cannot take, is said before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phistill.errors import PhistillError, TeacherError, UsageError
from phistill.pipeline import CacheSettings, Features, Preprocessing, Teacher, extract
from phistill.pipeline.teachers.check import check_teacher
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_tiny_patch16_224?random=0&size=239",
        "timm:vit_tiny_patch16_224?random=0&size=224x230",
        "timm:vit_small_patch14_dinov2?random=0&size=224x100",
        "open_clip:ViT-B-32/openai?random=0&size=230",
    ],
)
def test_a_size_that_the_patch_does_not_divide_is_refused_with_the_next_ones(spec: str) -> None:
    with pytest.raises(UsageError, match=r"no multiple of the patch's \d+ pixels.* Take \d+ or"):
        TeacherSpec.parse(spec).build()


def test_edges_that_change_nothing_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    spec = "t=timm:convnext_atto?random=0&size=66x64"
    notes = " ".join(check_teacher(spec, "cpu").notes)
    assert "lowest rows of an image change nothing: 66 x 64 pixels are no multiple" in notes
    assert "columns" not in notes
    extract(
        folder, tmp_path / "c", [spec], settings=CacheSettings(pixel_size=0),
    )  # fmt: skip
    assert "t does not look at the lowest rows of its input." in caplog.messages
    whole = check_teacher("t=timm:convnext_atto?random=0&size=64", "cpu")
    assert whole.notes == ("the weights are random.",)


def test_a_grid_that_does_not_divide_the_input_is_noted() -> None:
    report = check_teacher("timm:resnet10t?random=0&size=225", "cpu")
    assert "225 x 225 pixels are no multiple of the grid 8 x 8" in " ".join(report.notes)


def test_windows_that_are_filled_with_padding_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Swin's windows of 7 divide the maps of 224 pixels and none of those of 256."""
    caplog.set_level("INFO", "phistill")
    spec = "t=timm:swin_tiny_patch4_window7_224?random=0"
    assert "pad" not in " ".join(check_teacher(spec, "cpu").notes)
    notes = " ".join(check_teacher(f"{spec}&size=256", "cpu").notes)
    assert "64 x 64 to 70 x 70, 32 x 32 to 35 x 35, 16 x 16 to 21 x 21, 8 x 8 to 14 x 14" in notes
    extract(
        folder, tmp_path / "c", [f"{spec}&size=256"], settings=CacheSettings(pixel_size=0),
    )  # fmt: skip
    assert any(
        text.startswith("t pads its maps for windows: 64 x 64 to 70") for text in caplog.messages
    )


def test_padding_of_a_convolution_is_no_window() -> None:
    report = check_teacher("timm:tf_efficientnet_lite0?random=0&size=64", "cpu")
    assert "pad" not in " ".join(report.notes)


class Fails(Teacher):
    def identity(self) -> dict[str, object]:
        return {"source": "test"}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        raise RuntimeError("the kernel is larger\nthan the input")


def test_an_error_in_the_first_pass_is_one_line_with_the_size() -> None:
    with pytest.raises(TeacherError, match=r"8 x 8 pixels: RuntimeError: the kernel is larger$"):
        TeacherRunner("t", "x:y", Fails(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        ("timm:coat_lite_tiny?random=0", (7, 7)),
        ("timm:crossvit_tiny_240?random=0", (14, 14)),
        ("timm:xcit_nano_12_p16_224?random=0", (14, 14)),
    ],
)
def test_models_of_several_scales_give_a_grid(spec: str, grid: tuple[int, int]) -> None:
    report = check_teacher(spec, "cpu")
    assert report.grid == grid
    assert not report.problems


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_small_patch16_dinov3?random=0&size=100",
        "timm:vit_tiny_patch16_224?random=0&size=8",
    ],
)
def test_what_cannot_be_run_is_an_error_of_ours(spec: str) -> None:
    with pytest.raises(PhistillError):
        check_teacher(spec, "cpu")
