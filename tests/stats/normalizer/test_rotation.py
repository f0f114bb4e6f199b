"""Rotations with a constant diagonal, for every width from 1."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.errors import UsageError
from phistill.stats.normalizer.hadamard import factorize
from phistill.stats.normalizer.rotation import hartley, level_diagonal, rotation

SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    "decaying": lambda c: np.arange(1, c + 1) ** -1.5,
    "one direction": lambda c: np.eye(1, c)[0],
    "ratio 1e12": lambda c: np.logspace(0, -12, c),
    "flat": lambda c: np.ones(c),
    "half dead": lambda c: np.where(np.arange(c) < (c + 1) // 2, 1.0, 0.0),
    "tiny": lambda c: 1e-12 * np.arange(c, 0, -1.0),
}


def relative_spread(r: np.ndarray, values: np.ndarray) -> float:
    """max |diag(R diag(l) R^T) - mean(l)| / mean(l), each entry summed directly."""
    diagonal = np.square(r) @ values
    return float(np.max(np.abs(diagonal - values.mean())) / values.mean())


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("c", [1, 2, 3, 5, 7, 12, 30, 92, 188, 257, 768, 1004])
def test_every_width_has_a_rotation_with_constant_diagonal(c: int, spectrum: str) -> None:
    values = SPECTRA[spectrum](c)
    r, kind = rotation(values)
    assert relative_spread(r, values) < 1e-10  # the guarantee; about 1e-13 is reached
    # c products of rounding eps each, and at most c plane rotations
    assert np.max(np.abs(r @ r.T - np.eye(c))) < 2 * c * np.finfo(float).eps + 1e-14
    assert (kind == "hartley+givens") == (factorize(c) is None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 160), st.integers(0, 2**32 - 1))
def test_any_spectrum_is_levelled(c: int, seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).exponential(size=c) ** 3)[::-1] + 1e-9
    start = level_diagonal(hartley(c), values)
    assert relative_spread(start, values) < 1e-10


def test_a_bare_random_rotation_does_not_level() -> None:
    """The fallback public code uses: channel variances differ by a factor."""
    values = SPECTRA["decaying"](92)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(92, 92)))[0]
    assert relative_spread(q, values) > 0.3
    assert relative_spread(rotation(values)[0], values) < 1e-10


def test_starting_from_hartley_mixes_and_givens_alone_do_not() -> None:
    values = SPECTRA["decaying"](188)
    mixed = np.max(np.abs(rotation(values)[0]))
    unmixed = np.max(np.abs(level_diagonal(np.eye(188), values)))
    assert mixed < 0.12  # 0.103
    assert unmixed > 0.5


@pytest.mark.parametrize("c", range(1, 40))
def test_the_hartley_matrix_is_orthogonal_and_symmetric(c: int) -> None:
    h = hartley(c)
    assert np.allclose(h @ h, np.eye(c), atol=1e-13)  # entries of size 1, c <= 40 terms
    assert np.allclose(h, h.T, atol=1e-15)


@pytest.mark.parametrize("c", [12, 92, 188])
def test_no_row_has_a_negative_diagonal_entry(c: int) -> None:
    assert (np.diagonal(rotation(SPECTRA["decaying"](c))[0]) >= 0).all()


_PRINT = """
import hashlib, numpy as np
from phistill.stats import Moments, Normalizer
x = np.random.default_rng(3).normal(size=(700, 188)) * np.linspace(1, 9, 188)
fitted = Normalizer.fit(Moments.of(x.astype(np.float32)))
print(hashlib.sha256(fitted.forward.tobytes() + fitted.inverse.tobytes()).hexdigest())
"""


def test_two_processes_fit_the_same_bits_whatever_their_threads() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "1")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_empty_and_non_finite_spectra_are_refused() -> None:
    for values in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(UsageError, match="finite numbers"):
            rotation(values)
