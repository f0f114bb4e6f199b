"""What a notebook calls: the verbs at the top of the package do what the commands do."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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


def test_the_notebook_of_the_examples_runs_and_shows_tables_a_bar_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    path = Path(__file__).parent.parent / "examples" / "from_images_to_a_student.ipynb"
    notebook = nbformat.read(path, as_version=4)
    folder = tmp_path / "work"
    folder.mkdir()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert [page for page in pages if "<b>Cache my.cache</b>" in page and "clip" in page]
    assert [page for page in pages if "eff. rank" in page]
    assert [page for page in pages if "untrained" in page and "95 % interval" in page]
    assert [page for page in pages if "<progress value='40' max='40'>" in page]
    assert len([data for data in shown if "image/png" in data]) == 2
