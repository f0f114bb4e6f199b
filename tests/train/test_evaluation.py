"""What an evaluation says: nulls, intervals, likeness, labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phistill.cache import Cache
from phistill.report.tables import evaluation_table, verdict_text
from phistill.train import TrainConfig, evaluate, load_run, train, verdict
from phistill.train.evaluation.probes import knn_hits, linear_hits
from phistill.train.evaluation.similarity import cka, neighbour_overlap, rank_me

Config = Callable[..., TrainConfig]


def clusters(n: int, c: int = 8, k: int = 3, apart: float = 6.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % k
    x = torch.randn(n, c, generator=generator)
    x[torch.arange(n), labels] += apart
    return x, labels


def test_directions_are_divided_by_those_of_the_training_mean(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(learnable_cache, tmp_path / "run", make_config(num_steps=3))
    line = next(one for one in evaluate(tmp_path / "run") if one.kind == "summary")
    rows = learnable_cache.rows(["a", "b"], "heldout")
    stored = learnable_cache.reader("a", "summary").read(rows).astype(np.float64)
    mean = np.asarray(load_run(tmp_path / "run").facts["means"]["a/summary"])

    def cosines(x: np.ndarray) -> np.ndarray:
        top = (x * stored).sum(1)
        return np.asarray(top / np.linalg.norm(x, axis=1) / np.linalg.norm(stored, axis=1))

    constant = cosines(np.broadcast_to(mean, stored.shape)).mean()
    assert line.constant_cosine == pytest.approx(constant, abs=1e-5)
    assert line.error == pytest.approx((1 - line.cosine) / (1 - constant), rel=1e-3)
    assert line.mse is line.unexplained is None
    # Summaries are nearly constant here: a high cosine says nothing, the quotient does.
    assert line.constant_cosine > 0.9


def test_a_student_no_better_than_the_constant_is_flagged(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1, lr=0.0))
    lines = evaluate(tmp_path / "run", untrained=False)
    assert all(line.beats_constant is False for line in lines if line.kind == "patches")
    assert "NO BETTER THAN THE CONSTANT" in evaluation_table(lines)


def test_two_students_are_compared_image_by_image(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=60, batch_size=32, lr=1e-2, log_every=100)
    train(learnable_cache, tmp_path / "run", config)
    lines = evaluate(tmp_path / "run")
    by_label = {(line.student, line.column): line for line in lines}
    better, worse = by_label["trained", "a/patches"], by_label["untrained", "a/patches"]
    assert better.num_images >= 30
    assert better.minus(worse).is_negative
    assert better.minus(better).value == 0
    assert better.beats_constant


def test_everything_that_evaluate_says_is_named_in_its_json(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=120, batch_size=32, lr=1e-2, log_every=100)
    train(learnable_cache, tmp_path / "run", config)
    found = verdict(tmp_path / "run")
    record = json.loads(json.dumps(found.to_dict()))
    assert {*record} == {
        *("fidelity", "likeness", "rank_me", "cka_matrix", "labels", "num_classes"),
    }
    alike = {(one.student, one.teacher): one for one in found.likeness}
    assert alike["student", "a"].cka > alike["untrained", "a"].cka
    assert found.matrix["teacher a"]["teacher a"] == pytest.approx(1)
    assert found.matrix["teacher a"]["teacher b"] == found.matrix["teacher b"]["teacher a"]
    assert found.ranks["student, backbone"] >= 1
    text = verdict_text(found)
    for title in ("How alike to the teacher", "CKA between teachers", "RankMe", "error:"):
        assert title in text


def test_features_are_alike_up_to_a_rotation_and_a_scale_and_not_by_width_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 200, generator=generator)
    turned = torch.linalg.qr(torch.randn(200, 200, generator=generator))[0]
    assert cka(x, 3 * x @ turned + 1) == pytest.approx(1, abs=1e-6)
    other = torch.randn(60, 200, generator=generator)
    assert abs(cka(x, other)) < 0.1, "the biased estimate would be near 0.8"
    assert math.isnan(cka(x[:3], x[:3]))


def test_neighbours_are_shared_by_equal_features_and_by_chance_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, 16, generator=generator) for _ in range(2))
    assert torch.equal(neighbour_overlap(x, 2 * x), torch.ones(200, dtype=torch.float64))
    assert neighbour_overlap(x, y).mean() == pytest.approx(10 / 199, abs=0.02)


@given(st.integers(1, 12))
def test_as_many_directions_are_counted_as_there_are(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(200, rank, generator=generator))[0]
    x = basis @ torch.linalg.qr(torch.randn(16, rank, generator=generator))[0].T
    assert rank_me(x) == pytest.approx(rank, rel=1e-3)


def test_probes_find_what_is_there_and_nothing_else() -> None:
    x, labels = clusters(300)
    test, wanted = clusters(90)
    assert knn_hits(x, labels, test, wanted).float().mean() > 0.95
    assert linear_hits(x, labels, test, wanted).float().mean() > 0.95
    noise = torch.randn(300, 8), torch.randn(90, 8)
    assert knn_hits(noise[0], labels, noise[1], wanted).float().mean() < 0.55
    assert linear_hits(noise[0], labels, noise[1], wanted).float().mean() < 0.55


def test_the_probe_is_the_logistic_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    from phistill.train.evaluation.probes import _fitted

    x, labels = clusters(200, apart=1.0)
    weight, _ = _fitted(x, labels, 3, 0.1)
    # Theirs sums the loss where ours is a mean: C = 1 / (n penalty).
    theirs = LogisticRegression(C=1 / (200 * 0.1), tol=1e-8, max_iter=1000).fit(x, labels)
    torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_).float(), rtol=0.02, atol=2e-3)
