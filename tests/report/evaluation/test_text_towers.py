"""evaluate through the text tower of a teacher: the student in its place, between its nulls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from phistill import cache as store
from phistill.cli import main
from phistill.demo.captions import caption
from phistill.demo.pictures import BUNDLED
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.report.evaluation.text_towers import read_captions, read_classes
from phistill.stats import fit_stats
from phistill.train import TrainConfig, text_scores, train

CLASSES = ("animals", "food", "computer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of demo:clip and demo:ssl on drawings of four categories."""
    folder = tmp_path_factory.mktemp("text")
    columns = ["image", "category", "name", "folders"]
    table = pq.read_table(BUNDLED, columns=columns, use_threads=False)
    kept = [i for i, name in enumerate(table["category"].to_pylist()) if name in CLASSES][:400:2]
    some = table.take(kept)
    names = zip(some["name"].to_pylist(), some["folders"].to_pylist(), strict=True)
    words = [caption(name, folders) for name, folders in names]
    labelled = pa.table({"image": some["image"], "label": some["category"], "words": words})
    pq.write_table(labelled, folder / "images.parquet")
    settings = CacheSettings(pixel_size=64, holdout=0.4)
    teachers = ["clip=demo:clip", "ssl=demo:ssl"]
    cache = extract(folder / "images.parquet", folder / "c", teachers, settings=settings).cache
    fit_stats(cache)
    config = TrainConfig(
        student="vit_tiny_patch16_224",
        student_options={"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
        head_width=48, batch_size=32, num_steps=60, lr=3e-3, precision="float32", device="cpu",
        tensorboard=False,
    )  # fmt: skip
    train(cache, folder / "run", config)
    return folder / "run"


def evaluated(run: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["evaluate", str(run), "--device", "cpu", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


WHO = ("teacher clip", "student as clip", "untrained as clip", "constant")


def scores_of(run: Path, task: str, *options: str) -> dict[str, dict[str, float]]:
    record = json.loads(evaluated(run, "--json", *options))
    return {one["features"]: one for one in record["tasks"] if one["task"] == task}


def test_a_labelled_index_is_classified_by_the_names_of_its_labels(run: Path) -> None:
    accuracy = scores_of(run, "zero-shot clip", "--text-template", "{}")
    assert tuple(accuracy) == WHO, "ssl has no text tower"
    assert accuracy["teacher clip"]["value"] > 0.5
    assert accuracy["teacher clip"]["value"] > accuracy["constant"]["value"] + 0.1
    assert accuracy["teacher clip"]["low"] < accuracy["teacher clip"]["value"]
    found = scores_of(run, "retrieval mAP clip", "--text-template", "{}")
    precision = [found[who]["value"] for who in WHO]
    assert precision[0] > precision[1] > precision[2] + 0.1


def test_every_task_stands_in_one_table_beside_its_nulls(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("animals\tanimals mammals cat\nfood\tfood fruit\n")
    images = Path(run).parent / "images.parquet"
    text = evaluated(
        run,
        *("--text-classes", str(file), "--text-template", "{}", "--masks", f"alpha:{images}"),
    )
    table = text[text.index("What the features are good for") :].splitlines()
    for task in ("kNN", "linear probe", "zero-shot clip", "retrieval mAP clip", "mean IoU"):
        assert task in table[1]
    names = [line.split("  ")[0] for line in table[3:] if line and "Higher" not in line]
    assert names == [
        *("teacher clip", "teacher ssl", "student as clip", "student as ssl"),
        *("student, backbone", "untrained as clip", "untrained as ssl", "untrained, backbone"),
        *("plain pixels", "constant"),
    ]
    assert "zero-shot clip: 55 images, 2 classes" in table[-1]


def test_captions_find_their_images_and_images_their_captions(run: Path, tmp_path: Path) -> None:
    index = store.open(run.parent / "c").index().to_pydict()
    words = pq.read_table(run.parent / "images.parquet", use_threads=False)["words"].to_pylist()
    file = tmp_path / "captions.txt"
    lines = zip(index["id"], index["offset"], strict=True)
    file.write_text("".join(f"{name}\t{words[offset]}\n" for name, offset in lines))
    record = json.loads(evaluated(run, "--json", "--captions", str(file)))
    for task in ("image to text R@10 clip", "text to image R@10 clip"):
        found = {one["features"]: one for one in record["tasks"] if one["task"] == task}
        assert tuple(found) == WHO
        assert found["teacher clip"]["value"] > found["untrained as clip"]["value"]
    file.write_text("nowhere.png\ta cat\n")
    for content, message in ((file.read_text(), "none of the 1 captions"), ("x\n", "a tab and")):
        file.write_text(content)
        done = CliRunner().invoke(main, ["evaluate", str(run), "--captions", str(file)])
        assert done.exit_code == 2
        assert message in done.output


def test_of_several_captions_of_an_image_each_is_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a.png\tone\nb.png\tother\na.png\ttwo\n")
    assert read_captions(tmp_path / "captions.txt") == {"a.png": ["one", "two"], "b.png": ["other"]}
    cache = store.open(run.parent / "c")
    rows = cache.rows(split="heldout")
    names = cache.lines(rows, ["id"])["id"].to_pylist()
    summaries = torch.from_numpy(cache.reader("clip", "summary").read(rows))
    known: dict[str, torch.Tensor] = dict(zip(names, summaries, strict=True))

    def encode(texts: Sequence[str]) -> torch.Tensor:
        """Of ``+ID`` the image's own summary, of ``-ID`` what is farthest from it."""
        own = (known.get(text[1:], known[names[0]]) for text in texts)
        signs = (-1.0 if text.startswith("-") else 1.0 for text in texts)
        return torch.stack([sign * value for sign, value in zip(signs, own, strict=True)])

    captions = {name: [f"-{name}", f"+{name}"] for name in names}
    scores = text_scores(run, {"clip": encode}, captions=captions, device="cpu")
    found = {(one.task, one.features): one.score for one in scores}
    assert found["image to text R@10 clip", "teacher clip"].value == 1.0
    assert found["text to image R@10 clip", "teacher clip"].value == 0.5
    assert found["text to image R@10 clip", "teacher clip"].num_images == len(names)


def test_where_all_training_images_are_judged_labels_are_not_said_to_be_missing(run: Path) -> None:
    text = evaluated(run, "--split", "train")
    assert "training images that are not judged themselves" in " ".join(text.split())
    assert "zero-shot clip" in text, "which asks for labels alone"


def test_lists_of_classes_that_cannot_be_used_are_refused(run: Path, tmp_path: Path) -> None:
    for content in (b"one\n", b"a\na\n", b"\xff\xfe\x00"):
        (tmp_path / "words.txt").write_bytes(content)
        with pytest.raises(UsageError, match="classes"):
            read_classes(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_text("cars\nhouses\n")
    arguments = ["evaluate", str(run), "--text-classes", str(tmp_path / "words.txt")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert "0 heldout images of theirs" in done.output
