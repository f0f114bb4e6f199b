"""How much is done: enough to be timed on a GPU, or enough on a CPU to see that it works."""

from __future__ import annotations

from dataclasses import dataclass, replace

VIT_S = "timm:vit_small_patch16_224.augreg_in21k?random=0"
VIT_L = "timm:vit_large_patch14_clip_224.openai?random=0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Counts of images, rows and steps."""

    name: str
    device: str = "cpu"
    images: int
    """JPEGs that extract is timed on."""
    rows_s: int
    """Rows per forward pass of ViT-S."""
    rows_l: int
    """Rows per forward pass of ViT-L; a sixteenth of the images are taken on a CPU."""
    demo_steps: int
    """Steps of the runs on the demo's cache."""
    killed_steps: int
    """Steps of the run that is killed half-way."""
    train_rows: int
    train_steps: int
    train_batch: int
    vit_student: bool
    """ViT-S at 224 pixels, or the demo's student at 60."""
    cells: int
    """Of the sweep."""

    def on(self, device: str) -> Sizes:
        """The same on a device."""
        return replace(self, device=device)

    @property
    def images_l(self) -> int:
        return self.images if self.name == "full" else max(self.rows_l, self.images // 16)


LARGE = Sizes(
    name="full",
    images=3072,
    rows_s=256,
    rows_l=128,
    demo_steps=300,
    killed_steps=400,
    train_rows=2048,
    train_steps=120,
    train_batch=128,
    vit_student=True,
    cells=8,
)
SMALL = Sizes(
    name="small",
    images=128,
    rows_s=16,
    rows_l=4,
    demo_steps=12,
    killed_steps=60,
    train_rows=256,
    train_steps=12,
    train_batch=16,
    vit_student=False,
    cells=3,
)
