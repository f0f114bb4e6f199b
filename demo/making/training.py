"""What trains the three teachers: AdamW, warm-up, cosine decay, bfloat16, seeded batches; and the
files it leaves, NAME.safetensors in bfloat16 and NAME.json with the settings."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor, nn

from phistill.compute.precision import products_in


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    epochs: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 3.0
    seed: int = 0


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Indices of one epoch in random order; the last, smaller batch is left out."""
    order = torch.randperm(n, generator=rng)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices only: not for biases, norms and embeddings of positions."""
    named = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    plain = [
        p for k, p in named if p.ndim < 2 or "pos_embed" in k or "positional" in k or "token" in k
    ]
    ids = {id(p) for p in plain}
    decayed = [p for _, p in named if id(p) not in ids]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def fit(
    model: nn.Module,
    num_images: int,
    schedule: Schedule,
    loss_of: Callable[[Int[Tensor, " b"], torch.Generator], Tensor],
    *,
    save: Callable[[float], None],
    save_every: int = 4,
) -> None:
    """Minimise `loss_of(indices, rng)` over epochs of all images.

    `save(seconds so far)` is called every `save_every` epochs, to look at a teacher before it is
    done, and at the end.
    """
    rng = torch.Generator().manual_seed(schedule.seed)
    steps_per_epoch = num_images // schedule.batch_size
    warmup = max(1, round(schedule.warmup_epochs * steps_per_epoch))
    total = schedule.epochs * steps_per_epoch

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    optimizer = torch.optim.AdamW(
        parameter_groups(model, schedule.weight_decay), lr=schedule.learning_rate, betas=(0.9, 0.98)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.monotonic()
    for epoch in range(schedule.epochs):
        model.train()
        losses = []
        for indices in batches(num_images, schedule.batch_size, rng):
            with products_in("bfloat16", "cpu"):
                loss = loss_of(indices, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))
        elapsed = time.monotonic() - start
        mean_loss = sum(losses) / len(losses)
        print(
            f"epoch {epoch} loss {mean_loss:.4f} {elapsed:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if (epoch + 1) % save_every == 0 or epoch + 1 == schedule.epochs:
            save(elapsed)


def save_teacher(
    out: Path,
    name: str,
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    *,
    schedule: Schedule,
    images: int,
    seconds: float,
) -> None:
    """Write the weights in bfloat16 and the settings with how they were trained."""
    half = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}
    save_file(half, out / f"{name}.safetensors")
    document = {
        **settings,
        "interpolation": "bicubic",
        "background": [128, 128, 128],
        "training": {**asdict(schedule), "images": images, "seconds": round(seconds)},
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
