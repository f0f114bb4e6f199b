"""What commands tell on stderr, with -q and -v; a program that imports phistill sets logging up."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from phistill.cache import Cache
from phistill.cli import GROUPS, main
from phistill.commands.verbosity import LOG, progress, shown_on_stderr
from phistill.report.terminal import NoBar, progress_bar

CacheFactory = Callable[..., Cache]
TO_BE_FITTED = "phistill.stats.fit.fit: a/patches: to be fitted"


def stderr_of(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_every_command_takes_v_and_q() -> None:
    for commands in GROUPS.values():
        for command in commands:
            text = CliRunner().invoke(main, [str(command.name), "--help"]).stdout
            assert "-v, --verbose" in text
            assert "-q, --quiet" in text


def test_v_tells_what_was_chosen_and_by_which_module(make_cache: CacheFactory) -> None:
    path = str(make_cache().path)
    assert TO_BE_FITTED in stderr_of("fit-stats", path, "-v")
    told = stderr_of("fit-stats", path, "--verbose")
    assert f"phistill.stats.fit.fit: {path}: the statistics are up to date" in told
    assert f"phistill.cache.opening: {path}: 50 rows in" in told
    assert "phistill." not in stderr_of("fit-stats", path)


def test_q_silences_notes_and_progress_and_no_error(make_cache: CacheFactory) -> None:
    path = str(make_cache().path)
    assert stderr_of("fit-stats", path, "-q") == ""
    refused = CliRunner().invoke(main, ["fit-stats", f"{path}.not", "--quiet"])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"Error: {path}.not is not a cache")
    with shown_on_stderr():
        LOG.setLevel(logging.WARNING)
        with progress("a") as bar:
            assert isinstance(bar, NoBar)
            bar(1, 2, "note")
    with shown_on_stderr(), progress("a") as bar:
        assert not isinstance(bar, NoBar)


def test_notes_come_as_they_are_and_debug_facts_only_with_v(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("phistill.cache.store")
    with shown_on_stderr():
        log.debug("hidden")
        log.info("%d notes, 100 %%", 2)
        LOG.setLevel(logging.DEBUG)
        log.debug("shown")
    assert capsys.readouterr().err == "2 notes, 100 %\nphistill.cache.store: shown\n"


def test_of_v_and_q_the_last_counts(make_cache: CacheFactory) -> None:
    path = str(make_cache().path)
    assert stderr_of("inspect", path, "-v", "-q") == ""
    assert path in stderr_of("inspect", path, "-q", "-v")


def test_a_command_leaves_logging_as_it_was(make_cache: CacheFactory) -> None:
    before = LOG.level, LOG.propagate, list(LOG.handlers)
    stderr_of("inspect", str(make_cache().path), "-v")
    assert (LOG.level, LOG.propagate, list(LOG.handlers)) == before


NOTHING_SET_UP = """
import logging, phistill, sys
cache = phistill.open(sys.argv[1])
logging.getLogger("phistill.cache").error("for whoever listens")
assert not logging.getLogger().handlers
assert logging.getLogger("phistill").level == logging.NOTSET
print("done")
"""
SET_UP_BY_THE_PROGRAM = """
import logging, phistill, sys
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(levelname)s", stream=sys.stdout)
cache = phistill.open(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("program", "words"),
    [(NOTHING_SET_UP, "done\n"), (SET_UP_BY_THE_PROGRAM, "phistill.cache.opening DEBUG\n")],
)
def test_a_program_sets_logging_up_itself(
    make_cache: CacheFactory, program: str, words: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", program, str(make_cache().path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.endswith(words)
    assert ended.stderr == ""


def test_lines_of_a_log_are_neither_wrapped_nor_read_as_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phistill.report.terminal.LOG_FIRST_S", 0.0)
    note = "[red] " + "long " * 60 + "http://x"
    with progress_bar("extract", lines=True) as bar:
        bar(1, 2, note)
    assert capsys.readouterr().err == f"extract: 1 of 2 (50%), {note}\n"


def test_a_path_is_no_format(make_cache: CacheFactory, tmp_path: Path) -> None:
    path = make_cache().path.rename(tmp_path / "100%s")
    assert f"{path}: 50 rows" in stderr_of("inspect", str(path), "-v")
