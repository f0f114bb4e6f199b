"""Scores of the demo teachers' own tasks, from features alone: a teacher's or a student's.

Every score is a mean over held-out images with a bootstrap interval. Legend: n images, d width of a
summary, t tokens, c width of a token, pp pixels under a token, k categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

BOOTSTRAP_DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over n images and its bootstrap interval at LEVEL."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Float[np.ndarray, " n"], seed: int = 0) -> Score:
    """Mean of one value per image, with the percentile interval over resampled images."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    means = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(values.mean()), float(low), float(high), len(values))


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows divided by their length; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def ranks(
    queries: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "m d"],
    correct: Bool[np.ndarray, "n m"],
) -> Float[np.ndarray, " n"]:
    """Rank of each query's best correct item by cosine, 1 is first; ties count half."""
    similarity = unit(queries) @ unit(gallery).T
    best = np.where(correct, similarity, -np.inf).max(axis=1, keepdims=True)
    above = ((similarity > best) & ~correct).sum(axis=1)
    level = ((similarity == best) & ~correct).sum(axis=1)
    return 1 + above + level / 2


def retrieval(
    queries: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "m d"],
    correct: Bool[np.ndarray, "n m"],
) -> dict[str, Score]:
    """R@1, R@10 and mean rank of retrieving any correct item for each query."""
    rank = ranks(queries, gallery, correct)
    return {
        "R@1": bootstrap(rank < 2),
        "R@10": bootstrap(rank < 11),
        "mean rank": bootstrap(rank),
    }


def text_retrieval(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "n d"],
    captions: Sequence[str],
) -> dict[str, Score]:
    """Both directions between images and their captions in the joint space of `clip`.

    An image or caption counts as correct for every partner with the very same words: the folders
    give some drawings one caption, and nothing could tell those apart.
    """
    same = np.array(captions)[:, None] == np.array(captions)[None]
    image_to_text = retrieval(images, texts, same)
    text_to_image = retrieval(texts, images, same)
    return {
        **{f"image to text {k}": v for k, v in image_to_text.items()},
        **{f"text to image {k}": v for k, v in text_to_image.items()},
    }


def view_matching(
    views: Float[np.ndarray, "n d"], originals: Float[np.ndarray, "n d"]
) -> dict[str, Score]:
    """Find each drawing by a changed view of it among all held-out ones: what `ssl` learned."""
    return retrieval(views, originals, np.eye(len(views), dtype=bool))


def matte_iou(predicted: Float[np.ndarray, "n t pp"], alpha: Float[np.ndarray, "n t pp"]) -> Score:
    """Intersection over union of the alpha above one half, per image, averaged.

    `predicted` holds alpha values, not logits; an image empty in both counts as 1.
    """
    a = np.asarray(predicted).reshape(len(predicted), -1) > 0.5
    b = np.asarray(alpha).reshape(len(alpha), -1) > 0.5
    both, either = (a & b).sum(axis=1), (a | b).sum(axis=1)
    return bootstrap(np.where(either > 0, both / np.maximum(either, 1), 1.0))


def decode_matte(
    patches: Float[np.ndarray, "n t c"],
    weight: Float[np.ndarray, "pp c"],
    bias: Float[np.ndarray, " pp"],
) -> Float[np.ndarray, "n t pp"]:
    """Alpha values from `mask`'s patch tokens and its linear decoder: sigmoid(W x + b)."""
    logits = np.asarray(patches, dtype=np.float32) @ weight.T.astype(np.float32) + bias
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map fitted by least squares with an L2 penalty, on standardised inputs."""

    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]
    weight: Float[np.ndarray, "c k"]
    bias: Float[np.ndarray, " k"]

    @classmethod
    def fit(cls, x: Float[np.ndarray, "n c"], y: Float[np.ndarray, "n k"], penalty: float) -> Ridge:
        """Minimise mean |x w + b - y|^2 + penalty * |w|^2 for standardised x.

        A channel without variance keeps std 1, so that it stays zero instead of dividing by zero.
        """
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        mean, std = x.mean(axis=0), x.std(axis=0)
        std = np.where(std > 0, std, 1.0)
        z, bias = (x - mean) / std, y.mean(axis=0)
        gram = z.T @ z / len(z) + penalty * np.eye(z.shape[1])
        return cls(mean, std, np.linalg.solve(gram, z.T @ (y - bias) / len(z)), bias)

    def __call__(self, x: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
        return (np.asarray(x, dtype=np.float64) - self.mean) / self.std @ self.weight + self.bias


def linear_probe(
    train_x: Float[np.ndarray, "m d"],
    train_labels: Sequence[str],
    x: Float[np.ndarray, "n d"],
    labels: Sequence[str],
    penalty: float = 0.1,
) -> Score:
    """Accuracy of ridge regression onto one-hot categories."""
    names, codes = np.unique(np.array(train_labels), return_inverse=True)
    ridge = Ridge.fit(train_x, np.eye(len(names))[codes], penalty)
    guess = names[ridge(x).argmax(axis=1)]
    return bootstrap(guess == np.array(labels))


def knn_probe(
    train_x: Float[np.ndarray, "m d"],
    train_labels: Sequence[str],
    x: Float[np.ndarray, "n d"],
    labels: Sequence[str],
    neighbours: int = 10,
) -> Score:
    """Accuracy of the vote of the nearest training images by cosine, weighted by similarity."""
    names, codes = np.unique(np.array(train_labels), return_inverse=True)
    similarity = unit(x) @ unit(train_x).T
    nearest: Int[np.ndarray, "n j"] = np.argsort(-similarity, axis=1)[:, :neighbours]
    votes = np.zeros((len(x), len(names)))
    weights = np.take_along_axis(similarity, nearest, axis=1)
    for column in range(nearest.shape[1]):
        np.add.at(votes, (np.arange(len(x)), codes[nearest[:, column]]), weights[:, column])
    return bootstrap(names[votes.argmax(axis=1)] == np.array(labels))
