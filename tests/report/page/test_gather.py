"""The numbers of a report against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.errors import MissingMoments, UsageError
from phistill.report.page.gather import CacheFacts, check_methods, gather_cache, share_extremes
from phistill.report.page.students import error_of_the_mean, gather_runs, in_bins, run_names
from phistill.stats import fit_stats, load_normalizer
from phistill.train import evaluate, load_run
from phistill.train.metrics import read_metrics

METHODS = ("none", "standardize", "phi-s", "hca")


def gathered(cache: Cache) -> CacheFacts:
    return gather_cache(cache, methods=METHODS, max_heldout_rows=512)


def vectors(cache: Cache, teacher: str, split: str) -> np.ndarray:
    """Every patch vector of a split, float64."""
    rows = cache.rows(split=split)  # type: ignore[arg-type]
    patches = cache.reader(teacher, "patches").read(rows).astype(np.float64)
    return np.asarray(patches.reshape(-1, patches.shape[-1]))


@pytest.mark.parametrize("method", METHODS)
def test_channel_variances_are_those_of_the_transformed_features(cache: Cache, method: str) -> None:
    facts = gathered(cache)
    for patches in facts.patches:
        normalizer = load_normalizer(cache, patches.teacher, "patches", method)
        for split, found in (("train", patches.train), ("heldout", patches.heldout)):
            expected = normalizer.transform(vectors(cache, patches.teacher, split)).var(axis=0)
            # Moments are float32 products summed in float64: some 1e-6 of the variance.
            np.testing.assert_allclose(found[method], expected, rtol=1e-4)


def test_a_share_is_the_teachers_part_of_the_summed_errors_of_the_mean(cache: Cache) -> None:
    facts = gathered(cache)
    errors = {
        name: np.mean(np.square(x - x.mean(axis=0)))
        for name in cache.teachers
        for x in [vectors(cache, name, "train")]
    }
    for name, share in facts.shares["none"].items():
        assert share == pytest.approx(errors[name] / sum(errors.values()), rel=1e-4)


def test_after_phi_s_every_teacher_has_the_same_share(cache: Cache) -> None:
    shares = gathered(cache).shares["phi-s"]
    # Every channel has variance 1 by construction, so only float64 rounding is left.
    assert list(shares.values()) == pytest.approx([0.5, 0.5], rel=1e-9)


def test_the_finding_names_the_teacher_that_drowns_the_other(cache: Cache) -> None:
    finding = share_extremes(gathered(cache).shares["none"])
    assert finding is not None
    assert (finding.largest, finding.smallest) == ("loud", "quiet")
    # Both teachers draw from one distribution but for the factor; 2 leaves room for chance.
    assert 0.5 < finding.ratio * (2.0**-7) ** 2 < 2


def test_one_teacher_has_nothing_to_be_compared_with() -> None:
    assert share_extremes({"only": 1.0}) is None


def test_raw_and_phi_s_are_always_compared_and_unknown_names_refused() -> None:
    assert check_methods(["hca"]) == ("none", "phi-s", "hca")
    with pytest.raises(UsageError, match="phis is not one of none, global"):
        check_methods(["phis"])


def test_the_counts_are_those_of_the_cache(cache: Cache) -> None:
    facts = gathered(cache)
    assert facts.num_images == facts.num_rows == 64
    assert facts.num_train + facts.num_heldout == 64
    assert facts.image_bytes == 9 * 12 * 2 + 6 * 4 + 8 * 7 * 2  # float16 patches, float32 summary
    assert [(a.stats.teacher, a.stats.kind, a.num_tokens) for a in facts.arrays] == [
        ("loud", "patches", 9),
        ("loud", "summary", 1),
        ("quiet", "patches", 8),
    ]


def test_without_held_out_rows_only_training_rows_are_described(
    make_cache: Callable[..., Cache],
) -> None:
    cache = make_cache(holdout=0.0)
    fit_stats(cache)
    facts = gathered(cache)
    assert facts.num_measured == 0
    assert all(patches.heldout == {} and patches.chance is None for patches in facts.patches)


def test_a_cache_without_statistics_is_refused_with_the_command(
    make_cache: Callable[..., Cache],
) -> None:
    with pytest.raises(MissingMoments, match="phistill fit-stats"):
        gathered(make_cache())


def test_a_loss_is_divided_by_the_loss_of_predicting_the_mean(
    cache: Cache, runs: tuple[Path, Path]
) -> None:
    for path, method in zip(runs, ("phi-s", "none"), strict=True):
        student = load_run(path)
        for teacher in cache.teachers:
            y = load_normalizer(cache, teacher, "patches", method).transform(
                vectors(cache, teacher, "train")
            )
            expected = np.mean(np.square(y - y.mean(axis=0)))
            unit = error_of_the_mean(cache, student, f"{teacher}/patches")
            # float32 products, as above.
            assert unit == pytest.approx(expected, rel=1e-4)
        assert error_of_the_mean(cache, student, "loud/summary") is None


def test_curves_and_evaluations_are_those_of_the_runs(
    cache: Cache, runs: tuple[Path, Path]
) -> None:
    known = evaluate(runs[0], cache, untrained=False)
    found = gather_runs(cache, runs, evaluations={runs[0]: known}, can_evaluate=True, device="cpu")
    assert [run.name for run in found] == ["balanced", "raw"]
    assert found[0].evaluation == tuple(known)
    assert found[1].evaluation == tuple(evaluate(runs[1], cache, untrained=False))
    logged = [line["losses"]["quiet/patches"] for line in read_metrics(runs[1], "train")]
    curve = next(c for c in found[1].curves if c.target == "quiet/patches")
    unit = error_of_the_mean(cache, found[1].student, "quiet/patches")
    assert unit is not None
    np.testing.assert_allclose(curve.values * unit, logged, rtol=1e-12)
    assert [step for step, _ in curve.checks] == [3]


@pytest.mark.parametrize(("num", "limit"), [(1, 120), (119, 120), (120, 120), (1000, 120)])
def test_a_binned_curve_keeps_every_value_and_the_order(num: int, limit: int) -> None:
    steps, values = np.arange(num) + 1.0, np.random.default_rng(num).random(num)
    x, y = in_bins(steps, values, limit)
    assert len(x) == len(y) == min(num, limit)
    assert np.all(np.diff(x) > 0)
    lengths = [len(part) for part in np.array_split(values, len(y))]
    assert np.average(y, weights=lengths) == pytest.approx(values.mean(), rel=1e-12)
    assert max(lengths) - min(lengths) <= 1


def test_runs_are_named_by_the_shortest_tails_that_differ(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    assert run_names(paths) == ["a/run", "b/run", "b/other"]
    assert run_names(paths[1:]) == ["run", "other"]
    assert run_names([]) == []
    with pytest.raises(UsageError, match="one folder twice"):
        run_names([paths[0], tmp_path / "b" / ".." / "a" / "run"])
