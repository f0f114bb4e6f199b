"""What a person is told: ranks, outliers, convergence, dispersion, and the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.cache import Cache, TeacherInfo
from phistill.report.tables import statistics_notes, statistics_table
from phistill.stats import Description, fit_stats, load_description, load_moments
from phistill.stats.description import ConvergenceStep, effective_rank, squared_angles
from phistill.stats.moments.moments import Accumulator
from phistill.stats.moments.squared_norms import SquaredNorms

CacheFactory = Callable[..., Cache]


def squared_norms(x: np.ndarray) -> SquaredNorms:
    accumulator = Accumulator(x.shape[1])
    for start in range(0, len(x), 4096):
        accumulator.add(x[start : start + 4096].astype(np.float32))
    return accumulator.squared_norms


def naive_top_share(x: np.ndarray, fraction: float) -> float:
    squared = np.sort(np.sum((x - x.mean(axis=0)) ** 2, axis=1))[::-1]
    return float(squared[: max(1, round(fraction * len(x)))].sum() / squared.sum())


@pytest.mark.parametrize("c", [1, 12, 188])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gaussian", "student-t"])
def test_gaussian_and_student_t_tokens_raise_no_warning(kind: str, seed: int, c: int) -> None:
    """N8. Each channel by itself, and one heavy factor per token: both are silent."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20_000, c)) if kind == "gaussian" else rng.standard_t(5, (20_000, c))
    assert not row(outlier_share=squared_norms(x).top_share()).has_outliers
    if kind == "student-t":
        x = rng.normal(size=(20_000, c)) / np.sqrt(rng.chisquare(5, (20_000, 1)) / 5)
        assert not row(outlier_share=squared_norms(x).top_share()).has_outliers


@pytest.mark.parametrize("c", [12, 188])
def test_a_few_enormous_tokens_raise_the_warning_with_their_share(c: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, c))
    x[rng.choice(len(x), 20, replace=False)] *= 30
    share = squared_norms(x).top_share()
    # 0.1 % of tokens with 900 times the square: 0.9 / 1.9; bins are 9 % wide, blocks differ
    assert share == pytest.approx(naive_top_share(x, 1e-3), rel=0.03)
    assert row(outlier_share=share).has_outliers
    assert "47% of the variance" in "".join(statistics_notes([row(outlier_share=0.47)]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([1e-3, 0.01, 0.5]))
def test_histograms_merge_exactly_and_bound_the_share(a: int, b: int, fraction: float) -> None:
    values = np.random.default_rng(a + 1000 * b).exponential(size=a + b) ** 2
    whole, merged = (
        SquaredNorms.of(values),
        SquaredNorms.of(values[:a]) + SquaredNorms.of(values[a:]),
    )
    assert np.array_equal(whole.counts, merged.counts)
    assert np.allclose(whole.sums, merged.sums, rtol=1e-13)
    top = np.sort(values)[::-1]
    wanted = max(1.0, fraction * len(top))
    count = int(wanted)
    exact = top[:count].sum() + (top[count] * (wanted - count) if count < len(top) else 0.0)
    assert whole.top_share(fraction) == pytest.approx(exact / top.sum(), rel=0.1)


def test_fewer_vectors_than_channels_are_a_warning() -> None:
    assert "12 vectors span fewer" in "".join(statistics_notes([row(width=12, num_vectors=12)]))
    assert "span fewer" not in "".join(statistics_notes([row(width=12, num_vectors=13)]))


def test_a_handful_of_vectors_raises_no_warning() -> None:
    assert row(outlier_share=0.3).has_outliers
    assert not row(outlier_share=0.3, num_vectors=1_000).has_outliers


def test_no_variance_has_no_outliers() -> None:
    assert SquaredNorms.of(np.zeros(50)).top_share() == 0.0
    assert SquaredNorms.zero().top_share() == 0.0


def test_effective_rank_counts_equal_directions_and_ignores_empty_ones() -> None:
    assert effective_rank(np.ones(17)) == pytest.approx(17)
    assert effective_rank(np.array([3.0, 3.0, 0.0, 0.0])) == pytest.approx(2)
    values = np.arange(1.0, 9.0)
    s = np.sqrt(values)
    p = s / s.sum()
    assert effective_rank(values) == pytest.approx(np.prod(p**-p))


def test_dispersion_is_the_mean_squared_angle_to_the_mean_direction(
    make_cache: CacheFactory,
) -> None:
    cache = make_cache(num_rows=120)
    fit_stats(cache)
    y = cache.reader("a", "summary").read(cache.rows(["a"])).astype(np.float64)
    m = y.mean(axis=0)
    cosine = y @ m / np.linalg.norm(y, axis=1) / np.linalg.norm(m)
    expected = np.mean(np.arccos(cosine) ** 2)
    found = load_description(cache, "a", "summary").dispersion
    assert found == pytest.approx(expected, rel=1e-6)  # a mean of float32 products
    assert load_description(cache, "a", "patches").dispersion is None


def test_angles_of_zero_and_opposite_vectors_are_defined() -> None:
    mean = np.array([1.0, 0.0])
    y = np.array([[2.0, 0.0], [0.0, 0.0], [-3.0, 0.0]], dtype=np.float32)
    assert np.allclose(squared_angles(y, mean), [0.0, (np.pi / 2) ** 2, np.pi**2])


def test_convergence_shrinks_as_data_doubles(make_cache: CacheFactory) -> None:
    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 12})
    cache = make_cache(num_rows=3000, shard_rows=64, teachers=[teacher])
    (found,) = fit_stats(cache)
    steps = found.convergence
    sizes = [step.num_rows for step in steps]
    assert len(steps) >= 4
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < found.num_rows
    assert steps[-1].mean_shift < steps[0].mean_shift / 2
    # independent Gaussian vectors: the standard error of the mean over phi, and of the missing part
    first = steps[0].num_rows * 64
    assert steps[0].mean_shift == pytest.approx(np.sqrt(1 / first), rel=0.7)


