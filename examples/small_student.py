"""A student of one's own: three convolutions, a token for every 8 x 8 pixels.

phistill train my.cache --out runs/small --set student=small_student:student \\
  --set 'student_options={width=64}'

run where this file lies, or with its folder on PYTHONPATH.
"""

from __future__ import annotations

from torch import Tensor, nn


class SmallStudent(nn.Module):
    """Images (b, 3, H, W), normalised, to a map (b, width, H / 8, W / 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
        )

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layers(images)


def student(*, image_size: int, width: int = 128) -> nn.Module:
    """``image_size`` is the side of the training images; other options are student_options."""
    return SmallStudent(width)
