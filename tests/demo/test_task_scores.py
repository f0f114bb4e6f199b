"""Scores from features: what a perfect, a shuffled and a useless feature must score."""

import numpy as np
import torch

from phistill.demo import task_scores
from phistill.demo.matte import cells, pixels

RNG = np.random.default_rng(0)


def test_a_perfect_joint_space_retrieves_everything_and_a_shuffled_one_nothing() -> None:
    texts = RNG.normal(size=(200, 32))
    captions = [f"caption {i}" for i in range(200)]
    perfect = task_scores.text_retrieval(3 * texts, texts, captions)
    assert perfect["image to text R@1"].value == 1
    assert perfect["text to image mean rank"].value == 1
    shuffled = task_scores.text_retrieval(RNG.permutation(texts), texts, captions)
    assert shuffled["image to text R@10"].value < 0.15  # chance is 0.05
    assert abs(shuffled["text to image mean rank"].value - 100.5) < 15  # 3.6 standard errors of 4.1


def test_constant_features_rank_in_the_middle_not_first() -> None:
    rank = task_scores.ranks(np.ones((10, 4)), np.ones((10, 4)), np.eye(10, dtype=bool))
    assert (rank == 5.5).all()


def test_images_with_the_very_same_caption_are_all_correct() -> None:
    texts = np.array([[1.0, 0], [1.0, 0], [0, 1.0]])
    scores = task_scores.text_retrieval(texts, texts, ["cat", "cat", "dog"])
    assert scores["image to text mean rank"].value == 1


def test_a_summary_that_ignores_the_view_finds_its_drawing() -> None:
    x = RNG.normal(size=(100, 16))
    assert task_scores.view_matching(x + 0.01 * RNG.normal(size=x.shape), x)["R@1"].value == 1
    assert task_scores.view_matching(RNG.permutation(x), x)["R@1"].value < 0.1


def test_matte_iou_is_one_for_the_truth_and_the_overlap_otherwise() -> None:
    alpha = np.zeros((2, 4, 25))
    alpha[:, :2] = 1
    assert task_scores.matte_iou(alpha, alpha).value == 1
    assert task_scores.matte_iou(np.ones_like(alpha), alpha).value == 0.5
    assert task_scores.matte_iou(1 - alpha, alpha).value == 0
    assert task_scores.matte_iou(np.zeros_like(alpha), np.zeros_like(alpha)).value == 1


def test_the_decoder_is_the_sigmoid_of_a_linear_map() -> None:
    patches, weight = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(4, 5))
    bias = RNG.normal(size=4)
    found = task_scores.decode_matte(patches, weight, bias)
    wanted = 1 / (1 + np.exp(-(np.einsum("ntc,pc->ntp", patches, weight) + bias)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # computed in float32


def test_cells_and_pixels_are_inverse_and_group_by_token() -> None:
    image = torch.arange(3600.0).reshape(1, 60, 60)
    by_token = cells(image)
    assert by_token.shape == (1, 144, 25)
    assert by_token[0, 13].tolist() == image[0, 5:10, 5:10].flatten().tolist()
    assert torch.equal(pixels(by_token), image)


def test_probes_solve_separable_labels_and_fail_on_shuffled_ones() -> None:
    centres = 3 * RNG.normal(size=(5, 20))
    codes = RNG.integers(5, size=600)
    x = centres[codes] + RNG.normal(size=(600, 20))
    labels = [f"class {c}" for c in codes]
    shuffled = list(RNG.permutation(labels))
    for probe in (task_scores.linear_probe, task_scores.knn_probe):
        assert probe(x[:400], labels[:400], x[400:], labels[400:]).value > 0.95
        assert probe(x[:400], shuffled[:400], x[400:], labels[400:]).value < 0.4


def test_ridge_without_penalty_is_least_squares() -> None:
    x, w = RNG.normal(size=(50, 4)), RNG.normal(size=(4, 3))
    x[:, 3] = 7.0  # a dead channel must not divide by zero
    y = x[:, :3] @ w[:3] + 2
    ridge = task_scores.Ridge.fit(x, y, penalty=1e-12)
    np.testing.assert_allclose(ridge(x), y, atol=1e-6)  # penalty is not exactly zero


def test_the_interval_holds_the_mean_and_shrinks_with_more_images() -> None:
    few, many = (
        task_scores.bootstrap(RNG.normal(size=50)),
        task_scores.bootstrap(RNG.normal(size=5000)),
    )
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 5  # ten by the square root of n
