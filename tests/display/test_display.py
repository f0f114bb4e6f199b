"""How objects look on a terminal, in a notebook and in pandas."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import phistill
from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.display import Table, table_html
from phistill.errors import UsageError
from phistill.stats import Description, Normalizer, fit_stats, load_moments, load_normalizer
from phistill.train import TrainConfig, cells, evaluate, load_run, sweep, train
from phistill.train.metrics import read_metrics
from tests.train.conftest import TINY


class Page(HTMLParser):
    """The words of every cell of a page, which must close what it opens."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_cache_shows_its_teachers_and_gives_its_index(fitted_cache: Cache) -> None:
    words = Page(fitted_cache._repr_html_()).words
    assert words[0] == f"Cache {fitted_cache.location}"
    assert {"a", "b", "c", "patches 8, summary 5"} <= {*words}
    lines = fitted_cache.to_pandas()
    assert list(lines["id"]) == fitted_cache.index()["id"].to_pylist()
    assert Page(open_caches(fitted_cache)._repr_html_()).words == words


def test_statistics_print_as_the_table_of_the_command_and_go_to_pandas(
    fitted_cache: Cache,
) -> None:
    rows = fit_stats(fitted_cache)
    header, line, *_ = repr(rows).splitlines()
    assert header.split()[:3] == ["teacher", "kind", "width"]
    assert set(line) <= {"-", " "}
    assert rows[0].teacher in Page(rows._repr_html_()).words
    frame = rows.to_pandas()
    assert list(frame["phi"]) == [row.phi for row in rows]
    assert list(frame["teacher"]) == [row.teacher for row in rows]
    assert rows == list(rows)
    assert rows[:1] == [rows[0]]


def test_a_normalizer_is_one_line_and_no_matrix(fitted_cache: Cache) -> None:
    normalizer = load_normalizer(fitted_cache, "c", "patches")
    assert repr(normalizer).startswith("Normalizer('phi-s', width=8, scale=")
    assert "8" in Page(normalizer._repr_html_()).words
    moments = load_moments(fitted_cache, "c", "patches")
    other = Normalizer.fit(moments, "zca")
    assert "zca" in repr(other)
    assert repr(moments) == f"Moments(n={moments.n}, width=8)"


def test_a_run_its_student_and_its_evaluation_are_tables(
    fitted_cache: Cache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = train(fitted_cache, tmp_path / "run", make_config(num_steps=3))
    assert "0 to 3" in Page(result._repr_html_()).words
    metrics = result.to_pandas()
    totals = [line["total"] for line in read_metrics(tmp_path / "run", "train")]
    assert list(metrics[metrics["event"] == "train"]["total"]) == totals
    assert "losses.c/patches" in metrics.columns
    student = Page(load_run(tmp_path / "run")._repr_html_()).words
    assert student[:3] == ["Student", "student", "vit_tiny_patch16_224"]
    rows = evaluate(tmp_path / "run")
    assert list(rows.to_pandas()["error"]) == [row.error for row in rows]
    assert f"{rows[0].error:.3f}" in Page(rows._repr_html_()).words


def test_a_sweep_is_a_table_of_its_cells(fitted_cache: Cache, tmp_path: Path) -> None:
    grid = cells({**TINY, "num_steps": 2}, {"normalizer": ["phi-s", "none"]})
    result = sweep(fitted_cache, tmp_path / "grid", grid)
    frame = result.to_pandas()
    assert {*frame["cell"]} == {"normalizer=phi-s", "normalizer=none"}
    assert {*frame["set_normalizer"]} == {'"phi-s"', '"none"'}
    assert "normalizer=none" in Page(result._repr_html_()).words
    assert len(frame) == len(result.cells)


def test_what_a_name_holds_is_text_and_no_html() -> None:
    page = table_html(["<b>"], [["<script>alert(1)</script>"], ["a&b"]])
    assert "<script>" not in page
    assert Page(page).words == ["<b>", "<script>alert(1)</script>", "a&b"]


def test_an_empty_table_prints_as_an_empty_list() -> None:
    empty: Table[Description] = Table()
    assert (repr(empty), empty == [], len(empty.to_pandas())) == ("[]", True, 0)
    assert Page(empty._repr_html_()).words == []


def test_without_pandas_a_table_says_what_to_install(
    fitted_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install 'phistill\[pandas\]'"):
        fitted_cache.to_pandas()


def test_pandas_is_not_loaded_before_it_is_asked_for() -> None:
    code = (
        "import json, sys, phistill; phistill.open, phistill.fit_stats, phistill.progress_bar; "
        "print(json.dumps(sorted({'pandas', 'torch', 'IPython'} & set(sys.modules))))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == []
    assert callable(phistill.progress_bar)
