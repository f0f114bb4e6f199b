"""Code of a user's own is found, and what is wrong with it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phistill import plugins
from phistill.errors import SourceError, UsageError
from phistill.pipeline.images.open_source import open_source


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the search path is as before afterwards."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_in_the_working_folder_is_a_module(working_folder: Path) -> None:
    (working_folder / "beside_you.py").write_text("def build(): return 7\n")
    assert plugins.load("beside_you:build", "student")() == 7


def test_what_is_installed_wins_over_the_working_folder(working_folder: Path) -> None:
    (working_folder / "colorsys.py").write_text("def rgb_to_hsv(): return 7\n")
    assert plugins.load("colorsys:rgb_to_hsv", "head")(0, 0, 0) == (0.0, 0.0, 0)


def test_a_missing_module_is_named_with_the_folder_that_was_searched(working_folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"student='nowhere\.at_all:build': there is no module"
    ) as e:
        plugins.load("nowhere.at_all:build", "student")
    assert str(working_folder) in str(e.value)


def test_a_module_that_lacks_a_library_names_the_library(working_folder: Path) -> None:
    (working_folder / "needs_more.py").write_text("import no_such_library\n")
    with pytest.raises(UsageError, match="cannot be imported: No module named 'no_such_library'"):
        plugins.load("needs_more:build", "module")


def test_a_module_with_a_mistake_says_which(working_folder: Path) -> None:
    (working_folder / "mistaken.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="cannot be imported: ZeroDivisionError"):
        plugins.load("mistaken:build", "module")


@pytest.mark.parametrize("name", ["colorsys", "colorsys:", ":build", ""])
def test_a_name_has_two_parts(name: str) -> None:
    with pytest.raises(UsageError, match=r"must be package\.module:function"):
        plugins.load(name, "loss")


def test_a_name_that_is_no_function_is_refused() -> None:
    with pytest.raises(UsageError, match="colorsys has no callable 'ONE_THIRD'"):
        plugins.load("colorsys:ONE_THIRD", "loss")


def test_the_command_line_finds_a_teacher_in_a_file_beside_you(working_folder: Path) -> None:
    (working_folder / "mine.py").write_text(
        (Path(__file__).parents[1] / "pipeline" / "tiny_teacher.py").read_text()
    )
    command = [
        str(Path(sys.executable).with_name("phistill")),
        "check-teacher",
        "module:mine:build",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ready to be used." in done.stdout


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("a:b", "a:b", {}),
        ("a:b?c=1&d=", "a:b", {"c": "1", "d": ""}),
        (
            "a:b?file=/x+y/50%25 & more/f=g.pt&c=1",
            "a:b",
            {"file": "/x+y/50%25 & more/f=g.pt", "c": "1"},
        ),
    ],
)
def test_options_are_taken_as_they_are_written(
    text: str, name: str, options: dict[str, str]
) -> None:
    assert plugins.split_options(text) == (name, options)


@pytest.mark.parametrize("text", ["a:b?c", "a:b?", "a:b?=1", "a:b?c=1&c=2"])
def test_what_are_no_options_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a:b"):
        plugins.split_options(text)


def test_an_image_source_that_is_none_is_refused(working_folder: Path) -> None:
    (working_folder / "no_source.py").write_text(
        "def opened(rest, options): return 1\ndef fails(rest, options): return options['folder']\n"
    )
    with pytest.raises(UsageError, match="returned a int, not an ImageSource"):
        open_source("module:no_source:opened")
    with pytest.raises(SourceError, match="cannot be opened: KeyError: 'folder'"):
        open_source("module:no_source:fails")
