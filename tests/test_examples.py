"""The small files in examples/ run as their first lines say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.imagenet_info import ImageNetInfo

from phistill import cache as store
from phistill.errors import TeacherError
from tests.pictures import coloured_squares

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A working folder with the examples and two books of three pages."""
    for name in ("bookshelf_images.py", "edges_teacher.py", "lite0_teacher.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text("utf-8"), "utf-8")
    (tmp_path / "books").mkdir()
    random = np.random.default_rng(0)
    for book in ("a", "b"):
        with zipfile.ZipFile(tmp_path / "books" / f"{book}.cbz", "w") as pages:
            for page in range(3):
                with pages.open(f"{page}.png", "w") as file:
                    pixels = random.integers(0, 256, (40, 30, 3), np.uint8)
                    Image.fromarray(pixels).save(file, "PNG")
    return tmp_path


def phistill(folder: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("phistill")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_teacher_and_an_image_source_from_one_file_each(beside: Path) -> None:
    assert "Ready to be used." in phistill(beside, "check-teacher", "module:edges_teacher:build")
    source = "module:bookshelf_images:open_shelf?folder=books"
    teacher = "edges=module:edges_teacher:build?widths=2"
    phistill(beside, "extract", source, "--cache", "my.cache", "--teacher", teacher)
    cache = store.open(beside / "my.cache")
    assert cache.num_rows == 6
    assert cache.teacher("edges").widths == {"patches": 16, "summary": 16}
    assert cache.teacher("edges").licence == "apache-2.0"
    assert sorted(cache.index()["label"].to_pylist()) == ["a"] * 3 + ["b"] * 3
    # Finished by the same command, which finds the same images.
    assert "nothing to do" in phistill(beside, "extract", source, "--cache", "my.cache")


@pytest.mark.parametrize("example", ["lightning_student", "accelerate_student"])
def test_other_loops_learn_from_the_cache(beside: Path, example: str) -> None:
    coloured_squares(beside / "photos", 80)
    teacher = "edges=module:edges_teacher:build?widths=2"
    make = ("extract", "photos", "--cache", "my.cache", "--teacher", teacher)
    phistill(beside, *make, "--pixel-size", "32", "--holdout", "0")
    phistill(beside, "fit-stats", "my.cache")
    losses = []
    for epochs in ("1", "8"):
        command = [sys.executable, str(EXAMPLES / f"{example}.py"), "my.cache", "edges", epochs]
        done = subprocess.run(command, cwd=beside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses.append(float(done.stdout.split()[-1]))
    assert losses[1] < losses[0]


def loaded(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(example, EXAMPLES / f"{example}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cached_features_of_a_trained_model_know_a_bell_cote_and_a_daisy(beside: Path) -> None:
    """The real weights: the model's own classifier on the summaries that the cache holds."""
    (beside / "photos").mkdir()
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(beside / "photos" / f"{name}.png")
    teacher = "lite0=module:lite0_teacher:build"
    assert "Ready to be used." in phistill(beside, "check-teacher", teacher)
    phistill(beside, "extract", "photos", "--cache", "my.cache", "--teacher", teacher)
    cache = store.open(beside / "my.cache")
    assert cache.teacher("lite0").grid == (7, 7)
    rows = cache.rows(split="all")
    summaries = torch.from_numpy(cache.reader("lite0", "summary").read(rows))
    classifier = loaded("lite0_teacher").trained().classifier
    with torch.inference_mode():
        classes = classifier(summaries).argmax(1).tolist()
    named = dict(zip(cache.index()["id"].to_pylist(), classes, strict=True))
    words = {name: ImageNetInfo().index_to_description(index) for name, index in named.items()}
    assert words == {"china.png": "bell cote, bell cot", "flower.png": "daisy"}


def test_weights_in_another_order_of_modules_are_not_loaded() -> None:
    example = loaded("lite0_teacher")
    wanted = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
    swapped = {"_a.bias": torch.zeros(2), "_a.weight": torch.zeros(2)}
    with pytest.raises(TeacherError, match=r"_a\.bias \(2,\) is not a\.weight"):
        example.in_order(swapped, wanted)
    wider = {"_a.weight": torch.zeros(3), "_a.bias": torch.zeros(2)}
    with pytest.raises(TeacherError, match="not in the same order"):
        example.in_order(wider, wanted)
