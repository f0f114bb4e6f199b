"""Lost share of the variance of held-out rows, in dB, of our codes and of others at equal bytes.

Every share is |x - decoded|^2 / |x - mean|^2, with the mean of the pilot's tokens. x (n, t, c).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from rivals import (
    Rival,
    channels,
    mvq_codes,
    phi_s,
    principal,
    product_quantiser,
    random_axes,
    turned_product_quantiser,
)

from phistill import cache as store
from phistill.cache.codes import bytes_for
from phistill.stats import Moments
from phistill.stats.codes import RowSpectrum

BITS = (8, 4, 2, 1, 0.5, 0.25)
TARGETS = {
    2: {"clip": 20, "ssl": 23, "mask": 29, "lite0": 16},
    1: {"clip": 14, "ssl": 18, "mask": 25, "lite0": 11},
}


class Features(NamedTuple):
    """Rows of one teacher."""

    name: str
    grid: tuple[int, int]
    pilot: np.ndarray
    heldout: np.ndarray


def features(options: argparse.Namespace) -> Iterator[Features]:
    """Pilots of training rows; held-out rows of the same cache, or any of a second one, of images
    that the first does not have."""
    cache = store.open(options.cache)
    fresh = store.open(options.fresh) if options.fresh else None
    for name in options.teachers or cache.teachers:
        other, split = (cache, "heldout") if fresh is None else (fresh, None)
        yield Features(
            name,
            cache.teacher(name).grid,
            cache.reader(name, "patches").read(cache.rows([name], "train")[: options.pilot]),
            other.reader(name, "patches").read(other.rows([name], split)[: options.heldout]),
        )


def decibel(share: float) -> str:
    return f"{-10 * math.log10(share):.1f}" if share > 0 else "-"


def share(x: np.ndarray, decoded: np.ndarray, mean: np.ndarray) -> float:
    wide = x.astype(np.float64)
    return float(np.sum(np.square(decoded - wide)) / np.sum(np.square(wide - mean)))


def losses(options: argparse.Namespace) -> list[str]:
    """A table for each teacher."""
    lines = [
        f"dB, more is better; {options.pilot} pilot rows, {options.heldout} held-out rows. R(D): "
        "the least that any code of normal rows of that spectrum loses; *Gaussian*: ours on those."
        + (f" Held-out rows: {options.fresh.name}." if options.fresh else ""),
        "",
    ]
    for one in features(options):
        lines += [*_teacher(one), ""]
    return lines


def _teacher(one: Features) -> list[str]:
    moments = Moments.of(one.pilot)
    spectrum = RowSpectrum.of(moments, [one.pilot], grid=one.grid)
    t, c = one.pilot.shape[1:]
    rivals: dict[str, Callable[[int], Rival | None]] = {
        "raw channels": lambda bits: channels(moments, bits),
        "PHI-S": lambda bits: phi_s(moments, bits),
        "random rotation": lambda bits: random_axes(moments, bits),
        "PCA, equal bits": lambda bits: principal(moments, bits),
        "PQ (faiss)": lambda bits: product_quantiser(one.pilot, bits),
        "OPQ (faiss)": lambda bits: turned_product_quantiser(one.pilot, bits),
    }
    normal = _normal_rows(spectrum, 50)
    rows = [
        f"**{one.name}**, {one.grid[0]} x {one.grid[1]} x {c}",
        "",
        "| bits | bytes a row | of float16 | ours | *Gaussian* | R(D) | "
        f"{' | '.join(rivals)} | target |",
        "|---|" + "---|" * (6 + len(rivals)),
    ]
    for bits in BITS:
        codec = spectrum.codec(bytes_for(bits, (t, c)))
        lost = share(one.heldout, codec.decode(codec.encode(one.heldout)), moments.mean)
        gauss = share(normal, codec.decode(codec.encode(normal)), spectrum.mean_row)
        cells = [decibel(lost), decibel(gauss), decibel(spectrum.limit(bits))]
        for make in rivals.values():
            rival = make(int(bits)) if bits in (1, 2, 4) else None
            decoded = rival(one.heldout.reshape(-1, c)) if rival else None
            cells.append(
                "-"
                if decoded is None
                else decibel(share(one.heldout.reshape(-1, c), decoded, moments.mean))
            )
        target = TARGETS.get(int(bits), {}).get(one.name, "") if bits >= 1 else ""
        smaller = 2 * t * c / codec.num_bytes
        rows.append(
            f"| {bits} | {codec.num_bytes:,} | 1 / {smaller:.2f} | {' | '.join(cells)} | {target} |"
        )
        print(rows[-1], flush=True)
    return rows


def _normal_rows(spectrum: RowSpectrum, n: int) -> np.ndarray:
    """Rows whose coefficients are normal, with the spectrum's variances."""
    random = np.random.default_rng(7)
    basis = spectrum.basis
    unit = 2.0**basis.unit_exponent
    h, w = len(basis.down), len(basis.across)
    y = random.normal(size=(n, len(spectrum.variances))) * np.sqrt(spectrum.variances) * unit
    y = np.einsum(
        "ai,bj,nabc->nijc", basis.down, basis.across, y.reshape(n, h, w, -1), optimize=True
    )
    return y.reshape(n, h * w, -1) @ basis.axes.T + spectrum.mean_row


def mvq(options: argparse.Namespace) -> list[str]:
    """Beside multi-quantization at the bytes a token that it is made for."""
    rows = [
        f"MVQ: {options.steps} steps of 600 tokens in each of its two phases; dB, more is better. "
        "Course: of 1,000 training tokens, after the first phase, half the second, and at the end.",
        "",
        "| teacher | bytes a token | bits a channel | ours | MVQ | its course | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in features(options):
        t, c = one.pilot.shape[1:]
        moments = Moments.of(one.pilot)
        spectrum = RowSpectrum.of(moments, [one.pilot], grid=one.grid)
        tokens = one.heldout.reshape(-1, c)
        for num_bytes in options.token_bytes:
            codec = spectrum.codec(num_bytes * t)
            ours = share(one.heldout, codec.decode(codec.encode(one.heldout)), moments.mean)
            trained = mvq_codes(
                one.pilot, num_bytes, options.steps, options.threads, options.device
            )
            theirs = share(tokens, trained.rival(tokens), moments.mean)
            cells = [one.name, str(num_bytes), f"{8 * num_bytes / c:.2f}"]
            cells += [decibel(ours), decibel(theirs)]
            cells += [", ".join(map(decibel, trained.shares)), f"{trained.cpu_s:.0f}"]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows
