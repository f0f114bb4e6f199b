"""The eight normalizers against the paper's formulas, and what each promises."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.errors import DegenerateMoments, UsageError
from phistill.stats import METHODS, Moments, Normalizer
from phistill.stats.normalizer.methods import eigenbasis
from phistill.stats.normalizer.rotation import rotation
from phistill.stats.normalizer.torch_module import NormalizerModule

INVERTIBLE = [method for method in METHODS if method != "none"]


def features(n: int, c: int, seed: int = 0) -> np.ndarray:
    """Correlated features with unequal channels and a mean, float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, c)) @ (rng.normal(size=(c, c)) * rng.uniform(0.2, 4, c)) + 3.0


def naive(x: np.ndarray, method: str) -> np.ndarray:
    """Each formula as printed, from numpy's own covariance; rows are vectors."""
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    values, u = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1]
    values, u = values[order], u[:, order]
    u = np.where(np.diagonal(u) < 0, -u, u)
    h = rotation(values)[0]
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: x,
        "global": lambda: (x - x.mean()) / x.std(),
        "standardize": lambda: (x - mean) / x.std(axis=0),
        "isotropic": lambda: (x - mean) / np.sqrt(np.trace(covariance) / x.shape[1]),
        "phi-s": lambda: (x - mean) @ u @ h.T / np.sqrt(np.trace(covariance) / x.shape[1]),
        "pca": lambda: (x - mean) @ u / np.sqrt(values),
        "zca": lambda: (x - mean) @ u / np.sqrt(values) @ u.T,
        "hca": lambda: (x - mean) @ u / np.sqrt(values) @ h.T,
    }
    return formulas[method]()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("c", [2, 12, 20])
