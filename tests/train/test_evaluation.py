"""What an evaluation says: nulls, intervals, likeness, labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from phistill.cache import Cache
from phistill.report.tables import evaluation_table, verdict_text
from phistill.train import TrainConfig, evaluate, load_run, train, verdict
from phistill.train.evaluation.probes import knn_hits, linear_hits

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
        *("fidelity", "likeness", "rank_me", "cka_matrix", "tasks"),
    }
    alike = {(one.student, one.teacher): one for one in found.likeness}
    assert alike["student", "a"].cka.value > alike["untrained", "a"].cka.value
    assert found.matrix["teacher a"]["teacher a"] == pytest.approx(1)
    assert found.matrix["teacher a"]["teacher b"] == found.matrix["teacher b"]["teacher a"]
    assert found.ranks["student, backbone"].value >= 1
    text = verdict_text(found)
    for title in ("How alike to the teacher", "CKA between teachers", "RankMe", "error:"):
        assert title in text


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

    from phistill.train.evaluation.probes import fitted

    x, labels = clusters(200, apart=1.0)
    weight, _ = fitted(x, labels, 3, 0.1)
    # Theirs sums the loss where ours is a mean: C = 1 / (n penalty).
    theirs = LogisticRegression(C=1 / (200 * 0.1), tol=1e-8, max_iter=1000).fit(x, labels)
    torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_).float(), rtol=0.02, atol=2e-3)
