"""A student in a loop of one's own with accelerate from a phistill cache, on PHI-S targets.

accelerate launch accelerate_student.py my.cache ssl 5        # a cache, one of its teachers, epochs
"""

import sys

import timm
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

import phistill
from phistill.cache.dataset import CacheBatches
from phistill.stats import load_normalizer
from phistill.stats.normalizer.torch_module import NormalizerModule


class Student(torch.nn.Module):
    """A small ViT and a linear head: (n, 3, h, w) in -1 .. 1 to (n, tokens, channels)."""

    def __init__(self, size: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        patch = (size // grid[0], size // grid[1])
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=size, patch_size=patch, num_classes=0, depth=4
        )
        self.head = torch.nn.Linear(self.backbone.num_features, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone.forward_features(images)[:, self.backbone.num_prefix_tokens :]
        return self.head(tokens)


def main(path: str, teacher: str, epochs: int) -> float:
    """Trains and returns the last step's loss."""
    cache, accelerator = phistill.open(path), Accelerator()
    about = cache.teacher(teacher)
    student = Student(cache.info.pixel_size, about.grid, about.widths["patches"])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    student, optimizer = accelerator.prepare(student, optimizer)
    targets = NormalizerModule(load_normalizer(cache, teacher, "patches")).to(accelerator.device)
    # Each process reads its own rows, so the loader is not handed to accelerate.
    batches = CacheBatches(
        cache, {teacher: ["patches"]}, batch_size=32, unbiased=True,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in DataLoader(batches, batch_size=None):
            pixels = batch["pixels"].to(accelerator.device).permute(0, 3, 1, 2)
            wanted = targets(batch[f"{teacher}/patches"].to(accelerator.device))
            loss = F.mse_loss(student(pixels.float() / 127.5 - 1), wanted)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return float(loss)


if __name__ == "__main__":
    print(f"loss {main(sys.argv[1], sys.argv[2], int(sys.argv[3])):.4f}")
