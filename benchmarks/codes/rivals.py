"""Other ways to code tokens in b bits a channel, each as a function from tokens to decoded tokens.

Quantisers of single coordinates have a table of standard deviations and Lloyd-Max levels, and no
bytes beside the codes: their scales are not counted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from phistill.cache.codes.levels import LEVEL_STEP, lloyd_max
from phistill.stats import Moments, Normalizer

Rival = Callable[[np.ndarray], np.ndarray]

OPQ_ROUNDS = 8
"""Of its alternation; faiss' own 50 take hours for a width of 1,280."""


def _coordinates(mean: np.ndarray, axes: np.ndarray, spread: np.ndarray, bits: int) -> Rival:
    """Lloyd-Max of equal bits on (x - mean) axes / spread; axes orthonormal, in columns."""
    levels = lloyd_max(bits) * LEVEL_STEP
    middles = (levels[1:] + levels[:-1]) / 2
    safe = np.where(spread > 0, spread, 1)

    def through(x: np.ndarray) -> np.ndarray:
        z = (x - mean) @ axes / safe
        return levels[np.searchsorted(middles, z)] * spread @ axes.T + mean

    return through


def channels(moments: Moments, bits: int) -> Rival:
    return _coordinates(
        moments.mean, np.eye(moments.width), np.sqrt(np.maximum(moments.variance, 0)), bits
    )


def _turned(moments: Moments, axes: np.ndarray, bits: int) -> Rival:
    variance = np.einsum("ij,ik,kj->j", axes, moments.covariance, axes, optimize=True)
    return _coordinates(moments.mean, axes, np.sqrt(np.maximum(variance, 0)), bits)


def phi_s(moments: Moments, bits: int) -> Rival:
    """PHI-S's own coordinates, which have one standard deviation."""
    normalizer = Normalizer.fit(moments, "phi-s")
    return _turned(moments, normalizer.inverse / normalizer.scale, bits)


def random_axes(moments: Moments, bits: int) -> Rival:
    square = np.random.default_rng(0).normal(size=(moments.width, moments.width))
    return _turned(moments, np.linalg.qr(square)[0], bits)


def principal(moments: Moments, bits: int) -> Rival:
    return _turned(moments, moments.spectrum[1], bits)


def _shape(c: int, bits: int) -> tuple[int, int] | None:
    """(parts, bits of each) of a product quantiser: 256 centroids for 8 / bits channels, or 16 for
    4 / bits where the width asks for it."""
    for code_bits in (8, 4):
        width, rest = divmod(code_bits, bits)
        if rest == 0 and c % width == 0:
            return c // width, code_bits
    return None


def _some_tokens(pilot: np.ndarray, number: int) -> np.ndarray:
    tokens = pilot.reshape(-1, pilot.shape[-1])
    chosen = np.random.default_rng(0).permutation(len(tokens))[:number]
    return tokens[chosen].astype(np.float32)


def product_quantiser(pilot: np.ndarray, bits: int, number: int = 10_000) -> Rival | None:
    """faiss' product quantiser, trained on ``number`` tokens."""
    import faiss

    c = pilot.shape[-1]
    shape = _shape(c, bits)
    if shape is None:
        return None
    quantiser = faiss.ProductQuantizer(c, *shape)
    quantiser.cp.niter = 12
    quantiser.train(_some_tokens(pilot, number))
    return lambda x: quantiser.decode(quantiser.compute_codes(x.astype(np.float32)))


def turned_product_quantiser(pilot: np.ndarray, bits: int, number: int = 5_000) -> Rival | None:
    """faiss' OPQ: the same behind a rotation that is learnt for it, in few rounds."""
    import faiss

    c = pilot.shape[-1]
    shape = _shape(c, bits)
    if shape is None:
        return None
    parts, code_bits = shape
    turn = faiss.OPQMatrix(c, parts)
    turn.niter, turn.niter_pq, turn.niter_pq_0 = OPQ_ROUNDS, 2, 8
    inner = faiss.ProductQuantizer(c, parts, code_bits)
    turn.pq = inner
    turn.train(_some_tokens(pilot, number))
    quantise = product_quantiser(turn.apply(_some_tokens(pilot, 10_000)), bits)
    assert quantise is not None
    return lambda x: turn.reverse_transform(quantise(turn.apply(x.astype(np.float32))))


class Trained(NamedTuple):
    """A rival that was trained, and how far it had come."""

    rival: Rival
    shares: list[float]
    """Lost share of some training tokens after the first phase, half the second, and at the end."""
    cpu_s: float


def mvq_codes(
    pilot: np.ndarray, num_bytes: int, num_steps: int, num_threads: int, device: str = "cpu"
) -> Trained:
    """multi-quantization (arXiv:2211.00508), trained on standardised tokens with 256 centroids in
    each of num_bytes codebooks."""
    import torch
    from multi_quantization import QuantizerTrainer

    torch.manual_seed(0)
    random.seed(0)  # it draws how often indexes are refined
    torch.set_num_threads(num_threads)
    c = pilot.shape[-1]
    tokens = torch.from_numpy(pilot.reshape(-1, c).astype(np.float32)).to(device)
    mean, scale = tokens.mean(0), (tokens - tokens.mean(0)).square().mean().sqrt()
    trainer = QuantizerTrainer(
        c, num_bytes, torch.device(device), phase_one_iters=num_steps, phase_two_iters=num_steps
    )
    told = (tokens[torch.randint(len(tokens), (1_000,))] - mean) / scale

    @torch.no_grad()
    def share() -> float:
        quantizer = trainer.quantizer
        left = quantizer.decode(quantizer.encode(told)) - told
        return float(left.square().sum() / told.square().sum())

    begin, shares = time.process_time(), []
    while not trainer.done():
        chosen = torch.randint(len(tokens), (600,)).to(device)
        trainer.step((tokens[chosen] - mean) / scale)
        if trainer.cur_iter in (num_steps, num_steps * 3 // 2):
            shares.append(share())
    shares.append(share())
    cpu_s = time.process_time() - begin
    quantizer = trainer.get_quantizer()

    @torch.no_grad()
    def through(x: np.ndarray) -> np.ndarray:
        z = (torch.from_numpy(x.astype(np.float32)).to(device) - mean) / scale
        return (quantizer.decode(quantizer.encode(z)) * scale + mean).cpu().numpy()

    return Trained(through, shares, cpu_s)
