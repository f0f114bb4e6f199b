"""A student in Lightning from a phistill cache, on PHI-S targets.

python lightning_student.py my.cache ssl 5        # a cache, one of its teachers, epochs
"""

import sys

import lightning
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import phistill
from phistill.cache.dataset import Batch, CacheBatches
from phistill.stats import load_normalizer
from phistill.stats.normalizer.torch_module import NormalizerModule


class Student(lightning.LightningModule):
    """A small ViT and a linear head that predicts a teacher's normalised patches."""

    def __init__(self, cache: phistill.Cache, teacher: str) -> None:
        super().__init__()
        size, (rows, columns) = cache.info.pixel_size, cache.teacher(teacher).grid
        width = cache.teacher(teacher).widths["patches"]
        self.teacher = teacher
        self.targets = NormalizerModule(load_normalizer(cache, teacher, "patches"))
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=size, patch_size=(size // rows, size // columns), num_classes=0, depth=4,
        )  # fmt: skip
        self.head = torch.nn.Linear(self.backbone.num_features, width)

    def training_step(self, batch: Batch, step: int) -> torch.Tensor:
        """Mean squared error over (n, tokens, channels); pixels come as (n, h, w, 3) uint8."""
        images = batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = self.backbone.forward_features(images)[:, self.backbone.num_prefix_tokens :]
        loss = F.mse_loss(self.head(tokens), self.targets(batch[f"{self.teacher}/patches"]))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class EachEpochAnew(lightning.Callback):
    """Tells the batches which epoch begins."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        trainer.train_dataloader.dataset.set_epoch(trainer.current_epoch)


def main(path: str, teacher: str, epochs: int) -> float:
    """Trains and returns the last step's loss."""
    cache = phistill.open(path)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[EachEpochAnew()], logger=False, enable_checkpointing=False
    )
    batches = CacheBatches(
        cache, {teacher: ["patches"]}, batch_size=32, unbiased=True,
        rank=trainer.global_rank, world=trainer.world_size,
    )  # fmt: skip
    trainer.fit(Student(cache, teacher), DataLoader(batches, batch_size=None))
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    print(f"loss {main(sys.argv[1], sys.argv[2], int(sys.argv[3])):.4f}")
