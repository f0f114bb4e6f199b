"""Prints the tables of demo/README.md: statistics of features, and each teacher on its own task.

    python -m phistill.demo.making.score_teachers

Features come from the bundled images through the same adapters as everywhere; untrained weights and
plain pixels stand beside them. Legend: n images, s side, t tokens, c width, d width of a summary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from phistill.pipeline.decode.rgb import DecodeRules, decode
from phistill.pipeline.decode.views import Placement, Rendering, View, render
from phistill.pipeline.teachers.contract import Preprocessing, Teacher

from .. import task_scores
from ..captions import caption
from ..matte import PATCH, cells
from ..pictures import BUNDLED, GREY, Augmentation, Pictures, augmented, composite, read_pictures
from ..teachers import NAMES, build, matte_decoder, text_summaries

UNTRAINED_SEED = 1
PIXEL_SIDE = 16
"""Side of the square that stands for "plain pixels" where one vector per image is needed."""

VIEWS = Augmentation(
    scale=(0.5, 1.0), stretch=1.2, rotate=10, flip=True, colour=0.5, random_background=0.5
)
"""Changes of a held-out drawing by which `ssl` must recognise it."""


def rendered(split: str, preprocessing: Preprocessing) -> UInt8[np.ndarray, "n s s 3"]:
    """The bundled images of a split as `extract` with the view `resize` shows them to a teacher."""
    table = pq.read_table(BUNDLED, filters=[("split", "==", split)], columns=["image"])
    rendering = Rendering(size=preprocessing.size, interpolation=preprocessing.interpolation)
    images = [decode(data, DecodeRules()) for data in table["image"].to_pylist()]
    return np.stack(
        [render(image, Placement(View().box(image.size)), rendering) for image in images]
    )


def run_teacher(
    teacher: Teacher, images: Float[Tensor, "n 3 s s"]
) -> tuple[Float[np.ndarray, "n t c"], Float[np.ndarray, "n d"] | None]:
    """Patches and summary of images in 0 to 1, which are normalised here."""
    preprocessing = teacher.preprocessing()
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    with torch.no_grad():
        parts = [teacher.features((batch - mean) / std) for batch in images.split(256)]
    patches = torch.cat([p.patches.flatten(1, 2).float() for p in parts]).numpy()
    summaries = [p.summary for p in parts if p.summary is not None]
    return patches, torch.cat(summaries).float().numpy() if summaries else None


def bundled_features(
    teacher: Teacher, split: str
) -> tuple[Float[np.ndarray, "n t c"], Float[np.ndarray, "n d"] | None]:
    pixels = torch.from_numpy(rendered(split, teacher.preprocessing()))
    return run_teacher(teacher, pixels.permute(0, 3, 1, 2).float() / 255)


def pixel_vectors(squares: UInt8[Tensor, "n 4 s s"]) -> Float[np.ndarray, "n k"]:
    """PIXEL_SIDE x PIXEL_SIDE colours over grey, one centred vector per image."""
    images = composite(squares.float() / 255, GREY) - 0.5
    return F.interpolate(images, size=PIXEL_SIDE, mode="area").flatten(1).numpy()


def statistics_row(name: str, patches: Float[np.ndarray, "n t c"]) -> list[str]:
    """Width, grid, ranges of the channels' means and standard deviations, and phi."""
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    mean, std = flat.mean(axis=0), flat.std(axis=0)
    grid = round(patches.shape[1] ** 0.5)
    phi = float(np.sqrt(np.mean(std**2)))  # sqrt(trace(covariance) / c)
    return [
        name,
        f"{grid} x {grid}",
        str(patches.shape[2]),
        f"{mean.min():.3f} to {mean.max():.3f}",
        f"{std.min():.4f} to {std.max():.4f}",
        f"{phi:.4f}",
    ]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def print_scores(task: str, scores: Mapping[str, Mapping[str, task_scores.Score]]) -> None:
    columns = list(next(iter(scores.values())))
    print_table(
        [task, *columns],
        [[who, *(str(row[c]) for c in columns)] for who, row in scores.items()],
    )


def score_clip(train: Pictures, held_out: Pictures) -> None:
    """Retrieval; pixels and untrained features get a linear map onto the captions' embeddings."""
    train_texts = text_summaries(
        [caption(n, f) for n, f in zip(train.names, train.folders, strict=True)]
    )
    captions = [caption(n, f) for n, f in zip(held_out.names, held_out.folders, strict=True)]
    texts = text_summaries(captions).numpy()
    summary = {s: bundled_features(build("clip", {}), s)[1] for s in ("train", "heldout")}
    untrained_teacher = build("clip", {"random": str(UNTRAINED_SEED)})
    untrained = {s: bundled_features(untrained_teacher, s)[1] for s in ("train", "heldout")}
    pixels = {"train": pixel_vectors(train.squares), "heldout": pixel_vectors(held_out.squares)}
    scores = {"trained": task_scores.text_retrieval(some(summary["heldout"]), texts, captions)}
    for who, x in (("untrained + ridge", untrained), ("pixels + ridge", pixels)):
        ridge = task_scores.Ridge.fit(some(x["train"]), train_texts.numpy(), penalty=1.0)
        # a weak fit stays near the mean caption, which would then win every search: centre both
        guess = ridge(some(x["heldout"])) - ridge.bias
        scores[who] = task_scores.text_retrieval(guess, texts - ridge.bias, captions)
    print_scores("retrieval", scores)


