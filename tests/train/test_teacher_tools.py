"""A teacher's own tools on features in its place: texts, retrieval, decoders of patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score

from phistill.cache import Cache
from phistill.errors import UsageError
from phistill.stats.intervals import interval
from phistill.train import load_run, train
from phistill.train.evaluation.teacher_tools import (
    average_precision,
    class_vectors,
    decoded,
    mean_iou,
    overlaps,
    retrieval_hits,
    zero_shot_hits,
)

MakeConfig = Callable[..., Any]


def words(texts: Sequence[str]) -> torch.Tensor:
    """A text tower that knows two words: lengths other than 1 must not matter."""
    return torch.tensor([[5.0 * ("cat" in t) + 0.1, ("dog" in t) + 0.1, 0.0] for t in texts])


def test_a_class_is_the_mean_direction_of_its_templates() -> None:
    found = class_vectors(words, ["cat", "dog"], ["a {}.", "{} and cat"])
    units = torch.nn.functional.normalize(words(["a dog.", "dog and cat"]), dim=1)
    expected = units.mean(0) / units.mean(0).norm()
    torch.testing.assert_close(found[1], expected)
    with pytest.raises(UsageError, match=r"\{\} in each template"):
        class_vectors(words, ["cat"], ["a photo"])


def test_the_nearest_text_names_the_class_whatever_the_lengths() -> None:
    vectors = class_vectors(words, ["cat", "dog"])
    images = torch.tensor([[100.0, 0, 0], [0, 0.01, 0], [3.0, 1.0, 9.0]])
    hits = zero_shot_hits(images, vectors, torch.tensor([0, 1, 1]))
    assert hits.tolist() == [True, True, False]


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 8, generator=generator) for n in (80, 4))
    labels = torch.randint(3, (80,), generator=generator)  # the fourth class has no image
    found = average_precision(images, texts, labels)
    cosines = (
        torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    )
    expected = [average_precision_score(labels == k, cosines[:, k]) for k in range(3)]
    np.testing.assert_allclose(found[:3], expected)
    assert math.isnan(found[3])


def test_captions_are_retrieved_within_the_first_few() -> None:
    texts = torch.eye(4)
    images = texts + 0.1
    images[2] = texts[1] + 0.9 * texts[2]  # its own caption comes second
    correct = torch.eye(4, dtype=torch.bool)
    assert retrieval_hits(images, texts, correct).tolist() == [True, True, False, True]
    assert retrieval_hits(images, texts, correct, first=2).all()


def test_intersection_over_union_is_that_of_scikit_learn_and_has_an_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, wanted = (torch.randint(3, (40, 6, 6), generator=generator) for _ in range(2))
    columns = overlaps(predicted, wanted, 4)  # the fourth class is nowhere
    expected = jaccard_score(wanted.ravel(), predicted.ravel(), average="macro")
    found = interval(columns, mean_iou)
    assert found.value == pytest.approx(expected)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    ignored = wanted.clone()
    ignored[:, :, 0] = -1
    expected = jaccard_score(wanted[:, :, 1:].ravel(), predicted[:, :, 1:].ravel(), average="macro")
    assert interval(overlaps(predicted, ignored, 3), mean_iou).value == pytest.approx(expected)


def test_a_decoder_sees_the_students_patches_on_the_teachers_grid(
    fitted_cache: Cache, make_config: MakeConfig, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=2))
    student = load_run(tmp_path / "run")
    pixels = fitted_cache.reader("pixels", "pixels").read(fitted_cache.rows()[:3])
    found = decoded(student, "b", lambda patches: patches * 2, pixels)
    assert found.shape == (3, 4, 4, 7)
    expected = student.predict(pixels)["b"]["patches"]
    torch.testing.assert_close(found.flatten(1, 2), 2 * expected)
    with pytest.raises(UsageError, match="no patches of 'x'; it has a, b, c"):
        decoded(student, "x", lambda patches: patches, pixels)
