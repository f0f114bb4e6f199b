"""A trained student as a module: images to every teacher's own feature space.

b images, H W pixels, T tokens of a teacher's grid, C D widths of its patches and summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from phistill.compute.devices import choose_device
from phistill.compute.memory import is_out_of_memory
from phistill.display import facts_html
from phistill.errors import UsageError
from phistill.stats import Normalizer
from phistill.stats.normalizer.torch_module import NormalizerModule

from .. import checkpoint
from ..checkpoint import Checkpoint, tensors_below
from ..config import TrainConfig
from ..loss.token_grids import GridRule
from ..targets import PATCHES, SUMMARY, Target
from .backbone import Student, build_student
from .pixels import Preparation, to_images

Prediction = dict[str, dict[str, Tensor]]


class Features(NamedTuple):
    """What a student says in the place of one teacher."""

    summary: Float[Tensor, "b D"] | None
    """None where the teacher has none or it was not learnt."""

    patches: Float[Tensor, "b T C"] | None
    """Row-major on the teacher's grid, which covers the image."""


class InverseModule(NormalizerModule):
    """x = Theta y + mean as a forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inverse(x)


class TrainedStudent(nn.Module):
    """A student that answers in the teachers' own spaces. Needs neither cache nor teachers.

    An ordinary module: it can be fine-tuned, moved and made part of another. ``normalizers`` are
    inverted behind the heads; None says that they are folded in already. Summaries that were learnt
    by direction are given the length that the teacher's have on training rows (root mean square).
    """

    def __init__(
        self,
        student: Student,
        config: TrainConfig,
        normalizers: Mapping[str, Normalizer] | None,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.student, self.config, self.facts = student, config, dict(facts)
        self.targets: tuple[Target, ...] = student.targets
        self.normalizers = None if normalizers is None else dict(normalizers)
        self.inverses = nn.ModuleList(
            nn.Identity() if normalizers is None else InverseModule(normalizers[target.key])
            for target in self.targets
        )
        self.rule = GridRule(
            interpolation=config.grid_interpolation, align_corners=config.grid_align_corners
        )
        self.norms: dict[str, float] = dict(facts["norms"])
        self.preparation = Preparation.of_run(facts)
        self.eval()

    def _repr_html_(self) -> str:
        num_weights = sum(one.numel() for one in self.student.parameters())
        widths = ", ".join(f"{target.key} {target.width}" for target in self.targets)
        facts = {
            "student": self.config.student,
            "weights": f"{num_weights:,}",
            "input": f"{self.image_size} px",
            "answers": widths,
            "device": self.device,
        }
        return facts_html("Student", facts)

    @property
    def image_size(self) -> int:
        """Side in pixels of the student's input; pixels of another side are resized."""
        return self.student.image_size

    @property
    def device(self) -> torch.device:
        return self.student.pixel_mean.device

    def preprocess(self, image: Image.Image) -> UInt8[Tensor, "3 S S"]:
        """A picture as the cache has shown its own: upright, over the background, squeezed."""
        return self.preparation(image)

    def forward(
        self, images: Float[Tensor, "b 3 H W"] | UInt8[Tensor, "b 3 H W"]
    ) -> dict[str, Features]:
        """Features by teacher. Images are uint8, or floating in units of 0 to 1.

        Any size will do that the backbone takes, whole patches of it at least.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(
                f"images are {tuple(images.shape)}; wanted (b, 3, H, W), as preprocess gives them."
            )
        answers = self.raw(images.float() / 255 if images.dtype == torch.uint8 else images)
        return {
            teacher: Features(kinds.get(SUMMARY), kinds.get(PATCHES))
            for teacher, kinds in answers.items()
        }

    def raw(self, images: Float[Tensor, "b 3 H W"]) -> Prediction:
        """The same by teacher and kind."""
        try:
            predictions = self.student(images).predictions
        except (AssertionError, RuntimeError, ValueError) as error:
            if images.shape[2:] == (self.image_size,) * 2 or is_out_of_memory(error):
                raise
            height, width = images.shape[2:]
            raise UsageError(
                f"this student does not take {height} x {width} pixels ({error}). "
                f"It was made for {self.image_size} x {self.image_size}."
            ) from error
        answers: Prediction = {}
        for target, inverse in zip(self.targets, self.inverses, strict=True):
            value = inverse(predictions[target.key].float())
            if target.kind != SUMMARY:
                value = self.rule.resize(value, target.grid).flatten(1, 2)
            elif target.key in self.norms:
                value = F.normalize(value, dim=-1) * self.norms[target.key]
            answers.setdefault(target.teacher, {})[target.kind] = value
        return answers

    @torch.inference_mode()
    def predict(
        self, pixels: UInt8[Tensor, "b S S 3"] | UInt8[np.ndarray, "b S S 3"]
    ) -> Prediction:
        """Features of stored pixels by teacher and kind, float32.

        patches (b, T, C) on the teacher's grid, row-major; summary (b, D).
        """
        batch = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        square = batch.ndim == 4 and batch.shape[1] == batch.shape[2]
        if batch.dtype != torch.uint8 or not square or batch.shape[-1] != 3:
            raise UsageError(
                f"pixels are {batch.dtype} {tuple(batch.shape)}; wanted uint8 (b, S, S, 3)."
            )
        return self.raw(to_images(batch.to(self.device), self.image_size))

    @torch.inference_mode()
    def features(self, pixels: UInt8[Tensor, "b S S 3"]) -> tuple[Tensor, Tensor]:
        """The backbone's own patch tokens (b, h, w, d) and the mean over them (b, d), float32."""
        images = to_images(pixels.to(self.device), self.image_size)
        tokens, _ = self.student.backbone(
            (images - self.student.pixel_mean) / self.student.pixel_std
        )
        return tokens.float(), tokens.float().mean((1, 2))