def test_convergence_compares_prefixes_of_the_rows_with_all_of_them(
    make_cache: CacheFactory,
) -> None:
    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 12})
    cache = make_cache(num_rows=600, teachers=[teacher])
    (found,) = fit_stats(cache)
    rows = cache.rows(["a"])
    final = load_moments(cache, "a", "patches")
    for step in found.convergence:
        x = cache.reader("a", "patches").read(rows[: step.num_rows]).reshape(-1, 12)
        x = x.astype(np.float64)
        shift = np.linalg.norm(x.mean(axis=0) - final.mean) / (found.phi * np.sqrt(12))
        assert step.mean_shift == pytest.approx(shift, rel=1e-3)
        phi = np.sqrt(np.mean(x.var(axis=0)))
        assert step.phi_change == pytest.approx(abs(phi / found.phi - 1), rel=1e-3, abs=1e-6)


def test_stable_after_is_the_first_size_from_which_nothing_moved() -> None:
    def steps(*shifts: float) -> tuple[ConvergenceStep, ...]:
        return tuple(ConvergenceStep(2**i, shift, 0.0, 0.0) for i, shift in enumerate(shifts))

    assert row(convergence=steps(0.1, 1e-4, 0.1, 1e-4, 1e-5)).stable_after == 8
    assert row(convergence=steps(0.1, 0.1)).stable_after is None
    assert row().stable_after is None
    assert (
        "stable to 0.1% after 8 rows"
        in statistics_notes([row(convergence=steps(0.1, 1e-4, 0.1, 1e-4, 1e-5))])[0]
    )
    assert "not yet stable" in statistics_notes([row(convergence=steps(0.1))])[0]


@pytest.mark.parametrize("tokens", [1, 64])
def test_the_rows_that_are_wanted_bring_mean_and_phi_within_a_hundredth(
    tokens: int, make_cache: CacheFactory
) -> None:
    """Tokens of an image share half of their variance, as those of real ones do."""
    side = int(tokens**0.5)
    teacher = TeacherInfo(name="a", grid=(side, side), widths={"patches": 12})
    generator = np.random.default_rng(0)

    def features(owner: str, kind: str, start: int, values: np.ndarray) -> np.ndarray:
        shared = generator.standard_normal((len(values), 1, 12))
        own = generator.standard_normal(values.shape)
        return ((shared + own) / np.sqrt(2)).astype(values.dtype)

    cache = make_cache(num_rows=1200, teachers=[teacher], features=features)
    (found,) = fit_stats(cache)
    # An image's mean has variance (1 + 1 / tokens) / 2 per channel.
    truth = (1 + 1 / tokens) / 2 / 0.01**2
    assert truth / 3 < found.num_rows_wanted < truth * 3


def test_every_array_has_a_line_on_how_settled_it_is() -> None:
    (thin,) = statistics_notes([row(num_rows=3, num_vectors=300, width=7)])
    assert "3 rows are too few to see" in thin
    assert "want about 10,000 rows, 9,997 more." in thin
    enough = row(num_rows=20_000, num_vectors=20_000, width=7)
    assert enough.num_rows_wanted == 10_000
    assert statistics_notes([enough])[0].endswith("want about 10,000 rows: there are enough.")


def row(**changes: Any) -> Description:
    values: dict[str, Any] = {
        "teacher": "ssl",
        "kind": "patches",
        "width": 192,
        "num_vectors": 1_234_567,
        "mean_min": -3.3945,
        "mean_max": 4.293,
        "std_min": 0.3918,
        "std_max": 4.3008,
        "phi": 1.3158,
        "effective_rank": 134.25,
        "rotation": "sylvester 16 x paley1 12",
        "num_rows": 20_000,
    }
    return Description(**{**values, **changes})


def test_a_description_survives_json() -> None:
    steps = (ConvergenceStep(5, 0.1, 0.2, 0.3),)
    for original in (row(), row(convergence=steps, dispersion=0.7)):
        assert msgspec.json.decode(msgspec.json.encode(original), type=Description) == original


def test_the_table_is_aligned_text() -> None:
    table = statistics_table([row(), row(teacher="a-long-name", phi=0.02415, width=8)])
    header, rule, first, second = table.splitlines()
    assert header.split()[:3] == ["teacher", "kind", "width"]
    assert set(rule) == {"-"}
    assert first.index("192") + 3 == second.index("8  ") + 1
    assert "1,234,567" in first
    assert "-3.39 .. 4.29" in first
    assert first.endswith("sylvester 16 x paley1 12")
    assert "0.02415" in second
