"""Options that every teacher takes, whatever its source: its input, and the grid of its patches.

* ``mean``, ``std`` (one number, or three with commas) and ``interpolation`` replace what the
  teacher's own config says.
* ``grid=16x16`` brings the patches to that grid, with ``resample=area`` (the default: each cell is
  the mean of what it covers) or ``bilinear``.
* ``pad_from=256`` renders the view at 256 x 256, pads it below and to the right with zeros (after
  normalisation) to the teacher's own size, and crops the features to the part that shows the
  image: how an encoder of a fixed large input, SAM's, is matched with a small student.
* ``licence=mit`` is what the cache records where the teacher's source states none, or another.

Without any of them a teacher is used as it is, and its identity does not mention them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from jaxtyping import Float

from phistill.errors import TeacherError, UsageError

from .contract import Features, Preprocessing, Teacher
from .options import COMMON, side

if TYPE_CHECKING:
    import torch

RESAMPLINGS = ("area", "bilinear")


@dataclass(frozen=True, kw_only=True, slots=True)
class WrapperOptions:
    """What is changed about a teacher; nothing by default."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    grid: tuple[int, int] | None = None
    """(h, w) that the patches are resampled to."""
    resample: str = "area"
    pad_from: int | None = None
    """Side in pixels of the view inside the padded input."""
    licence: str | None = None
    """Of the weights, as the user states it; not part of the identity."""

    @classmethod
    def take(cls, options: dict[str, str]) -> Self:
        """Remove these options from ``options`` and parse them; UsageError on a wrong value."""
        texts = {key: options.pop(key) for key in COMMON if key in options}
        resample = texts.get("resample", "area")
        if resample not in RESAMPLINGS:
            raise UsageError(
                f"option resample={resample!r} is not known; choose one of "
                f"{', '.join(RESAMPLINGS)}."
            )
        if "resample" in texts and "grid" not in texts:
            raise UsageError("option resample says how to reach a grid; give grid=HxW too.")
        return cls(
            mean=_three(texts, "mean"),
            std=_three(texts, "std"),
            interpolation=texts.get("interpolation"),
            grid=_grid(texts["grid"]) if "grid" in texts else None,
            resample=resample,
            pad_from=side(texts["pad_from"]) if "pad_from" in texts else None,
            licence=texts.get("licence"),
        )

    def apply(self, teacher: Teacher) -> Teacher:
        """The teacher with these changes; itself when there are none."""
        return teacher if self == WrapperOptions() else TeacherWrapper(teacher, self)


class TeacherWrapper(Teacher):
    """A teacher whose input or grid was changed by options."""

    def __init__(self, teacher: Teacher, options: WrapperOptions) -> None:
        self._teacher, self._options = teacher, options
        self.licence = options.licence or teacher.licence
        self.notes = teacher.notes
        own = teacher.preprocessing()
        self._full_size = own.size
        inner = options.pad_from
        if inner is not None and inner > min(own.size):
            raise UsageError(
                f"option pad_from={inner} must be at most the teacher's input, {min(own.size)}."
            )
        self._preprocessing = replace(
            own,
            mean=options.mean or own.mean,
            std=options.std or own.std,
            interpolation=options.interpolation or own.interpolation,
            size=own.size if inner is None else (inner, inner),
        )

    def identity(self) -> Mapping[str, Any]:
        identity = dict(self._teacher.identity())
        if self._options.grid is not None:
            identity["resampled_to"] = [*self._options.grid, self._options.resample]
        if self._options.pad_from is not None:
            identity["padded_to"] = list(self._full_size)
        return identity

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self._teacher.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        features = self._teacher.features(self._padded(images))
        return self._on_grid(self._cropped(features, (images.shape[2], images.shape[3])))

    def text_features(self, texts: Sequence[str]) -> Float[torch.Tensor, "n d"]:
        return self._teacher.text_features(texts)

    def let_text_go(self) -> None:
        self._teacher.let_text_go()

    def shares_forward(self, other: Teacher) -> bool:
        """Whether one forward pass of the teachers inside serves both."""
        return (
            isinstance(other, TeacherWrapper)
            and other._options.pad_from == self._options.pad_from
            and other._preprocessing == self._preprocessing
            and self._teacher.shares_forward(other._teacher)
        )

    def features_together(
        self, teachers: Sequence[Teacher], images: Float[torch.Tensor, "b 3 h w"]
    ) -> list[Features]:
        wrappers = [teacher for teacher in teachers if isinstance(teacher, TeacherWrapper)]
        inside = [wrapper._teacher for wrapper in wrappers]
        size = (images.shape[2], images.shape[3])
        features = self._teacher.features_together(inside, self._padded(images))
        return [
            wrapper._on_grid(wrapper._cropped(one, size))
            for wrapper, one in zip(wrappers, features, strict=True)
        ]

    def _on_grid(self, features: Features) -> Features:
        if self._options.grid is None:
            return features
        patches = resampled(features.patches, self._options.grid, self._options.resample)
        return replace(features, patches=patches)

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        if self._options.pad_from is None:
            return images
        import torch

        height, width = self._full_size
        inner_h, inner_w = images.shape[2:]
        return torch.nn.functional.pad(images, (0, width - inner_w, 0, height - inner_h))

    def _cropped(self, features: Features, inner: tuple[int, int]) -> Features:
        """The part of the patches that shows the image."""
        if self._options.pad_from is None:
            return features
        height, width = self._full_size
        inner_h, inner_w = inner
        grid_h, grid_w = features.patches.shape[1:3]
        if grid_h * inner_h % height or grid_w * inner_w % width:
            raise TeacherError(
                f"pad_from={inner_h} cuts through a patch: the teacher sees {height} x {width} "
                f"pixels as {grid_h} x {grid_w} patches. Take a multiple of "
                f"{height // grid_h} pixels."
            )
        rows, columns = grid_h * inner_h // height, grid_w * inner_w // width
        return replace(features, patches=features.patches[:, :rows, :columns])


def resampled(
    patches: Float[torch.Tensor, "b h w c"], grid: tuple[int, int], how: str
) -> Float[torch.Tensor, "b h2 w2 c"]:
    """Patches on another grid, in float32.

    ``area`` averages over what each new cell covers; ``bilinear`` reads at the centres of the new
    cells (align_corners=False), with a wider filter where the grid shrinks.
    """
    from torch.nn.functional import adaptive_avg_pool2d, interpolate

    maps = patches.permute(0, 3, 1, 2).float()
    if how == "area":
        maps2 = adaptive_avg_pool2d(maps, grid)
    else:
        maps2 = interpolate(maps, grid, mode="bilinear", align_corners=False, antialias=True)
    return maps2.permute(0, 2, 3, 1)


def _three(options: Mapping[str, str], key: str) -> tuple[float, float, float] | None:
    if key not in options:
        return None
    try:
        values = [float(part) for part in options[key].split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise UsageError(f"option {key}={options[key]!r} must be one number, or three with commas.")
    red, green, blue = values * (3 // len(values))
    return red, green, blue


def _grid(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    return side(height), side(width if cross else height)
