"""Trains the demo teacher `clip`: an open_clip model on drawings and the words of their file names.

    python -m phistill.demo.making.train_clip --images openclipart.parquet --out demo/

Mean pooling after the last norm, so that the mean of the projected patch tokens is the summary and
a patch lives in the joint space too.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..captions import CONTEXT, Tokenizer, caption, vocabulary
from ..pictures import Augmentation, augmented, channel_stats, read_pictures
from .training import Schedule, fit, save_teacher

SIZE = 48
MIN_COUNT = 3
KEEP_WORD = 0.8
MAX_LOGIT_SCALE = 3.4  # exp(3.4) = 30: sharper fits the weak captions by heart
AUGMENTATION = Augmentation(
    scale=(0.55, 1.15),
    stretch=1.25,
    rotate=10,
    flip=True,
    colour=0.3,
    drop_colour=0.05,
    random_background=0.3,
)
SCHEDULE = Schedule(epochs=36, learning_rate=1e-3, weight_decay=0.2, seed=1)


def model_config(vocab_size: int) -> dict[str, Any]:
    """open_clip's own form of a model: see its `model_configs`."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "width": 192,
            "head_width": 64,
            "layers": 4,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "width": 96,
            "heads": 2,
            "layers": 2,
        },
    }


def shortened(rows: list[list[int]], rng: random.Random) -> list[list[int]]:
    """Leave words out at random, but never all of them."""
    kept = [[w for w in row if rng.random() < KEEP_WORD] for row in rows]
    return [k or row for k, row in zip(kept, rows, strict=True)]


def contrastive_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    same: Float[Tensor, "b b"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE where drawings of the same full caption share the target evenly."""
    logits = scale * image.float() @ text.float().T
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(images: Path, out: Path, schedule: Schedule) -> None:
    torch.manual_seed(schedule.seed)
    pictures = read_pictures(images, split="train", side=64)
    mean, std = channel_stats(pictures.squares)
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    texts = [caption(n, f) for n, f in zip(pictures.names, pictures.folders, strict=True)]
    tokenizer = Tokenizer(tuple(vocabulary(texts, MIN_COUNT)))
    rows = [tokenizer.ids(text) for text in texts]
    full = tokenizer.pack(rows)
    config = model_config(tokenizer.vocab_size)
    model = open_clip.CLIP(**config)
    words = random.Random(schedule.seed)

    def loss_of(indices: Int[Tensor, " b"], rng: torch.Generator) -> Tensor:
        x, _ = augmented(pictures.squares[indices], SIZE, AUGMENTATION, rng)
        ids = tokenizer.pack(shortened([rows[i] for i in indices.tolist()], words))
        same = (full[indices][:, None] == full[indices][None]).all(dim=2).float()
        image = F.normalize(model.encode_image((x - shift) / scale).float(), dim=1)
        text = F.normalize(model.encode_text(ids).float(), dim=1)
        return contrastive_loss(
            image, text, same, model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        )

    def save(seconds: float) -> None:
        save_teacher(
            out,
            "clip",
            model.state_dict(),
            {
                "library": "open_clip",
                "model": config,
                "size": SIZE,
                "mean": mean,
                "std": std,
                "patches": "joint space, L2-normalised",
                "summary": "joint space, L2-normalised",
                "vocabulary": list(tokenizer.words),
            },
            schedule=schedule,
            images=len(rows),
            seconds=seconds,
        )

    with sdpa_kernel(SDPBackend.MATH):  # faster backward than the fused CPU kernel at this size
        fit(model, len(rows), schedule, loss_of, save=save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=SCHEDULE.epochs)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.images, args.out, dataclasses.replace(SCHEDULE, epochs=args.epochs))


if __name__ == "__main__":
    main()
