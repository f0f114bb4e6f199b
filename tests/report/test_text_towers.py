"""evaluate through the text tower of a teacher: the student in its place, between its nulls."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from phistill.cli import main
from phistill.demo.pictures import BUNDLED
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.report.text_towers import read_classes
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train

CLASSES = ("animals", "food", "computer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of demo:clip and demo:ssl on drawings of four categories."""
    folder = tmp_path_factory.mktemp("text")
    table = pq.read_table(BUNDLED, columns=["image", "category"], use_threads=False)
    kept = [i for i, name in enumerate(table["category"].to_pylist()) if name in CLASSES][:400:2]
    some = table.take(kept)
    labelled = pa.table({"image": some["image"], "label": some["category"]})
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


def test_a_labelled_index_is_classified_by_the_names_of_its_labels(run: Path) -> None:
    record = json.loads(evaluated(run, "--json", "--text-template", "{}"))
    lines = {line["features"]: line for line in record["text"]}
    assert list(lines) == ["teacher", "student", "untrained", "constant"]
    assert {line["teacher"] for line in record["text"]} == {"clip"}, "ssl has no text tower"
    accuracy = {name: line["zero_shot_accuracy"]["value"] for name, line in lines.items()}
    assert accuracy["teacher"] > 0.5
    assert accuracy["teacher"] > accuracy["constant"] + 0.1
    assert lines["teacher"]["zero_shot_accuracy"]["low"] < accuracy["teacher"]
    precision = {name: line["mean_average_precision"] for name, line in lines.items()}
    assert precision["teacher"] > precision["student"] > precision["untrained"] + 0.1


def test_words_of_a_file_stand_for_the_labels_and_leave_out_others(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "words.txt"
    file.write_text("animals\tanimals mammals cat\nfood\tfood fruit\n")
    text = evaluated(run, "--text-classes", str(file), "--text-template", "{}")
    assert "Classes by their names, 2 of them" in text
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith("clip ")]
    assert lines[-4:] == [["clip", who] for who in ("teacher", "student", "untrained", "constant")]


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
