"""What a notebook calls: the verbs at the top of the package do what the commands do."""

from __future__ import annotations

from pathlib import Path

import pytest

import phistill
from tests.pictures import coloured_squares
from tests.train.conftest import TINY


def test_from_images_to_an_evaluated_student_by_the_names_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "pipeline"))
    images = coloured_squares(tmp_path / "images", 24)
    where = tmp_path / "my.cache"
    settings = phistill.CacheSettings(pixel_size=16, shard_rows=4, holdout=0.3)
    phistill.extract(images, where, ["t=module:tiny_teacher:build"], settings=settings)
    assert phistill.open(where).teachers == ("t",)
    assert {row.teacher for row in phistill.fit_stats(where)} == {"t"}
    config = phistill.TrainConfig(**{**TINY, "num_steps": 2})
    phistill.train(where, tmp_path / "run", config)
    rows = phistill.evaluate(tmp_path / "run")
    assert {row.teacher for row in rows} == {"t"}
    assert phistill.export(tmp_path / "run", tmp_path / "student").is_dir()
