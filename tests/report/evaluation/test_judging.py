"""A run judged on images that no cache holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.report.evaluation.judging import Judging
from phistill.stats import fit_stats
from phistill.train import TrainConfig, load_run, train

Config = Callable[..., TrainConfig]


def draw(folder: Path, seed: int, num: int) -> Path:
    """Blobs of colour on colour."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(num):
        pixels = np.full((40, 48, 3), generator.integers(0, 256, 3), np.uint8)
        top, left = generator.integers(0, 30, 2)
        pixels[top : top + 14, left : left + 14] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_teachers_look_at_new_images_and_old_ones_are_said(
    make_config: Config, tmp_path: Path
) -> None:
    old, new = draw(tmp_path / "old", 0, 40), draw(tmp_path / "new", 1, 32)
    settings = CacheSettings(pixel_size=16, holdout=0.2)
    cache = extract(old, tmp_path / "c", ["mine=demo:ssl"], settings=settings).cache
    fit_stats(cache)
    train(cache, tmp_path / "run", make_config(num_steps=2))
    found, _ = Judging(run=tmp_path / "run", device="cpu").of_images(str(new))
    lines = {(line.student, line.kind): line for line in found.lines}
    assert lines["trained", "patches"].num_images == 32
    assert lines["trained", "patches"].error_low is not None
    # The constant is still the mean of what the run was trained on.
    mean = np.asarray(load_run(tmp_path / "run").facts["means"]["mine/patches"])
    baseline = lines["trained", "patches"].baseline
    seen = extract(new, tmp_path / "again", ["mine=demo:ssl"], settings=settings).cache
    stored = seen.reader("mine", "patches").read(seen.rows(split="all")).astype(np.float64)
    assert baseline == pytest.approx(((stored - mean) ** 2).mean(), rel=1e-3)
    with pytest.warns(UserWarning, match="40 of 40 images are in"):
        Judging(run=tmp_path / "run", device="cpu").of_images(str(old))


def test_imported_features_have_no_teacher_to_look(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loud, quiet: imported features"):
        Judging(run=runs[0]).of_images(str(tmp_path))


def test_new_images_in_folders_of_classes_are_named_and_taught_by_the_runs_own(
    make_config: Config, tmp_path: Path
) -> None:
    """Nothing is asked of what it was taught: before, the new images were their own neighbours."""
    for where, seed in (("old", 0), ("new", 10)):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / where).mkdir(exist_ok=True)
            draw(tmp_path / where / label, seed + number, 20)
    settings = CacheSettings(pixel_size=16, holdout=0.2)
    cache = extract(tmp_path / "old", tmp_path / "c", ["demo:clip"], settings=settings).cache
    fit_stats(cache)
    train(cache, tmp_path / "run", make_config(num_steps=2))
    judging = Judging(run=tmp_path / "run", device="cpu", templates=("a {}",))
    found, notes = judging.of_images(str(tmp_path / "new"))
    assert not notes
    assert {one.task for one in found.tasks} == {
        *("kNN", "linear probe", "zero-shot clip", "retrieval mAP clip"),
    }
    pixels = next(s for s in found.tasks if (s.task, s.features) == ("kNN", "plain pixels"))
    assert pixels.score.num_images == 40
    assert pixels.score.value < 1, "blobs of random colours are of no class"
    shutil.rmtree(tmp_path / "c")
    found, _ = judging.of_images(str(tmp_path / "new"))
    assert {one.task for one in found.tasks} == {"zero-shot clip", "retrieval mAP clip"}
