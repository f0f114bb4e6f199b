"""Optimizers over a student's parameters, and the learning rate of each step."""

from __future__ import annotations

import difflib
import math
from inspect import signature
from typing import Any

import timm.optim
import torch
from torch.optim import Optimizer

from phistill.errors import UsageError

from ..config import TrainConfig
from ..student.backbone import Student

timm_optim: Any = timm.optim  # its names are no explicit exports


def make_optimizer(config: TrainConfig, student: Student) -> Optimizer:
    """Any of timm's optimizers, with weight decay on matrices only.

    Biases, norms and what the timm model itself exempts (position and class tokens) stay. Norms of
    gradients are clipped by the step, not by the optimizer. UsageError says what it does not take.
    """
    info = _info(config.optimizer)
    groups = timm_optim.param_groups_weight_decay(
        student, config.weight_decay, no_weight_decay_list=student.no_weight_decay()
    )
    options = dict(config.optimizer_options)
    if config.betas:
        if not info.has_betas or len(config.betas) != info.num_betas:
            raise UsageError(
                f"betas={list(config.betas)}: optimizer={config.optimizer!r} takes "
                f"{info.num_betas if info.has_betas else 'no'} betas."
            )
        options.setdefault("betas", tuple(config.betas))
    if info.opt_class in (torch.optim.Adam, torch.optim.AdamW):
        options.setdefault("fused", True)
    try:
        if callable(info.opt_class) and "max_grad_norm" in signature(info.opt_class).parameters:
            options.setdefault("max_grad_norm", None)
        return timm_optim.create_optimizer_v2(
            groups, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise UsageError(
            f"optimizer={config.optimizer!r} cannot be made with {options} ({error})."
        ) from error


def _info(optimizer: str) -> Any:
    """timm's description of an optimizer; UsageError for one that a step cannot serve."""
    name = optimizer.lower().removeprefix("lookahead_")
    try:
        info = timm_optim.get_optimizer_info(name)
    except ValueError:
        close = difflib.get_close_matches(name, timm_optim.list_optimizers(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "See timm.optim."
        raise UsageError(f"optimizer={optimizer!r} is none of timm's. {hint}") from None
    if info.second_order:
        raise UsageError(f"optimizer={optimizer!r} needs second derivatives; a step takes none.")
    if name.startswith("kron"):
        raise UsageError(
            f"optimizer={optimizer!r} draws random numbers that no checkpoint can hold, so a run "
            "would not go on as it was."
        )
    return info


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
