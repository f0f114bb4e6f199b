"""What the benchmark of ``extract`` feeds it: invented photographs, and a teacher that sleeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phistill.pipeline import Features, Preprocessing

SLEEP_S = 0.4
SLEEP_ROWS = 16
SLEEPER = f"module:{__name__}:sleeper"
"""As ``extract`` is told of it."""


def make_images(folder: Path, count: int) -> None:
    """500 x 375 JPEGs of about 60 kB: smooth colours with grain, as photographs have."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = generator.normal(0, 8, smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=85)


class Sleeper:
    """Sleeps ``SLEEP_S`` per batch; patches are zeros of a ViT-S's shape."""

    def identity(self) -> Mapping[str, Any]:
        return {"source": "benchmark", "sleep_s": SLEEP_S}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        time.sleep(SLEEP_S)
        return Features(torch.zeros(len(images), 14, 14, 384), torch.zeros(len(images), 384))


def sleeper(model: str, options: dict[str, str]) -> Sleeper:
    return Sleeper()
