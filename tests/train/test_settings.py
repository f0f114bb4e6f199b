"""What a person can set, and where it is written down."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from phistill.train import TrainConfig
from phistill.train.settings import BEGIN, END, as_markdown, as_text, settings, write_into

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_every_setting_has_a_meaning() -> None:
    found = settings()
    assert [s.name for s in found] == [field.name for field in dataclasses.fields(TrainConfig)]
    assert [s.name for s in found if len(s.meaning) < 10] == []
    assert all(f"  {s.name} = {s.default}" in as_text() for s in found)


def test_the_page_holds_the_table_of_today() -> None:
    """Otherwise: python -m phistill.train.settings docs/training.md."""
    written = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == as_markdown()


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
