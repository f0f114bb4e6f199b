"""Errors of the moments on data on which simple ways fail."""

from __future__ import annotations

import argparse

import numpy as np

from phistill.stats import Moments, Normalizer


def errors(options: argparse.Namespace) -> list[str]:
    """Errors of the moments against two passes in extended precision, and of PHI-S on them."""
    n, c = 100_000, 64
    lines = [
        f"n = {n:,} float32 vectors of width {c}. Error of scatter entry ij relative to "
        "sqrt(S_ii S_jj), largest entry; channel variance of phi-s output on the same data.",
        "",
        "| data | one pass, float32 | default | exact | channel variance - 1 |",
        "|---|---|---|---|---|",
    ]
    for name, x in _hard_cases(n, c).items():
        reference = _two_pass(x)
        fitted = Normalizer.fit(Moments.of(x))
        variance = fitted.transform(x.astype(np.float64)).var(axis=0)
        cells = [
            _relative(_one_pass(x), reference),
            _relative(Moments.of(x).scatter, reference),
            _relative(Moments.of(x, exact=True).scatter, reference),
            float(np.max(np.abs(variance - 1))),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |")
    return lines


def _hard_cases(n: int, c: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, c))
    z += 0.5 * z[:, :1]
    sign = rng.choice([-1.0, 1.0], size=c)
    dead = np.where(np.arange(c) < c // 10, 1.0, 0.0)
    cases = {
        "standard normal": z,
        "mean/std = 100": z + 100 * sign,
        "mean/std = 10,000": z + 1e4 * sign,
        "std = 1e-6": z * 1e-6,
        "std = 1,000": z * 1e3,
        "variance ratio 1e12": z * np.logspace(0, -6, c),
        "90 % dead channels": z * dead + 0.7,
        "rank 8": rng.normal(size=(n, 8)) @ rng.normal(size=(8, c)),
        "fewer vectors (40) than channels": z[:40],
        "sorted, drifting by 500 std": z + np.linspace(0, 500, n)[:, None],
        "Student-t(3)": rng.standard_t(3, size=(n, c)),
    }
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in cases.items()}


def _two_pass(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.longdouble)
    centred = (wide - wide.mean(axis=0)).astype(np.float64)
    return centred.T @ centred


def _one_pass(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    return (x.T @ x - len(x) * np.outer(mean, mean)).astype(np.float64)


def _relative(scatter: np.ndarray, reference: np.ndarray) -> float:
    size = np.sqrt(np.diagonal(reference))
    size = np.where(size > 0, size, np.inf)
    return float(np.max(np.abs(scatter - reference) / np.outer(size, size)))
