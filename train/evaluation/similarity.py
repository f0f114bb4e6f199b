"""Likeness of two sets of features of the same images, and how many directions one of them uses.

n images, c d widths; the features of an image are one vector.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10


def cka(x: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> float:
    """Linear CKA with the unbiased HSIC (Song and others 2012; Nguyen and others 2021, eq. 3).

    1 for features that differ by a rotation and a scale, about 0 for unrelated ones: the biased
    estimate is near 1 for any two where the widths exceed n. NaN for fewer than 4 images.
    """
    if len(x) < 4:
        return math.nan
    grams = [_gram(values) for values in (x, y)]
    xy, xx, yy = (_hsic(grams[i], grams[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def _gram(x: Tensor) -> Tensor:
    x = x.double()
    x = x - x.mean(0)
    gram = x @ x.T
    return gram.fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> float:
    n = len(k)
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return float((trace + means - cross) / (n * (n - 3)))


def neighbour_overlap(
    x: Float[Tensor, "n c"], y: Float[Tensor, "n d"], k: int = NEIGHBOURS
) -> Float[Tensor, " n"]:
    """Per image, the share of its k nearest others by cosine that both have; chance k / (n - 1)."""
    k = min(k, len(x) - 1)
    near = [_neighbours(values, k) for values in (x, y)]
    return (near[0][:, :, None] == near[1][:, None, :]).any(2).double().mean(1)


def _neighbours(x: Tensor, k: int) -> Tensor:
    unit = F.normalize(x.float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.topk(k, dim=1).indices


def rank_me(x: Float[Tensor, "n c"]) -> float:
    """exp of the entropy of the normalised singular values (Garrido and others 2023, eq. 2)."""
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))
