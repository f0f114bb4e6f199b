"""The rotation of every width, and the Hadamard product, fast and plain."""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
from measuring import cpu_seconds

from phistill.compute.blas import one_blas_thread
from phistill.stats.normalizer.hadamard import factorize, hadamard, is_hadamard, sylvester
from phistill.stats.normalizer.rotation import rotation


def widths(options: argparse.Namespace) -> list[str]:
    """Every width: constant diagonal, orthogonality, time, and the integer check."""
    last = options.last
    worst = {"spread": (0.0, 0), "orthogonality": (0.0, 0), "seconds": (0.0, 0)}
    reached, general = 0, 0
    for c in range(1, last + 1):
        values = np.arange(1, c + 1) ** -1.5
        begin = time.process_time()
        r, _ = rotation(values)
        taken = time.process_time() - begin
        spread = float(np.max(np.abs(np.square(r) @ values / values.mean() - 1)))
        defect = float(np.max(np.abs(r @ r.T - np.eye(c))))
        for name, value in (("spread", spread), ("orthogonality", defect), ("seconds", taken)):
            worst[name] = max(worst[name], (value, c))
        if factorize(c) is None:
            general += 1
        else:
            found = hadamard(c)
            assert found is not None
            assert is_hadamard(found[0]), c
            reached += 1
    return [
        f"Widths 1..{last}: {reached} integer Hadamard matrices, each checked exactly, and "
        f"{general} by Hartley then Givens; eigenvalues i^-1.5.",
        "",
        "| worst of all widths | value | at width |",
        "|---|---|---|",
        f"| relative spread of the diagonal | {worst['spread'][0]:.1e} | {worst['spread'][1]} |",
        f"| entry of R R^T - I | {worst['orthogonality'][0]:.1e} | {worst['orthogonality'][1]} |",
        f"| CPU seconds for one rotation | {worst['seconds'][0]:.2f} | {worst['seconds'][1]} |",
    ]


def fwht(options: argparse.Namespace) -> list[str]:
    """Where a fast Walsh-Hadamard transform could stand: the product with H, once per fit."""
    lines = [
        "One thread, float64, CPU time, median of 9. H U^T is made once per fit, beside one eigh.",
        "",
        "| width | H @ U^T | butterflies on U^T | same values | eigh of the covariance |",
        "|---|---|---|---|---|",
    ]
    for c in (256, 1024, 2048):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(c, c)))[0]
        covariance = (basis * np.arange(1, c + 1) ** -1.0) @ basis.T
        matrix = sylvester(c).astype(np.float64)
        with one_blas_thread():
            works = (partial(np.matmul, matrix, basis), partial(_butterflies, basis))
            times = [statistics.median(cpu_seconds(work) for _ in range(9)) for work in works]
            times.append(cpu_seconds(partial(np.linalg.eigh, covariance)))
            same = bool(np.allclose(works[0](), works[1](), rtol=0, atol=1e-9))
        plain, fast, whole = (f"{1e3 * value:.1f} ms" for value in times)
        lines.append(f"| {c} | {plain} | {fast} | {same} | {whole} |")
    return lines


def _butterflies(x: np.ndarray) -> np.ndarray:
    """Sylvester's H times x (c, k), c a power of two, in c log2(c) k additions."""
    c, k = x.shape
    for level in range(c.bit_length() - 1):
        pairs = x.reshape(-1, 2, 2**level, k)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
    return x.reshape(c, k)