def some(x: Float[np.ndarray, "n d"] | None) -> Float[np.ndarray, "n d"]:
    assert x is not None  # clip and ssl have a summary
    return x


def score_ssl(train: Pictures, held_out: Pictures) -> None:
    """Recognise a drawing by a changed view; category probes beside it, which pixels win."""
    views, _ = augmented(held_out.squares, PATCH * 12, VIEWS, torch.Generator().manual_seed(0))
    matching, probes = {}, {}
    for who, options in (("trained", {}), ("untrained", {"random": str(UNTRAINED_SEED)})):
        teacher = build("ssl", options)
        size = teacher.preprocessing().size
        seen = F.interpolate(views, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        original = some(bundled_features(teacher, "heldout")[1])
        fitted = some(bundled_features(teacher, "train")[1])
        centre = fitted.mean(axis=0)
        changed = some(run_teacher(teacher, seen)[1])
        matching[who] = task_scores.view_matching(changed - centre, original - centre)
        probes[who] = probe_scores(fitted, train.categories, original, held_out.categories)
    fitted, original = pixel_vectors(train.squares), pixel_vectors(held_out.squares)
    changed = F.interpolate(views - 0.5, size=PIXEL_SIDE, mode="area").flatten(1).numpy()
    centre = fitted.mean(axis=0)
    matching["pixels"] = task_scores.view_matching(changed - centre, original - centre)
    probes["pixels"] = probe_scores(fitted, train.categories, original, held_out.categories)
    print_scores("view matching", matching)
    print_scores("category", probes)


def probe_scores(
    train_x: Float[np.ndarray, "m d"],
    train_labels: list[str],
    x: Float[np.ndarray, "n d"],
    labels: list[str],
) -> dict[str, task_scores.Score]:
    return {
        "linear probe": task_scores.linear_probe(train_x, train_labels, x, labels),
        "10-NN": task_scores.knn_probe(train_x, train_labels, x, labels),
    }


def windows(images: Float[Tensor, "n 3 s s"]) -> Float[np.ndarray, "n t k"]:
    """For each token the pixels of its cell and of the eight cells around it."""
    unfolded = F.unfold(images, kernel_size=3 * PATCH, stride=PATCH, padding=PATCH)
    return unfolded.transpose(1, 2).numpy()


def matte_inputs(pictures: Pictures, background: str) -> Float[Tensor, "n 3 s s"]:
    """Drawings over mid-grey or each over a random colour, in 0 to 1."""
    rgba = pictures.squares.float() / 255
    if background == "grey":
        return composite(rgba, GREY)
    rng = torch.Generator().manual_seed(len(rgba))
    return composite(rgba, torch.rand(len(rgba), 3, generator=rng))


def score_mask(train: Pictures, held_out: Pictures) -> None:
    """Matte IoU; other features get a linear map from token to alpha, fitted by least squares."""
    alpha = {
        name: cells(p.squares[:, 3].float() / 255).numpy()
        for name, p in (("train", train), ("heldout", held_out))
    }
    weight, bias = (t.numpy() for t in matte_decoder())
    trained, untrained = build("mask", {}), build("mask", {"random": str(UNTRAINED_SEED)})
    scores: dict[str, dict[str, task_scores.Score]] = {}
    for background in ("grey", "random colour"):
        column = f"IoU over {background}"
        x = {
            "train": matte_inputs(train, background),
            "heldout": matte_inputs(held_out, background),
        }
        decoded = task_scores.decode_matte(run_teacher(trained, x["heldout"])[0], weight, bias)
        guesses = {
            "trained": decoded,
            "untrained + ridge": ridge_matte(
                run_teacher(untrained, x["train"])[0],
                run_teacher(untrained, x["heldout"])[0],
                alpha["train"],
            ),
            "pixels of 3 x 3 cells + ridge": ridge_matte(
                windows(x["train"]), windows(x["heldout"]), alpha["train"]
            ),
            "all foreground": np.ones_like(alpha["heldout"]),
        }
        for who, guess in guesses.items():
            scores.setdefault(who, {})[column] = task_scores.matte_iou(guess, alpha["heldout"])
    print_scores("matte", scores)


def ridge_matte(
    train_x: Float[np.ndarray, "m t c"],
    x: Float[np.ndarray, "n t c"],
    train_alpha: Float[np.ndarray, "m t pp"],
) -> Float[np.ndarray, "n t pp"]:
    """Alpha predicted from each token by a linear map fitted on the training images."""
    ridge = task_scores.Ridge.fit(
        train_x.reshape(-1, train_x.shape[-1]),
        train_alpha.reshape(-1, train_alpha.shape[-1]),
        penalty=0.01,
    )
    return ridge(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)


def main() -> None:
    rows = [statistics_row(name, bundled_features(build(name, {}), "train")[0]) for name in NAMES]
    print_table(["teacher", "grid", "width", "channel mean", "channel std", "phi"], rows)
    side = PATCH * 12
    train = read_pictures(BUNDLED, split="train", side=side)
    held_out = read_pictures(BUNDLED, split="heldout", side=side)
    score_clip(train, held_out)
    score_ssl(train, held_out)
    score_mask(train, held_out)


if __name__ == "__main__":
    main()
