"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Linear warm-up over ``warmup`` of the steps, then half a cosine from ``lr`` to ``min_lr``.

    The first step already moves: it has lr / warm-up steps.
    """
    num_warmup = round(config.warmup * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    low = min(config.min_lr, config.lr)
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
