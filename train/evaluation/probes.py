"""kNN and a linear probe: what features say of labels, learnt on training rows.

n training images, m test images, c width, k classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the votes, as in DINO's evaluation (arXiv:2104.14294, appendix F)."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the squared weights; the best on a fifth of the training images is taken."""

BLOCK = 1024


def knn_hits(
    x: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m c"],
    wanted: Int[Tensor, " m"],
) -> Bool[Tensor, " m"]:
    """Whether the nearest training images by cosine, weighted by exp(cos / T), name the label."""
    gallery, num = F.normalize(x.float(), dim=1), int(labels.max()) + 1
    k = min(NEIGHBOURS, len(x))
    hits = []
    for start in range(0, len(test), BLOCK):
        queries = F.normalize(test[start : start + BLOCK].float(), dim=1)
        cosine, near = (queries @ gallery.T).topk(k, dim=1)
        votes = torch.zeros(len(queries), num, device=x.device)
        votes.scatter_add_(1, labels[near], (cosine / TEMPERATURE).softmax(1))
        hits.append(votes.argmax(1) == wanted[start : start + BLOCK])
    return torch.cat(hits)


def linear_hits(
    x: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m c"],
    wanted: Int[Tensor, " m"],
) -> Bool[Tensor, " m"]:
    """Whether a logistic regression on standardised features names the label."""
    mean, std = x.float().mean(0), x.float().std(0)
    std = torch.where(std > 0, std, 1.0)
    inputs, queries = (x.float() - mean) / std, (test.float() - mean) / std
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    aside, kept = order[: len(x) // 5], order[len(x) // 5 :]
    num = int(labels.max()) + 1
    scores = [
        _hit_rate(fitted(inputs[kept], labels[kept], num, penalty), inputs[aside], labels[aside])
        for penalty in PENALTIES
    ]
    # Of equally good ones the strongest penalty.
    best = max(range(len(PENALTIES)), key=lambda i: (scores[i], i))
    return _named(fitted(inputs, labels, num, PENALTIES[best]), queries) == wanted


def fitted(x: Tensor, labels: Tensor, num: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (k, c) and bias (k,) of the least mean cross entropy + penalty / 2 |w|^2, by L-BFGS;
    convex, so begun from zero. Labels are numbers (n,), or shares of the classes (n, k)."""
    weight = torch.zeros(num, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(num, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def _named(fitted: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, *fitted).argmax(1)


def _hit_rate(fitted: tuple[Tensor, Tensor], x: Tensor, labels: Tensor) -> float:
    return float((_named(fitted, x) == labels).float().mean()) if len(x) else 0.0
