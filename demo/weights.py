"""Writes and reads a demo teacher: NAME.safetensors in bfloat16 and NAME.json with its settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .optimise import Schedule

FOLDER = Path(__file__).parent


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
        "training": {**dataclasses.asdict(schedule), "images": images, "seconds": round(seconds)},
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def read_settings(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return document


def read_tensors(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """Weights as float32, which is what every model here computes in."""
    return {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
