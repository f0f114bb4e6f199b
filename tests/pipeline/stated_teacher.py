"""A teacher whose identity is what the options say; its features do not change."""

from __future__ import annotations

from typing import Any

import torch

from phistill.pipeline.teachers.contract import Features, Preprocessing

STATED: dict[str, Any] = {
    "source": "test",
    "model": "a",
    "revision": "main",
    "weights_sha256": "00",
    "layer": "-1",
    "norm": "true",
    "neck": "false",
    "summary": "head",
    "registers": "false",
    "dtype": "float32",
    "space": "trunk",
    "remote_code": "false",
    "prompt": "",
    "pooling": "cls",
}


class Stated:
    def __init__(self, options: dict[str, str]) -> None:
        self._options = {**STATED, **options}

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in self._options.items() if not key.startswith("given_")}

    def preprocessing(self) -> Preprocessing:
        side = int(self._options.get("given_size", 16))
        return Preprocessing(size=(side, side), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        size = int(self._options.get("given_grid", 2))
        width = int(self._options.get("given_width", 3))
        count = int(self._options.get("given_registers", 1))
        maps = torch.nn.functional.adaptive_avg_pool2d(images, size).permute(0, 2, 3, 1)
        maps = maps.repeat(1, 1, 1, -(-width // 3))[..., :width]
        return Features(maps, maps.mean((1, 2)), maps.mean((1, 2))[:, None].repeat(1, count, 1))


def build(model: str, options: dict[str, str]) -> Stated:
    return Stated(options)
