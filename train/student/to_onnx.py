"""student.onnx: backbone and heads as one graph, any batch, and any size where the backbone allows.

Traced, because the newer exporter fixes a ViT's grid. Two things are written otherwise than they
are computed, with the same numbers: grids are always resized, and a position embedding is resampled
by two products, since runtimes differ in antialiased cubics. What was written is run with
onnxruntime and compared before it is kept.

p old grid, h w new grid, n prefix tokens, d width.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phistill.errors import PhistillError, UsageError

from ..loss.token_grids import GridRule
from .predict import TrainedStudent

OPSET = 18
"""The lowest that all recent runtimes read and that has every operation used."""

TOLERANCE = 1e-4
"""Of the largest value of an output. Measured: 2e-6 at most."""

RESAMPLING_MODULES = ("timm.models.vision_transformer", "timm.models.eva")


@dataclass(frozen=True)
class OnnxStudent:
    """A graph that was compared with the student."""

    data: bytes
    outputs: tuple[str, ...]
    """TEACHER/KIND."""

    any_size: bool
    """Whether height and width are free, in whole patches."""


def require_onnx() -> None:
    """UsageError naming the extra when onnx or onnxruntime is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an ONNX file needs {' and '.join(missing)}. Install the extra: "
            "pip install phistill[onnx]."
        )


def to_onnx(student: TrainedStudent) -> OnnxStudent:
    """The graph of a folded student: ``images`` (b, 3, H, W) in 0 to 1 to one output per target.

    PhistillError when onnxruntime gives other numbers than torch.
    """
    require_onnx()
    side = student.image_size
    module = _Flat(student).eval()
    larger = (side + _stride(student), side + 2 * _stride(student))
    sizes = [(side, side), larger] if _takes(student, larger) else [(side, side)]
    worst = 0.0
    while sizes:
        data = _traced(module, side, any_size=len(sizes) > 1)
        worst = max(_difference(data, module, batch, size) for batch in (1, 3) for size in sizes)
        if worst <= TOLERANCE:
            return OnnxStudent(data, module.names, any_size=len(sizes) > 1)
        sizes.pop()  # such as relative positions: one size then
    raise PhistillError(
        f"onnxruntime gives other features than torch: they differ by {worst:.2g} of the largest. "
        f"{student.config.student} cannot be exported to ONNX; leave --onnx out."
    )


class _Flat(nn.Module):
    """Outputs as a tuple, in the order of the targets."""

    def __init__(self, student: TrainedStudent) -> None:
        super().__init__()
        self.student = student
        self.names = tuple(target.key for target in student.targets)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answers = self.student.raw(images)
        return tuple(answers[target.teacher][target.kind] for target in self.student.targets)


class _AlwaysMoved(GridRule):
    """A size that is compared while a graph is traced would be fixed in it."""

    def resize(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        align = None if self.interpolation == "nearest" else self.align_corners
        moved = nn.functional.interpolate(
            x.permute(0, 3, 1, 2), grid, mode=self.interpolation, align_corners=align
        )
        return moved.permute(0, 2, 3, 1)


def _traced(module: _Flat, side: int, *, any_size: bool) -> bytes:
    free = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    axes = {"images": free, **{name: {0: "batch"} for name in module.names}}
    file: Any = io.BytesIO()  # as the traced exporter takes it
    with _traceable(module.student), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about every branch of the backbone
        torch.onnx.export(
            module,
            (torch.rand(2, 3, side, side),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(module.names),
            dynamic_axes=axes,
        )
    return file.getvalue()


@contextmanager
def _traceable(student: TrainedStudent) -> Iterator[None]:
    rule = student.rule
    student.rule = _AlwaysMoved(interpolation=rule.interpolation, align_corners=rule.align_corners)
    modules = [importlib.import_module(name) for name in RESAMPLING_MODULES]
    own = [getattr(module, "resample_abs_pos_embed", None) for module in modules]
    for module in modules:
        module.resample_abs_pos_embed = resampled  # type: ignore[attr-defined]
    try:
        yield
    finally:
        student.rule = rule
        for module, function in zip(modules, own, strict=True):
            module.resample_abs_pos_embed = function  # type: ignore[attr-defined]


def resampled(
    posemb: Float[Tensor, "1 n+p d"],
    new_size: Any,
    old_size: Any = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> Float[Tensor, "1 n+h*w d"]:
    """timm's ``resample_abs_pos_embed`` (bicubic, antialiased) as two products."""
    prefix, grid = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    side = int(grid.shape[1] ** 0.5)
    height, width = (side, side) if old_size is None else (int(old_size[0]), int(old_size[1]))
    rows = _cubic(height, new_size[0], posemb)  # (h, height)
    columns = _cubic(width, new_size[1], posemb)  # (w, width)
    old = grid.reshape(height, width, -1).permute(2, 0, 1)  # (d, height, width)
    new = rows @ old @ columns.T  # (d, h, w)
    return torch.cat([prefix, new.flatten(1).T[None]], 1)


def _cubic(given: int, wanted: Any, like: Tensor) -> Tensor:
    """Weights (wanted, given) of a cubic with a = -1/2, stretched where it shrinks."""
    wanted = torch.as_tensor(wanted)
    scale = given / wanted.to(like.dtype)
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(wanted).to(like.dtype) + 0.5)[:, None] * scale
    pixel = torch.arange(given, dtype=like.dtype) + 0.5
    x = ((pixel - centre) / stretch).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


def _stride(student: TrainedStudent) -> int:
    return -(-student.image_size // min(student.student.grid))


def _takes(student: TrainedStudent, size: tuple[int, int]) -> bool:
    try:
        with torch.inference_mode():
            student(torch.zeros(1, 3, *size))
    except UsageError:
        return False
    return True


def _difference(data: bytes, module: _Flat, batch: int, size: tuple[int, int]) -> float:
    """Largest difference between onnxruntime and torch, in parts of an output's largest value."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        wanted = module(images)
    try:
        found = session.run(list(module.names), {"images": images.numpy()})
    except Exception:  # onnxruntime has no base class of its own
        return float("inf")
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return float("inf")
        apart = (torch.from_numpy(one) - other).abs().max() / other.abs().max().clamp(min=1e-6)
        worst = max(worst, float(apart))
    return worst
