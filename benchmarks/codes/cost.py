"""CPU seconds of encoding beside a ViT-S forward, of decoding beside normalising, per row.

Rows are synthetic, 16 x 16 tokens, float16, alike among neighbours; one thread. All are the least
of several turns, taken one after the other so that a slow minute hits all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import timm
import torch
from torch import nn

from phistill.cache.codes import bytes_for
from phistill.stats import Moments, Normalizer
from phistill.stats.codes import CodecModule, fit_codec
from phistill.stats.normalizer.torch_module import NormalizerModule

GRID = (16, 16)
ROWS = 32
"""A small batch of training."""
TURNS = 5


def least(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(TURNS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            times[name].append(time.process_time() - begin)
    return {name: min(taken) * 1e3 for name, taken in times.items()}


def rows_of(width: int) -> np.ndarray:
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, 256, width)) * np.arange(1, width + 1) ** -0.5
    return (0.3 * np.cumsum(x, axis=1) + x).astype(np.float16)


def _normalise(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return module(rows.float())


@torch.no_grad()
def cost(options: argparse.Namespace) -> list[str]:
    torch.set_num_threads(options.threads)
    vit = timm.create_model("vit_small_patch16_224", img_size=256).eval()
    images = torch.randn(2, 3, 256, 256)
    lines = [
        "CPU ms a row. ViT-S: a forward of one image at 256 px, float32. Normalise: float16 rows "
        "through PHI-S, as training does. Exact: decode() to the bit, float64.",
        "",
        "| width | bits | ViT-S | encode | of ViT-S | encode, torch | normalise | decode and "
        "normalise | times | exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for width in (384, 768):
        x = rows_of(width)
        moments, rows = Moments.of(x), torch.from_numpy(x)
        normalizer = Normalizer.fit(moments)
        normalise: nn.Module = NormalizerModule(normalizer)
        for bits in (2, 1):
            num_bytes = bytes_for(bits, x.shape[1:])
            codec = fit_codec(moments, [x], grid=GRID, num_bytes=num_bytes)
            module = CodecModule(codec, normalizer)
            codes = module.encode(rows)
            times = least(
                {
                    "vit": partial(vit.forward_features, images),
                    "encode": partial(codec.encode, x),
                    "torch": partial(module.encode, rows),
                    "normalise": partial(_normalise, normalise, rows),
                    "decode": partial(module, codes),
                    "exact": partial(codec.decode, codes.numpy()),
                }
            )
            each = {name: taken / ROWS for name, taken in times.items()}
            each["vit"] = times["vit"] / len(images)
            lines.append(
                f"| {width} | {bits} | {each['vit']:.0f} | {each['encode']:.2f} | "
                f"{each['encode'] / each['vit']:.1%} | {each['torch']:.2f} | "
                f"{each['normalise']:.2f} | {each['decode']:.2f} | "
                f"{each['decode'] / each['normalise']:.2f} | {each['exact']:.2f} |"
            )
    return lines
