"""Optimizers over a student's parameters."""

from __future__ import annotations

import torch
from timm.optim.lamb import Lamb
from torch import nn
from torch.optim import Optimizer

from .config import TrainConfig
from .student.backbone import Student


def make_optimizer(config: TrainConfig, student: Student) -> Optimizer:
    """AdamW or LAMB with weight decay on matrices only.

    Biases, norms and what the timm model itself exempts (position and class tokens) stay.
    """
    named = getattr(student.backbone.net, "no_weight_decay", None)
    exempt = {f"backbone.net.{name}" for name in (named() if named else ())}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        matrix = parameter.ndim >= 2 and name not in exempt
        (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
    # timm's LAMB clips by itself; the loop already does.
    return Lamb(groups, lr=config.lr, betas=betas, max_grad_norm=None)