def load_run(
    run: Path | str,
    *,
    which: str = "latest",
    step: int | None = None,
    untrained: bool = False,
    device: str = "cpu",
) -> TrainedStudent:
    """The student of a run folder: its ``latest`` or ``best`` checkpoint, or that of a step.

    Averaged weights are taken where the run keeps them. ``untrained`` gives the same student with
    its seeded random start (also where the run began from timm's weights). Needs only the folder.
    """
    folder = Path(run)
    if step is not None:
        stored: Checkpoint | None = checkpoint.load(folder, step)
    elif which == "best":
        stored = checkpoint.load_best(folder)
    elif which == "latest":
        stored = checkpoint.load_latest(folder)
    else:
        raise UsageError(f"which={which!r} is not one of latest, best.")
    if stored is None:
        raise checkpoint.nothing_in(folder)
    facts, tensors = stored.facts, stored.tensors
    config = TrainConfig.from_dict({**facts["config"], "pretrained": False})
    targets = msgspec.convert(facts["targets"], tuple[Target, ...])
    student = build_student(config, targets, int(facts["image_size"]))
    if not untrained:
        student.load_state_dict(tensors_below(tensors, "student/") | tensors_below(tensors, "ema/"))
    trained = TrainedStudent(student, config, stored_normalizers(facts, tensors), facts)
    return trained.to(choose_device(device))


def stored_normalizers(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Normalizer]:
    """The matrices a checkpoint keeps, by target key: never fitted again."""
    return {
        key: Normalizer.from_arrays(
            {
                name: value.numpy()
                for name, value in tensors_below(tensors, f"normalizer/{key}/").items()
            },
            metadata,
        )
        for key, metadata in facts["normalizers"].items()
    }


def normalizer_tensors(normalizers: Mapping[str, Normalizer]) -> dict[str, Tensor]:
    """Their matrices, float64, under the names that ``stored_normalizers`` reads."""
    return {
        f"normalizer/{key}/{name}": torch.from_numpy(np.array(array))
        for key, normalizer in normalizers.items()
        for name, array in normalizer.to_arrays().items()
    }
