"""The shell completes commands and options, and loads nothing heavy for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from phistill.cli import main

PROGRAM = """
import sys
from phistill.__main__ import main
sys.argv = ["phistill"]
try:
    main()
finally:
    print(sorted({"torch", "timm", "zarr", "pyarrow"} & set(sys.modules)), file=sys.stderr)
"""


def completed(shell: str, words: str) -> list[str]:
    """What stands behind the last of ``words``, as click hands it to the shell."""
    environment = {
        "_PHISTILL_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": f"phistill {words}",
        "COMP_CWORD": words.split()[-1] if shell == "fish" else str(len(words.split())),
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stderr.splitlines()[-1] == "[]"
    return ended.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_options_are_completed_without_torch(shell: str) -> None:
    found = " ".join(completed(shell, "ex"))
    assert [name for name in main.commands if name in found] == [
        name for name in main.commands if name.startswith("ex")
    ]
    assert "--normalizer" in " ".join(completed(shell, "train --norm"))
    assert "--verbose" in " ".join(completed(shell, "fit-stats --verb"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_line_of_the_page_gives_a_script(shell: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"_PHISTILL_COMPLETE": f"{shell}_source"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"_PHISTILL_COMPLETE={shell}_complete" in ended.stdout