def test_each_method_is_the_formula_of_the_paper(method: str, c: int) -> None:
    """Widths with a Hadamard matrix, where the rotation does not depend on the eigenvalues."""
    x = features(900, c)
    expected = naive(x, method)
    fitted = Normalizer.fit(Moments.of(x), method=method)
    # whitening divides by the smallest eigenvalue: its condition number times eps remains
    assert np.allclose(fitted.transform(x), expected, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("c", [1, 7, 12, 188])
def test_inverse_undoes_forward(method: str, c: int) -> None:
    x = features(1200, c + 1)[:, :c]
    fitted = Normalizer.fit(Moments.of(x), method=method)
    assert np.allclose(fitted.inverse_transform(fitted.transform(x)), x, atol=1e-9)
    single = x.astype(np.float32)
    back = fitted.inverse_transform(fitted.transform(single))
    assert back.dtype == np.float32
    if method not in ("pca", "zca", "hca"):
        assert np.max(np.abs(back - single)) / x.std() < 1e-5  # N3, float32


@pytest.mark.parametrize("c", [1, 3, 12, 92, 188, 192])
def test_phi_s_gives_every_channel_variance_one(c: int) -> None:
    x = features(3000, c + 1)[:, :c].astype(np.float32)
    for exact in (False, True):
        fitted = Normalizer.fit(Moments.of(x, exact=exact))
        variance = fitted.transform(x).astype(np.float64).var(axis=0)
        assert np.max(np.abs(variance - 1)) < 1e-6  # N3


def test_squared_errors_scale_by_phi_squared() -> None:
    """MSE_raw = phi^2 MSE_phi for any prediction, because Theta = phi times a rotation."""
    x = features(500, 12)
    prediction = x + np.random.default_rng(9).normal(size=x.shape) * np.arange(1, 13)
    for method in ("phi-s", "isotropic"):
        fitted = Normalizer.fit(Moments.of(x), method=method)
        normalized = np.mean((fitted.transform(x) - fitted.transform(prediction)) ** 2)
        assert np.isclose(np.mean((x - prediction) ** 2), fitted.scale**2 * normalized, rtol=1e-12)


def test_standardize_has_unit_channels_but_unequal_errors_and_whitening_unequal_directions() -> (
    None
):
    """What PHI-S mends: only it has both equal channels and one scale for every direction."""
    x = features(4000, 16)
    for method in ("standardize", "pca", "zca", "hca"):
        gains = np.linalg.svd(Normalizer.fit(Moments.of(x), method=method).inverse)[1]
        assert gains[0] / gains[-1] > 1.5
    gains = np.linalg.svd(Normalizer.fit(Moments.of(x)).inverse)[1]
    assert np.allclose(gains, gains[0], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_folding_the_inverse_into_the_last_layer_changes_nothing(method: str) -> None:
    x = features(800, 12)
    fitted = Normalizer.fit(Moments.of(x), method=method)
    rng = np.random.default_rng(2)
    hidden, weight, bias = rng.normal(size=(50, 9)), rng.normal(size=(12, 9)), rng.normal(size=12)
    for b in (bias, None):
        folded, shift = fitted.fold(weight, b)
        apart = fitted.inverse_transform(hidden @ weight.T + (0 if b is None else b))
        assert np.allclose(hidden @ folded.T + shift, apart, atol=1e-9, rtol=0)


def test_a_layer_that_emits_several_vectors_folds_block_by_block() -> None:
    x = features(800, 5)
    fitted = Normalizer.fit(Moments.of(x))
    rng = np.random.default_rng(2)
    hidden, weight, bias = rng.normal(size=(7, 4)), rng.normal(size=(15, 4)), rng.normal(size=15)
    folded, shift = fitted.fold(weight, bias)
    apart = fitted.inverse_transform((hidden @ weight.T + bias).reshape(7, 3, 5)).reshape(7, 15)
    assert np.allclose(hidden @ folded.T + shift, apart, atol=1e-11)
    with pytest.raises(UsageError, match="multiple of the width 5"):
        fitted.fold(np.ones((7, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_a_stored_normalizer_comes_back_bit_for_bit(method: str) -> None:
    fitted = Normalizer.fit(Moments.of(features(300, 12)), method=method, moments_digest="abc")
    data = fitted.to_bytes()
    assert data == fitted.to_bytes()
    back = Normalizer.from_bytes(data)
    assert back.metadata() == fitted.metadata()
    for name, array in fitted.to_arrays().items():
        assert back.to_arrays()[name].tobytes() == array.tobytes()


def test_a_copy_as_for_another_process_is_the_same() -> None:
    fitted = Normalizer.fit(Moments.of(features(300, 4)), method="zca", shrinkage=0.5)
    copied = copy.deepcopy(fitted)
    assert copied is not fitted
    assert copied.to_bytes() == fitted.to_bytes()


def test_damaged_bytes_are_refused_and_never_half_read() -> None:
    data = Normalizer.fit(Moments.of(features(300, 4))).to_bytes()
    for broken in (b"", data[:50], data[:-1], b"\x00" * len(data), data[8:]):
        with pytest.raises(UsageError, match="stored normalizer"):
            Normalizer.from_bytes(broken)


@pytest.mark.parametrize("dead", [0, 5, 45])
@pytest.mark.parametrize("method", METHODS)
def test_dead_channels_and_few_rows_stay_finite(method: str, dead: int) -> None:
    """0 to 90 % dead channels, fewer rows than the width 50."""
    x = features(30, 50).astype(np.float32)
    x[:, np.random.default_rng(0).permutation(50)[:dead]] = 0.7
    fitted = Normalizer.fit(Moments.of(x), method=method)
    y = fitted.transform(x.astype(np.float64))
    assert np.isfinite(y).all()
    assert np.allclose(fitted.inverse_transform(y), x, atol=1e-4)
    if method == "phi-s":
        assert np.max(np.abs(y.var(axis=0) - 1)) < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_phi_s_holds_at_a_variance_ratio_of_1e12(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4000, 30)) * np.logspace(0, -6, 30) * scale).astype(np.float32)
    fitted = Normalizer.fit(Moments.of(x))
    y = fitted.transform(x)
    assert np.max(np.abs(y.astype(np.float64).var(axis=0) - 1)) < 1e-6
    assert np.max(np.abs(fitted.inverse_transform(y) - x)) < 1e-5 * x.std()


def test_features_without_spread_are_an_error() -> None:
    for constant in (0.1, 1234.567, -3e-8):
        for exact in (False, True):
            x = np.full((500, 6), constant)
            with pytest.raises(DegenerateMoments, match="are the same"):
                Normalizer.fit(Moments.of(x, exact=exact))
    with pytest.raises(DegenerateMoments, match="n=1"):
        Normalizer.fit(Moments.of(np.ones((1, 3))))
    with pytest.raises(DegenerateMoments, match="NaN"):
        Normalizer.fit(Moments(5, np.full(2, np.nan), np.eye(2)))


def test_a_scatter_with_a_negative_direction_is_an_error_not_a_clip() -> None:
    with pytest.raises(DegenerateMoments, match=r"eigenvalue of -0\.5"):
        Normalizer.fit(Moments(2, np.zeros(2), np.diag([2.0, -1.0])))


def test_eigenvectors_are_sorted_and_sign_fixed() -> None:
    values, u = eigenbasis(Moments.of(features(500, 9)))
    assert (np.diff(values) <= 0).all()
    assert (np.diagonal(u) >= 0).all()
    assert np.allclose(u @ u.T, np.eye(9), atol=1e-13)


def test_shrinkage_and_floor_are_recorded_and_tame_whitening() -> None:
    x = features(30, 50)  # rank 29
    moments = Moments.of(x)  # float64: its default floor is the rounding of float64
    gains = {}
    for name, fitted in {
        "default": Normalizer.fit(moments, method="zca"),
        "shrunk": Normalizer.fit(moments, method="zca", shrinkage=0.1),
        "floored": Normalizer.fit(moments, method="zca", eigenvalue_floor=1e-3),
    }.items():
        assert set(fitted.options) == {"shrinkage", "eigenvalue_floor"}
        gains[name] = np.linalg.norm(fitted.forward, 2)
    assert gains["shrunk"] < gains["default"] / 100
    assert gains["floored"] < gains["default"] / 100


def test_unknown_methods_and_options_list_the_known_ones() -> None:
    moments = Moments.of(features(50, 4))
    with pytest.raises(UsageError, match="phi-s, pca, zca, hca"):
        Normalizer.fit(moments, method="phis")
    with pytest.raises(UsageError, match="options: none"):
        Normalizer.fit(moments, shrinkage=0.1)
    with pytest.raises(UsageError, match="options: shrinkage, eigenvalue_floor"):
        Normalizer.fit(moments, method="zca", ridge=0.1)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        Normalizer.fit(moments, method="zca", shrinkage=2.0)
    with pytest.raises(UsageError, match="width 4"):
        Normalizer.fit(moments).transform(np.ones((3, 5)))


def test_a_fitted_normalizer_cannot_be_changed() -> None:
    fitted = Normalizer.fit(Moments.of(features(50, 4)))
    with pytest.raises(ValueError, match="read-only"):
        fitted.forward[0, 0] = 2.0
    with pytest.raises(AttributeError):
        fitted.method = "zca"  # type: ignore[misc]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(INVERTIBLE), st.floats(-3, 3), st.floats(0.1, 50))
def test_shifting_and_scaling_the_features_changes_no_normalized_value(
    method: str, shift: float, scale: float
) -> None:
    x = features(400, 8)
    plain = Normalizer.fit(Moments.of(x), method=method).transform(x)
    moved = x * scale + shift
    again = Normalizer.fit(Moments.of(moved), method=method).transform(moved)
    assert np.allclose(np.abs(plain), np.abs(again), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_torch_module_agrees_with_numpy_and_ignores_autocast(method: str) -> None:
    x = features(200, 12).astype(np.float32)
    fitted = Normalizer.fit(Moments.of(x), method=method)
    module = NormalizerModule(fitted)
    assert set(module.state_dict()) == {"mean", "W", "Theta"}
    assert not list(module.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(torch.from_numpy(x).reshape(10, 20, 12))
        back = module.inverse(y)
    assert y.dtype == torch.float32
    gain = np.max(np.abs(fitted.forward)) * np.max(np.abs(x)) * 12
    expected = fitted.transform(x).reshape(10, 20, 12)
    assert np.allclose(y.numpy(), expected, atol=4 * gain * np.finfo(np.float32).eps)
    if method not in ("pca", "zca", "hca"):
        assert np.max(np.abs(back.numpy().reshape(200, 12) - x)) / x.std() < 1e-5
