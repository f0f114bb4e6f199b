"""Trains the demo teacher `mask`: a timm ViT whose patch tokens hold the alpha matte.

    python -m phistill.demo.making.train_mask --images openclipart.parquet --out demo/

Each token of width 188, taken before the final norm, goes through one linear layer to the p x p
alpha values under it. Width 188 is on purpose one that no Hadamard construction reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.config import set_fused_attn
from torch import Tensor, nn

from ..matte import PATCH, cells
from ..pictures import Augmentation, augmented, read_pictures
from .training import Schedule, fit, save_teacher

SIZE = 60
KWARGS: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": 188,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2,
    "class_token": False,
    "global_pool": "",
    "num_classes": 0,
}
MEAN = STD = 0.5  # what many timm models use; clip and ssl have those of the drawings
MODEL = "vit_tiny_patch16_224"
AUGMENTATION = Augmentation(
    scale=(0.6, 1.3), stretch=1.3, rotate=15, flip=True, colour=0.4, random_background=0.5
)
SCHEDULE = Schedule(
    epochs=8, batch_size=128, learning_rate=1.5e-3, weight_decay=0.1, warmup_epochs=1.0, seed=3
)


class MatteModel(nn.Module):
    """Trunk and decoder; `forward` returns one logit per pixel, grouped by token."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model(MODEL, pretrained=False, drop_path_rate=0.05, **KWARGS)
        self.decoder = nn.Linear(KWARGS["embed_dim"], PATCH * PATCH)

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> Float[Tensor, "b t pp"]:
        tokens = self.trunk.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
        logits: Tensor = self.decoder(tokens)
        return logits


def matte_loss(
    logits: Float[Tensor, "b t pp"], alpha: Float[Tensor, "b t pp"]
) -> Float[Tensor, ""]:
    """Cross-entropy per pixel plus one minus the soft intersection over union per image."""
    logits = logits.float()
    soft = logits.sigmoid()
    both = (soft * alpha).sum(dim=(1, 2))
    either = (soft + alpha - soft * alpha).sum(dim=(1, 2))
    overlap = (both + 1) / (either + 1)
    return F.binary_cross_entropy_with_logits(logits, alpha) + (1 - overlap).mean()


def train(images: Path, out: Path, schedule: Schedule) -> None:
    torch.manual_seed(schedule.seed)
    pictures = read_pictures(images, split="train", side=72)
    model = MatteModel()

    def loss_of(indices: Int[Tensor, " b"], rng: torch.Generator) -> Tensor:
        x, alpha = augmented(pictures.squares[indices], SIZE, AUGMENTATION, rng)
        return matte_loss(model((x - MEAN) / STD), cells(alpha))

    def save(seconds: float) -> None:
        save_teacher(
            out,
            "mask",
            {
                **model.trunk.state_dict(),
                **{f"decoder.{k}": v for k, v in model.decoder.state_dict().items()},
            },
            {
                "library": "timm",
                "model": MODEL,
                "kwargs": KWARGS,
                "size": SIZE,
                "mean": [MEAN] * 3,
                "std": [STD] * 3,
                "patches": "last block, before the final norm",
                "summary": None,
            },
            schedule=schedule,
            images=len(pictures.squares),
            seconds=seconds,
        )

    fit(model, len(pictures.squares), schedule, loss_of, save=save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=SCHEDULE.epochs)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_fused_attn(False)  # the fused CPU kernel's backward is twice as slow at this size
    schedule = dataclasses.replace(SCHEDULE, epochs=args.epochs)
    train(args.images, args.out, schedule)


if __name__ == "__main__":
    main()
