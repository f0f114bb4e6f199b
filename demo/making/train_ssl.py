"""Trains the demo teacher `ssl`: a timm ViT with four register tokens, by VICReg.

    python -m phistill.demo.making.train_ssl --images openclipart.parquet --out demo/

The mean of the normed patch tokens is the summary; views of one drawing are pulled
together there (VICReg: arXiv:2105.04906).
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

from phistill.compute.precision import without_autocast

from ..pictures import Augmentation, augmented, channel_stats, read_pictures
from .training import Schedule, fit, save_teacher

SIZE = 54
MODEL = "vit_tiny_patch16_224"
KWARGS: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": 9,
    "embed_dim": 160,
    "depth": 3,
    "num_heads": 5,
    "class_token": False,
    "reg_tokens": 4,
    "global_pool": "avg",
    "fc_norm": False,
    "num_classes": 0,
}
NUM_VIEWS = 2
EXPANDED = 512
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0  # the weights of the paper
AUGMENTATION = Augmentation(
    scale=(0.5, 1.1),
    stretch=1.3,
    rotate=15,
    flip=True,
    colour=0.4,
    drop_colour=0.1,
    random_background=0.5,
)
SCHEDULE = Schedule(epochs=30, learning_rate=1.5e-3, weight_decay=0.05, warmup_epochs=1.5, seed=2)


def expander(width: int) -> nn.Sequential:
    """Two hidden layers between the summary and the space where VICReg's terms are taken."""
    return nn.Sequential(
        nn.Linear(width, EXPANDED),
        nn.BatchNorm1d(EXPANDED),
        nn.ReLU(),
        nn.Linear(EXPANDED, EXPANDED),
        nn.BatchNorm1d(EXPANDED),
        nn.ReLU(),
        nn.Linear(EXPANDED, EXPANDED, bias=False),
    )


def spread_terms(z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """VICReg's variance hinge (Eq. 1) and covariance penalty (Eq. 4) of one view."""
    b, d = z.shape
    centred = z - z.mean(dim=0)
    std = (centred.square().sum(dim=0) / (b - 1) + 1e-4).sqrt()
    covariance = centred.T @ centred / (b - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return VARIANCE * F.relu(1 - std).mean() + COVARIANCE * off_diagonal / d


def vicreg_loss(views: list[Float[Tensor, "b d"]]) -> Float[Tensor, ""]:
    """Mean over views of the spread terms; invariance towards the mean of all views.

    For two views the distance to the mean is half the distance between them, hence the factor: with
    it two views give the paper's loss (Eq. 6) up to averaging the spread terms instead of adding.
    """
    centre = torch.stack(views).mean(dim=0)
    invariance = torch.stack([(v - centre).square().mean() for v in views]).mean() * 4
    return INVARIANCE * invariance + torch.stack([spread_terms(v) for v in views]).mean()


def train(images: Path, out: Path, schedule: Schedule) -> None:
    torch.manual_seed(schedule.seed)
    pictures = read_pictures(images, split="train", side=72)
    mean, std = channel_stats(pictures.squares)
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    trunk = timm.create_model(MODEL, pretrained=False, drop_path_rate=0.05, **KWARGS)
    head = expander(KWARGS["embed_dim"])

    def loss_of(indices: Int[Tensor, " b"], rng: torch.Generator) -> Tensor:
        views = [
            augmented(pictures.squares[indices], SIZE, AUGMENTATION, rng)[0]
            for _ in range(NUM_VIEWS)
        ]
        summaries = trunk((torch.cat(views) - shift) / scale)
        expanded = [head(s).float() for s in summaries.chunk(NUM_VIEWS)]
        with without_autocast("cpu"):
            return vicreg_loss(expanded)

    def save(seconds: float) -> None:
        save_teacher(
            out,
            "ssl",
            trunk.state_dict(),
            {
                "library": "timm",
                "model": MODEL,
                "kwargs": KWARGS,
                "size": SIZE,
                "mean": mean,
                "std": std,
                "patches": "after the final norm",
                "summary": "mean of the patches",
            },
            schedule=schedule,
            images=len(pictures.squares),
            seconds=seconds,
        )

    fit(nn.ModuleList([trunk, head]), len(pictures.squares), schedule, loss_of, save=save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=SCHEDULE.epochs)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_fused_attn(False)  # the fused CPU kernel's backward is twice as slow at this size
    train(args.images, args.out, dataclasses.replace(SCHEDULE, epochs=args.epochs))


if __name__ == "__main__":
    main()
