"""What one backward pass tells of a student: parameters that nothing reads, memory of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .backbone import Student

OVERHEAD = 1.5
"""Peak of a step over what is saved for the backward pass. ViT-S/16 at 224 pixels with three
teachers: 1.2 for forward, loss and backward of 16 rows; the rest is for stored targets, which the
student's pass does not see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Of one row at the configured size."""

    unused: frozenset[str]
    """Names of the parameters that no prediction depends on, as of a norm before a pooled head that
    timm's ``forward_features`` stops in front of."""

    row_bytes: int
    """Memory of a row while a step is taken, nearly."""


def probe(student: Student) -> Probe:
    """Predict for a black image on the student's device, and go back through it; draws nothing."""
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    saved: dict[int, int] = {}

    def note(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    side, was_training = student.image_size, student.training
    image = torch.zeros(1, 3, side, side, device=student.pixel_mean.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        predictions = student.eval()(image).predictions
        total = torch.stack([value.float().sum() for value in predictions.values()]).sum()
    named = {name: p for name, p in student.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    student.train(was_training)
    unused = (name for name, g in zip(named, gradients, strict=True) if g is None)
    row_bytes = OVERHEAD * (sum(saved.values()) + sum(map(_num_bytes, predictions.values())))
    return Probe(unused=frozenset(unused), row_bytes=math.ceil(row_bytes))


def _num_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
