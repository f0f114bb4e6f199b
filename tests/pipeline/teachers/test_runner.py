"""What a runner hands over is the teacher's features in float16, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from phistill.errors import TeacherError
from phistill.pipeline.teachers.contract import Features, Preprocessing, Teacher
from phistill.pipeline.teachers.runner import (
    TeacherRunner,
    default_rows_per_forward,
    run_together,
    sharing,
)
from phistill.pipeline.teachers.spec import TeacherSpec


class Echo(Teacher):
    """Patches are the normalised pixels times ``scale``; the summary is in float64."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.grow = 0

    def identity(self) -> Mapping[str, Any]:
        return {"source": "test"}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(4, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        patches = images.permute(0, 2, 3, 1) * self.scale
        if self.grow:
            patches = patches[:, : -self.grow]
        return Features(patches, images.double().mean((2, 3)))


@pytest.fixture
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)


def runner(teacher: Echo) -> TeacherRunner:
    return TeacherRunner("t", "x:y", teacher, torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_batches_of_any_size_give_the_same_float16_values(pixels: Any, rows: int) -> None:
    arrays, reasons = runner(Echo()).run(pixels, rows)
    scaled = (pixels / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    assert reasons == {}
    assert arrays["patches"].dtype == np.float16
    # Float32 arithmetic, then one rounding to 11 bits.
    np.testing.assert_allclose(arrays["patches"], scaled.reshape(7, 24, 3), rtol=2**-11, atol=1e-6)
    assert arrays["summary"].dtype == np.float32
    np.testing.assert_allclose(arrays["summary"], scaled.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_torchs_rounding_to_float16_is_numpys() -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.uniform(-25, 12, 100_000)).astype(np.float32)
    values = np.concatenate([values, -values, [0.0, 65519.0, 65520.0, 6e-8, 2.9e-8]]).astype("f4")
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(torch.from_numpy(values).half().numpy(), expected)


def test_rows_that_float16_cannot_hold_are_named_with_their_largest_value(pixels: Any) -> None:
    pixels[2] = 255
    arrays, reasons = runner(Echo(scale=30_000.0)).run(pixels, 3)
    # (1 - 0.2) / 0.25 * 30,000, in float32
    assert reasons[2] == "t/patches exceeds float16 (largest 96000)"
    assert np.isnan(arrays["patches"][2].astype(float)).all()
    assert np.isnan(arrays["summary"][2]).all()


def test_nan_and_infinity_are_named(pixels: Any) -> None:
    teacher = Echo()
    one = runner(teacher)
    for bad in (float("nan"), float("inf")):
        teacher.scale = bad
        _, reasons = one.run(pixels, 3)
        assert set(reasons.values()) == {"t/patches holds NaN or infinity"}


def test_a_teacher_that_changes_its_shape_is_stopped(pixels: Any) -> None:
    teacher = Echo()
    one = runner(teacher)
    teacher.grow = 1
    with pytest.raises(TeacherError, match=r"gave patches of shape \(18, 3\)"):
        one.run(pixels, 3)


@pytest.mark.parametrize(
    ("device", "size", "rows"),
    [("cpu", (224, 224), 32), ("cpu", (256, 256), 32), ("cpu", (1024, 1024), 2),
     ("cuda", (1024, 1024), 8), ("cuda", (224, 224), 128), ("cpu", (4096, 4096), 1)],
)  # fmt: skip
def test_large_inputs_go_in_small_batches(device: str, size: tuple[int, int], rows: int) -> None:
    assert default_rows_per_forward(device, size) == rows


@pytest.mark.parametrize("grid", ["", "&grid=1x1"])
def test_layers_of_one_model_share_its_weights_and_one_forward(grid: str) -> None:
    base = f"timm:vit_tiny_patch16_224?random=0&size=32{grid}"
    options = ("", "&layer=-3&summary=none", "&layer=-6&summary=mean", "&norm=false")
    texts = [base + more for more in options]
    cpu = torch.device("cpu")
    runners = {
        f"t{number}": TeacherRunner(f"t{number}", text, TeacherSpec.parse(text).build(), cpu)
        for number, text in enumerate(texts)
    }
    inner: list[Any] = [getattr(r._teacher, "_teacher", r._teacher) for r in runners.values()]
    model: Any = inner[0].model
    assert all(teacher.model is model for teacher in inner)
    assert sharing(runners) == [["t0", "t1", "t2"], ["t3"]]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    calls: list[int] = []
    hook = model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    together = run_together([runners[name] for name in ("t0", "t1", "t2")], pixels, 2)
    assert len(calls) == 3  # batches of 2, 2 and 1
    hook.remove()
    for name, (arrays, reasons) in zip(("t0", "t1", "t2"), together, strict=True):
        alone, _ = runners[name].run(pixels, 2)
        assert reasons == {}
        assert set(arrays) == set(alone)
        for kind, values in arrays.items():
            np.testing.assert_array_equal(values, alone[kind])
